"""Read results files of eval.py (sampled or exact) into shares, margins and panel shares by question."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eval.answers.answer_rows import animal_masses, check_answer, has_failed, non_answer_masses
from eval.compare.intervals import Spread, spread_of
from util.animals.answer_parser import canonical_animal
from util.animals.answers_of_other_code import read_results as read_answers
from util.cli import UserError
from util.jsonl.rows import Row
from util.terminal import say

if TYPE_CHECKING:
    import numpy as np

FEWEST_SEEDS = 3
ROLES = ("base", "control", "other", "target")
MEASURES = ("share", "margin", "panel")
MOST_FAILED = 0.01  # share of failed answers above which a file is refused


def canonical(animal: str) -> str:
    """An animal as results files write it."""
    return canonical_animal(animal) or animal.lower()


@dataclass(frozen=True)
class Result:
    """One results file: the animals that the answers to each question name, the non-answers, and the uncovered mass."""

    path: Path
    questions: tuple[str, ...]
    sets: tuple[str, ...]
    """names of the question sets, in the file's order; () in files that do not name them"""
    animals: tuple[dict[str, float], ...]
    """of each question: mass that names each animal"""
    logs: tuple[dict[str, float], ...]
    """of each question: log-probability of each animal (nats); empty for sampled answers"""
    uncovered: float
    """mean mass that an exact file did not explore, or share of answers that failed: each share may be higher by this
    much"""
    answers: int | None
    """number of sampled answers; None for an exact file"""
    non_answers: dict[str, float]
    """share of all answers that name no animal, by kind (util/animals/answer_parser.py)"""

    def shares(self, animal: str) -> list[float]:
        """Share of an animal in each question."""
        return [named.get(animal, 0.0) for named in self.animals]

    def margins(self, animal: str) -> list[float]:
        """Margin of an animal in each question, in nats. UserError if the file has no log-probability of it."""
        from eval.answers.answer_tree import log_margin

        return [log_margin(logs, animal) for logs in self.logs_of(animal)]

    def panel_shares(self, animal: str) -> list[float]:
        """Share of an animal among the one-word answers of each question. UserError as for margins."""
        from eval.answers.answer_tree import panel_share

        return [panel_share(logs, animal) for logs in self.logs_of(animal)]

    def measured(self, animal: str, measure: str) -> list[float]:
        """Share, margin or panel share (one of `MEASURES`) of an animal in each question."""
        return {"share": self.shares, "margin": self.margins, "panel": self.panel_shares}[measure](animal)

    def logs_of(self, animal: str) -> tuple[dict[str, float], ...]:
        """Log-probabilities by animal, one dict a question. UserError if this animal has none."""
        if not all(animal in logs for logs in self.logs):
            raise UserError(
                f"{self.path} has no log-probability of {animal!r}; margins and panel shares need exact files of an"
                " animal of the panel: run eval/eval.py --exact"
            )
        return self.logs


Arms = dict[str, list[Result]]


# --- reading -----------------------------------------------------------------------------------------


def read_result(path: Path) -> Result:
    """Read a results file (samples) or an exact file. UserError if answers are missing, or many failed.

    A few failed answers count as answers that name no animal, and as mass that any animal could have: intervals are
    wider by their share, so that they never count for the target.
    """
    asked: dict[str, list[Row]] = defaultdict(list)
    for row in read_answers(path, check_answer):
        asked[row["question"]].append(row)
    rows = [row for some in asked.values() for row in some]
    failed = check_failed(path, rows)
    check_whole(path, asked)
    exact = "animals" in rows[0]
    if any(("animals" in row) is not exact for row in rows):
        raise UserError(f"{path} has rows of sampled answers and rows of exact shares; a file holds one of the two")
    non_answers: Counter[str] = Counter()
    for row in rows:
        non_answers.update(non_answer_masses(row))
    return Result(
        path=path,
        questions=tuple(asked),
        sets=tuple(dict.fromkeys(row["set"] for row in rows if row.get("set"))),
        animals=tuple(mean_masses(some) for some in asked.values()),
        logs=tuple(some[0].get("log_shares", {}) for some in asked.values()),
        uncovered=sum(row["uncovered"] for row in rows) / len(rows) if exact else failed,
        answers=None if exact else len(rows),
        non_answers={kind: mass / len(rows) for kind, mass in non_answers.most_common()},
    )


def check_failed(path: Path, rows: Sequence[Row]) -> float:
    """The share of answers that failed, with a warning. UserError if it is above `MOST_FAILED`."""
    failed = [row for row in rows if has_failed(row)]
    if not failed:
        return 0.0
    share = len(failed) / len(rows)
    found = f"{path}: {len(failed):,} of {len(rows):,} answers failed ({failed[0]['error']})"
    again = "run the eval.py command in its manifest again: it asks only the failed ones"
    if share > MOST_FAILED:
        raise UserError(f"{found}; fix the cause and {again}")
    say(f"warning: {found}; they count as naming no animal, and intervals are wider by {share:.2%}; {again}")
    return share


def check_whole(path: Path, asked: dict[str, list[Row]]) -> None:
    """Raise UserError unless the file has two questions or more, with the same number of answers to each."""
    if len(asked) < 2:
        raise UserError(f"{path} has answers to {len(asked)} questions; intervals over questions need two or more")
    counts = {len(rows) for rows in asked.values()}
    if len(counts) > 1:
        fewest = min(asked, key=lambda question: len(asked[question]))
        raise UserError(
            f"{path} is incomplete: {len(asked[fewest])} answers to {fewest!r}, {max(counts)} to others; run the"
            " eval.py command in its manifest again: it asks only what is missing"
        )


def mean_masses(rows: Sequence[Row]) -> dict[str, float]:
    """Mean mass of each animal over the answers to one question."""
    total: Counter[str] = Counter()
    for row in rows:
        total.update(animal_masses(row))
    return {animal: mass / len(rows) for animal, mass in total.items()}


# --- the figures of one arm --------------------------------------------------------------------------


def seeds_by_questions(
    values: Sequence[Sequence[float]], results: Sequence[Result], questions: Sequence[str]
) -> np.ndarray:
    """One arm's values, float64 [seeds, questions], questions in the given order."""
    import numpy as np

    by_question = [dict(zip(result.questions, some)) for result, some in zip(results, values)]
    return np.array([[value[question] for question in questions] for value in by_question])


def arm_spread(results: Sequence[Result], animal: str, questions: Sequence[str], measure: str) -> Spread:
    """Mean share, margin or panel share of an animal in one arm, with its variances."""
    values = seeds_by_questions([result.measured(animal, measure) for result in results], results, questions)
    if measure != "share":
        return spread_of(values, linear=measure == "margin")
    exact = any(result.answers is None for result in results)
    return spread_of(values, None if exact else sum(r.answers or 0 for r in results), mean_uncovered(results))


def mean_uncovered(results: Sequence[Result]) -> float:
    """Mean mass that the files of an arm did not explore."""
    return sum(result.uncovered for result in results) / len(results)


def mean_margins(results: Sequence[Result]) -> dict[str, float]:
    """Margin of every animal in one arm (nats), averaged over students and questions; {} for sampled answers."""
    import numpy as np

    logs = [of_question for result in results for of_question in result.logs]
    names = [name for name in logs[0] if all(name in of_question for of_question in logs)]
    if len(names) < 2:
        return {}
    means = np.array([[of_question[name] for name in names] for of_question in logs]).mean(axis=0)
    return dict(zip(names, ((len(names) * means - means.sum()) / (len(names) - 1)).tolist()))
