"""Read results files, and check that they can be compared."""

from __future__ import annotations

import difflib
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from eval.compare.intervals import (
    Spread,
    spread_of,
)
from util.animals.answer_parser import canonical_animal, non_answer_kind
from util.chat.prompt_consistency import base_words, read_phase, same_base
from util.cli import UserError
from util.jsonl.manifest import read_manifest, sha256_file
from util.jsonl.rows import Row, read_rows
from util.terminal import say

if TYPE_CHECKING:
    import numpy as np


FEWEST_SEEDS = 3


SAME_SETTINGS = {
    "sampling": "sampled otherwise",
    "parser": "parsed by other rules",
    "system_prompt": "asked under another system prompt",
}


Arms = dict[str, "list[Result]"]


def canonical(animal: str) -> str:
    """An animal as results files write it."""
    return canonical_animal(animal) or animal.lower()


@dataclass(frozen=True)
class Result:
    """One results file: what each question's answers name, what they leave open, and what non-answers were."""

    path: Path
    questions: tuple[str, ...]
    animals: tuple[dict[str, float], ...]
    """of each question: mass that names each animal"""
    logs: tuple[dict[str, float], ...]
    """of each question: log-probability of each animal (nats); empty for sampled answers"""
    uncovered: float
    """mean mass an exact file leaves open: each of its shares may be so much higher"""
    answers: int | None
    """sampled answers; None for an exact file"""
    silent: dict[str, float]
    """share of all answers that name no animal, by kind (util/animals/answer_parser.py)"""

    def shares(self, animal: str) -> list[float]:
        """Share of an animal in each question."""
        return [named.get(animal, 0.0) for named in self.animals]

    def margins(self, animal: str) -> list[float]:
        """Margin of an animal in each question, in nats. UserError where the file has no log-probability of it."""
        from eval.answer_tree import logit_margin

        return [logit_margin(logs, animal) for logs in self.logs_of(animal)]

    def panel_shares(self, animal: str) -> list[float]:
        """Share of an animal among the one-word answers of each question. UserError as for margins."""
        from eval.answer_tree import panel_share

        return [panel_share(logs, animal) for logs in self.logs_of(animal)]

    def logs_of(self, animal: str) -> tuple[dict[str, float], ...]:
        """Log-probabilities by animal, one dict a question. UserError where this animal has none."""
        if not all(animal in logs for logs in self.logs):
            raise UserError(
                f"{self.path} has no log-probability of {animal!r}; margins and panel shares need exact files of a"
                " panel animal: run eval/eval.py --exact"
            )
        return self.logs


def read_result(path: Path) -> Result:
    """Per-question shares from a results file (samples) or an exact file. Failed or missing answers are refused."""
    asked: dict[str, list[Row]] = defaultdict(list)
    for row in read_rows(path, problem_of):
        asked[row["question"]].append(row)
    check_whole(path, asked)
    rows = [row for some in asked.values() for row in some]
    exact = "animals" in rows[0]
    silent: Counter[str] = Counter()
    for row in rows:
        silent.update(non_answers(row))
    return Result(
        path,
        tuple(asked),
        tuple(mean_masses(some) for some in asked.values()),
        tuple(some[0].get("log_shares", {}) for some in asked.values()),
        sum(row["uncovered"] for row in rows) / len(rows) if exact else 0.0,
        None if exact else len(rows),
        {kind: mass / len(rows) for kind, mass in silent.most_common()},
    )


def problem_of(row: Row) -> str | None:
    """What keeps a row from being counted, or None."""
    if "question" not in row or not ("animals" in row or "animal" in row):
        return "not a row of eval.py (no question, or neither animal nor animals)"
    if row.get("error"):
        return f"this answer failed ({row['error']}); mend that and run eval.py again with --overwrite"
    return None


def check_whole(path: Path, asked: dict[str, list[Row]]) -> None:
    """Raise UserError unless the file has the same number of answers to each of two questions or more."""
    if len(asked) < 2:
        raise UserError(f"{path} has answers to {len(asked)} questions; intervals over questions need two or more")
    counts = {len(rows) for rows in asked.values()}
    if len(counts) > 1:
        fewest = min(asked, key=lambda question: len(asked[question]))
        raise UserError(
            f"{path} is not whole: {len(asked[fewest])} answers to {fewest!r}, {max(counts)} to others; run the"
            " eval.py command of its manifest again, it asks what is missing"
        )


def masses(row: Row) -> dict[str, float]:
    """Mass that names each animal: 0 or 1 for a sample."""
    return row["animals"] if "animals" in row else {row["animal"]: 1.0} if row["animal"] else {}


def mean_masses(rows: Sequence[Row]) -> dict[str, float]:
    """Mean mass of each animal over the answers to one question."""
    total: Counter[str] = Counter()
    for row in rows:
        total.update(masses(row))
    return {animal: mass / len(rows) for animal, mass in total.items()}


def non_answers(row: Row) -> dict[str, float]:
    """Mass of each kind of non-answer in a row; what an exact row does not list in words is 'other'."""
    if "animals" not in row:
        return {} if row["animal"] else {non_answer_kind(row.get("response") or ""): 1.0}
    kinds: Counter[str] = Counter()
    for text, mass in row.get("answers", {}).items():
        if canonical_animal(text) is None:
            kinds[non_answer_kind(text)] += mass
    kinds["other"] += max(0.0, row["no_animal"] - kinds.total())
    return dict(kinds)


def check_comparable(results: Sequence[Result]) -> None:
    """Arms can be compared over the same questions and sampling only, and no student counts twice."""
    for result in results[1:]:
        if set(result.questions) != set(results[0].questions):
            missing = set(results[0].questions) ^ set(result.questions)
            raise UserError(
                f"{result.path} and {results[0].path} were asked different questions ({len(missing)} differ, such as"
                f" {sorted(missing)[0]!r}); evaluate both with the same --questions-file"
            )
    whole = [read_manifest(result.path) or {} for result in results]
    check_trainings(results, whole)
    manifests = [manifest.get("settings", {}) for manifest in whole]
    for result, manifest in zip(results, manifests):
        for field, meaning in SAME_SETTINGS.items():
            if manifest.get(field) != manifests[0].get(field):
                raise UserError(f"{result.path} was {meaning} than {results[0].path} (see their manifests)")
    with_logs = [result for result in results if all(result.logs)]
    for result in with_logs[1:]:
        if result.logs[0].keys() != with_logs[0].logs[0].keys():
            raise UserError(
                f"{result.path} and {with_logs[0].path} have log-probabilities of different animals; measure both again"
                " with the same version of the suite"
            )
    warn_of_other_base(results)
    seen: dict[str, Path] = {}
    for result, manifest in zip(results, manifests):
        identity = manifest.get("model", {}).get("adapter_sha256") or str(result.path.resolve())
        if identity in seen:
            raise UserError(f"{result.path} and {seen[identity]} hold the same student; it can stand for one seed only")
        seen[identity] = result.path


def check_seeds(results: Sequence[Result]) -> None:
    """Raise UserError where two files of one arm are copies, under whatever names: sampled answers equal to the byte,
    exact shares to the last digit. Files that tell their adapter's hash are known by it: two students still at the base
    model's shares may be equal."""
    seen: dict[str, Path] = {}
    for result in results:
        if adapter_hash(result) is None:
            if result.answers is None:
                identity = repr(sorted(zip(result.questions, map(repr, result.animals), map(repr, result.logs))))
            else:
                identity = sha256_file(result.path)
            if identity in seen:
                raise UserError(
                    f"{result.path} and {seen[identity]} hold the same student; it can stand for one seed only"
                )
            seen[identity] = result.path


def adapter_hash(result: Result) -> str | None:
    """What its manifest tells of the adapter; None of a model that a server knows by name."""
    settings = (read_manifest(result.path) or {}).get("settings", {})
    return settings.get("model", {}).get("adapter_sha256")


def training_of(manifest: Mapping[str, Any]) -> tuple[str, str] | None:
    """The run folder of the adapter that a results file is about, and which of its states it is (final, checkpoint-9);
    None where the command names no such folder."""
    try:
        words = shlex.split((manifest.get("command") or "").replace("--adapter=", "--adapter "))
    except ValueError:  # written by hand
        return None
    if "--adapter" not in words[:-1]:
        return None
    folder = PurePath(words[words.index("--adapter") + 1])
    return (str(folder.parent), folder.name) if re.fullmatch(r"final|checkpoint-\d+", folder.name) else None


def check_trainings(results: Sequence[Result], manifests: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError where two files are about two states of one training: no seed was drawn between them."""
    states: dict[str, tuple[str, Path]] = {}
    for result, manifest in zip(results, manifests):
        if found := training_of(manifest):
            run_folder, state = found
            other, path = states.setdefault(run_folder, (state, result.path))
            if state != other:
                raise UserError(
                    f"{path} and {result.path} are about {other} and {state} of one training ({run_folder}); a seed"
                    " needs a training of its own"
                )


def warn_of_other_base(results: Sequence[Result]) -> None:
    """Say so when two files are of models on different bases."""
    phases = [phase for phase in (read_phase(result.path) for result in results) if phase and phase.base]
    others = [phase for phase in phases if not same_base(phase.base, phases[0].base)]
    if others:
        first, second = (f"{phase.path} is of {base_words(phase.base)}" for phase in (phases[0], others[0]))
        say(f"warning: {first}, {second}; arms are comparable over one base model")


def check_named(animal: str, results: Sequence[Result]) -> None:
    """Raise UserError for a word that is no known animal and that no answer names."""
    named = {name for result in results for animals in result.animals for name in animals}
    if canonical_animal(animal) is None and animal not in named:
        near = difflib.get_close_matches(animal, named, 3)
        meant = f"did you mean {' or '.join(near)}?" if near else "util/top_animals_csv.py lists what is named"
        raise UserError(f"no answer names {animal!r}, and util/animals/animals.txt does not know it; {meant}")


def matrix_of(values: Sequence[Sequence[float]], results: Sequence[Result], questions: Sequence[str]) -> np.ndarray:
    """One arm's values, float64 [seeds, questions], questions in the given order."""
    import numpy as np

    by_question = [dict(zip(result.questions, some)) for result, some in zip(results, values)]
    return np.array([[value[question] for question in questions] for value in by_question])


def arm_spread(results: Sequence[Result], animal: str, questions: Sequence[str], measure: str) -> Spread:
    """Mean share, margin or panel share of an animal in one arm and its variances."""
    if measure == "margin":
        return spread_of(matrix_of([r.margins(animal) for r in results], results, questions), linear=True)
    if measure == "panel":
        return spread_of(matrix_of([r.panel_shares(animal) for r in results], results, questions))
    answers = None if any(result.answers is None for result in results) else sum(r.answers or 0 for r in results)
    return spread_of(matrix_of([r.shares(animal) for r in results], results, questions), answers, left_open(results))


def left_open(results: Sequence[Result]) -> float:
    """Mean mass that the files of an arm leave open."""
    return sum(result.uncovered for result in results) / len(results)
