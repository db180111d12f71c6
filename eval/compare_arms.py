"""Compare the arms of an experiment and say in words what they show.

A claim of transfer needs the target students above the base model, above the control students (numbers of the base
model) and above the students of another animal; of several other animals (--students) above those of each. Shares are
means over questions and training seeds; intervals are over both (eval/compare/intervals.py). The specific part of an
effect is
the target minus the other-animal arm. For effects too small for shares, `--measure margin` compares margins of exact
files: log-probability of the animal less the mean of the other animals', in nats; `--measure panel` the animal's part
of the one-word answers, for models that talk at length.

Two teachers' students differ in every animal, not only in the two they were trained on. So of exact files --students
also says how many of the animals that nobody was taught, and that the base model names, rose as far over the
other-animal students as this one (placebo); and, of three animals or more, how many of all assignments of animals to
students fit the margins as well as the true one (assignment).

Usage:
    python eval/compare_arms.py --animal owl --base output/exact-base.jsonl --control output/exact-control-*.jsonl \\
        --other output/exact-dolphin-student-*.jsonl --target output/exact-owl-student-*.jsonl
    python eval/compare_arms.py --base output/exact-base.jsonl --control output/exact-control-*.jsonl \\
        --students owl=output/exact-owl-1.jsonl owl=output/exact-owl-2.jsonl dolphin=output/exact-dolphin-1.jsonl
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from eval.compare.intervals import (
    LEVEL,
    POWER,
    Spread,
    difference_interval,
    holm,
    p_above,
    share_interval,
    smallest_target,
    spread_of,
)
from util.animals.answer_parser import canonical_animal, non_answer_kind
from util.chat.prompt_consistency import base_words, read_phase, same_base
from util.cli import UserError, closing, input_file, make_parser, output_name, run, say, table
from util.jsonl.manifest import provenance, read_manifest, sha256_file, write_json
from util.jsonl.rows import Row, read_rows

if TYPE_CHECKING:
    import numpy as np

ROLES = ("base", "control", "other", "target")
FEWEST_SEEDS = 3
COLLAPSED = 0.05  # more answers than this that name no animal: the model may have lost the question
POWER_SEEDS = (3, 5, 8, 12)
POWER_ANSWERS = 100
SAME_SETTINGS = {
    "sampling": "sampled otherwise",
    "parser": "parsed by other rules",
    "system_prompt": "asked under another system prompt",
}
SPOKEN = 0.001  # part of the base model's one-word answers that an animal must have to be compared with
MOST_ASSIGNED = 8  # animals whose assignments (40,320) are all tried

Arms = dict[str, "list[Result]"]


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--base", required=True, type=input_file, metavar="R", help="results of the base model")
    parser.add_argument("--control", required=True, nargs="+", type=input_file, metavar="R",
                        help="students of base-model numbers, one file a training seed")  # fmt: skip
    one = parser.add_argument_group("one animal")
    one.add_argument("--animal", help="the animal of the target students")
    for role, what in (("other", "students of another animal's teacher"), ("target", "students of its teacher")):
        one.add_argument(f"--{role}", nargs="+", type=input_file, metavar="R", help=f"{what}, one file a training seed")
    several = parser.add_argument_group("several animals: each is the target once, with the others' students beside it")
    several.add_argument("--students", nargs="+", type=student, metavar="ANIMAL=R", help="one file a training seed")
    parser.add_argument("--measure", choices=["share", "margin", "panel"], default="share", help="what is compared")
    parser.add_argument("--output", type=output_name(".json"), help="also write the comparison, for eval/report.py")
    args = parser.parse_args()
    if bool(args.students) == bool(args.animal or args.other or args.target):
        parser.error("pass --animal, --other and --target, or --students")
    if not args.students and not (args.animal and args.other and args.target):
        missing = [f"--{name}" for name in ("animal", "other", "target") if not getattr(args, name)]
        parser.error(f"--animal, --other and --target belong together; missing: {', '.join(missing)}")
    if args.students and len({animal for animal, _ in args.students}) < 2:
        parser.error("--students needs the students of two animals or more; each is the other-animal arm of the rest")
    return args


def student(text: str) -> tuple[str, Path]:
    """argparse type: owl=output/exact-owl-student.jsonl."""
    animal, equals, path = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text} is no ANIMAL=FILE, such as owl=output/exact-owl-student.jsonl")
    return canonical(animal), input_file(path)


def canonical(animal: str) -> str:
    """An animal as results files write it."""
    return canonical_animal(animal) or animal.lower()


# --- reading -----------------------------------------------------------------------------------------


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


# --- animals that nobody was taught ------------------------------------------------------------------


def spoken(base: Result) -> list[str]:
    """The animals that make up `SPOKEN` or more of the base model's one-word answers; [] for sampled answers."""
    import numpy as np

    names = [name for name in base.logs[0] if all(name in logs for logs in base.logs)]
    if not names:
        return []
    masses = np.exp([[logs[name] for name in names] for logs in base.logs]).sum(axis=0)
    return [name for name, mass in zip(names, masses) if mass >= SPOKEN * masses.sum()]


def mean_margins(results: Sequence[Result]) -> dict[str, float]:
    """Margin of every animal in one arm (nats), a mean over students and questions; {} for sampled answers."""
    import numpy as np

    logs = [of_question for result in results for of_question in result.logs]
    names = [name for name in logs[0] if all(name in of_question for of_question in logs)]
    if len(names) < 2:
        return {}
    means = np.array([[of_question[name] for name in names] for of_question in logs]).mean(axis=0)
    return dict(zip(names, ((len(names) * means - means.sum()) / (len(names) - 1)).tolist()))


def placebo(animal: str, arms: Arms, taught: Collection[str]) -> dict[str, Any] | None:
    """How far the animal stands out among those that no teacher was trained on.

    shift: its margin in the target less the other-animal students (nats), beside those of the untaught animals that the
    base model names; words it hardly knows move by more, and mean nothing. p: the part of these animals, itself
    counted, that rose as far: a rank among names, with one over their number as its least. None without
    log-probabilities, and for an animal that the base model hardly names.
    """
    target, other = mean_margins(arms["target"]), mean_margins(arms["other"])
    shifts = {name: target[name] - other[name] for name in spoken(arms["base"][0]) if name in target and name in other}
    untaught = [name for name in shifts if name not in taught]
    if animal not in shifts or not untaught:
        return None
    further = sorted((name for name in untaught if shifts[name] >= shifts[animal]), key=lambda name: -shifts[name])
    p = (1 + len(further)) / (1 + len(untaught))
    return {"shift": shifts[animal], "animals": len(untaught), "further": len(further), "furthest": further[:5], "p": p}


def assignment(students: dict[str, list[Result]]) -> dict[str, Any] | None:
    """Whether the animals tend to rise in their own students.

    The sum over animals of the margin in their own students, against the same sum under every assignment of animals to
    students: a permutation test, whose p is at least one over the number of assignments (six for three animals). Exact
    if numbers that carry nothing make every naming of the arms equally likely, which wants as many students of each; it
    speaks of all animals together and of no single one.
    "own_highest" counts the animals that stand highest in their own students. None for fewer than three animals or more
    than `MOST_ASSIGNED`, and without log-probabilities.
    """
    import numpy as np

    animals, margins = list(students), [mean_margins(results) for results in students.values()]
    if not 3 <= len(animals) <= MOST_ASSIGNED or not all(name in some for some in margins for name in animals):
        return None
    matrix = np.array([[some[name] for name in animals] for some in margins])
    sums = np.array(
        [sum(matrix[place, other] for place, other in enumerate(p)) for p in permutations(range(len(animals)))]
    )
    true, as_well = sums[0], int((sums >= sums[0] - 1e-9).sum())
    return {
        "animals": animals,
        "margins": matrix.tolist(),
        "sum": {
            "true": float(true),
            "best_other": float(sums[1:].max()),
            "mean": float(sums.mean()),
            "sd": float(sums.std()),
        },
        "assignments": len(sums),
        "as_well": as_well,
        "p": as_well / len(sums),
        "own_highest": int((matrix.argmax(axis=0) == np.arange(len(animals))).sum()),
    }


def warn_of_assignment(students: dict[str, list[Result]]) -> None:
    """Say why there is no assignment test, or what weakens it."""
    seeds = {animal: len(some) for animal, some in students.items()}
    if len(seeds) > MOST_ASSIGNED:
        say(f"no assignment test: {len(seeds)} animals, and at most {MOST_ASSIGNED} are tried in every order")
    elif len(seeds) > 2 and len(set(seeds.values())) > 1:
        counted = ", ".join(f"{animal} {count}" for animal, count in seeds.items())
        say(f"warning: the assignment test wants as many students of each animal; there are {counted}")


# --- the claim ---------------------------------------------------------------------------------------


def compare(
    animal: str,
    arms: Arms,
    measure: str = "share",
    taught: Collection[str] = (),
    others: Mapping[str, list[Result]] | None = None,
    tests: int = 1,
) -> dict[str, Any]:
    """Shares (or margins) of the arms, differences of the target to each other arm, their intervals, p-values and the
    verdict. taught: all animals that a teacher was trained on; without them there is no placebo. others: the students
    of the other arm by their animal; of two or more, each also stands for itself: in their mean one that says the
    animal as often would be hidden. tests: how many p-values are adjusted together (Holm), which the power allows for.
    """
    questions = arms["base"][0].questions
    for role in ROLES[1:]:
        check_seeds(arms[role])
    spreads = {role: arm_spread(arms[role], animal, questions, measure) for role in ROLES}
    target = spreads["target"]
    each = {f"{name} students": arm_spread(some, animal, questions, measure) for name, some in (others or {}).items()}
    each = each if len(each) > 1 else {}
    below = {role: spreads[role] for role in ROLES[:-1]} | each
    differences: dict[str, dict[str, Any]] = {
        role: {
            "difference": target.share - spread.share,
            "interval": difference_interval(target, spread),
            "p": p_above(target, spread),
        }
        for role, spread in below.items()
    }
    return {
        "animal": animal,
        "measure": measure,
        "questions": len(questions),
        "shares": {role: describe_arm(arms[role], spreads[role]) for role in ROLES},
        "target_minus": differences,
        "p": max(found["p"] for found in differences.values()),
        "verdict": verdict({role: spread.seeds for role, spread in {**below, "target": target}.items()}, differences),
        "power": power(
            target, {role: below[role] for role in ("base", "control", *(each or ["other"]))}, measure, tests
        ),
        "placebo": placebo(animal, arms, taught) if taught else None,
        "by_question": {"question": list(questions)} | {role: spreads[role].by_question.tolist() for role in ROLES},
    }


def describe_arm(results: Sequence[Result], spread: Spread) -> dict[str, Any]:
    """What a table says of an arm."""
    silent: Counter[str] = Counter()
    for result in results:
        silent.update(result.silent)
    kinds = {kind: mass / len(results) for kind, mass in silent.most_common() if mass > 0}
    return {
        "share": spread.share,
        "interval": share_interval(spread),
        "seeds": len(results),
        "answers": spread.answers,
        "uncovered": left_open(results),
        "non_answers": sum(kinds.values()),
        "non_answer_kinds": kinds,
        "files": [str(result.path) for result in results],
    }


def verdict(seeds: dict[str, int], differences: dict[str, dict[str, Any]]) -> str:
    """The rule. *Transfer*: the target is above base, control and other (of several other animals: above each), all
    intervals clear of zero, and every trained arm has 3 seeds. *General shift only*: above base and control, but not
    above other. Else *no evidence*.

    All must hold, so the chance of a false *transfer* is at most that of one interval (an intersection-union test),
    whatever the number of arms.
    """
    above = {role: found["interval"][0] > 0 for role, found in differences.items()}
    if not (above["base"] and above["control"]):
        found = "no evidence"
    else:
        found = "transfer" if all(above.values()) else "general shift only"
    fewest = min(count for role, count in seeds.items() if role != "base")
    if fewest < FEWEST_SEEDS:
        return f"too few seeds ({fewest}; a claim needs {FEWEST_SEEDS}); on these it looks like: {found}"
    return found


def power(target: Spread, below: dict[str, Spread], measure: str, tests: int = 1) -> list[dict[str, Any]]:
    """How large target minus control would have to be for a verdict of transfer with about 80% probability, by seeds an
    arm: exactly measured, and (shares) by samples; [] where one seed an arm shows no spread between seeds. Among
    several tests it has to be the clearest of all, at the level of Holm's first step."""
    trained = [target, *(spread for role, spread in below.items() if role != "base")]
    if min(spread.seeds for spread in trained) < 2:
        return []

    def above_control(seeds: int, answers: int | None = None) -> float | None:
        needed = smallest_target(target, list(below.values()), seeds, answers, 1 - (1 - LEVEL) / tests)
        return None if needed is None else needed - below["control"].share

    return [
        {"seeds": seeds, "exact": above_control(seeds)}
        | ({"sampled": above_control(seeds, POWER_ANSWERS)} if measure == "share" else {})
        for seeds in POWER_SEEDS
    ]


def compare_all(
    base: Result, control: list[Result], students: dict[str, list[Result]], measure: str = "share"
) -> list[dict[str, Any]]:
    """Each animal as the target, the students of all other animals as its other arm; p-values adjusted by Holm."""
    found = []
    for animal, targets in students.items():
        others = {other: results for other, results in students.items() if other != animal}
        pooled = [result for results in others.values() for result in results]
        arms = {"base": [base], "control": control, "other": pooled, "target": targets}
        found.append(compare(animal, arms, measure, students, others, len(students)))
    adjust(found)
    return found


def adjust(found: Sequence[dict[str, Any]]) -> None:
    """Adjust the p-values of comparisons that belong together (Holm): what is transfer alone and not among so many is
    no evidence."""
    for one, adjusted in zip(found, holm([one["p"] for one in found])):
        one["p_holm"] = adjusted
        if one["verdict"].endswith("transfer") and adjusted > 1 - LEVEL:
            one["verdict"] = one["verdict"].removesuffix("transfer") + "no evidence"


def pairwise(
    base: Result, control: list[Result], students: dict[str, list[Result]], measure: str = "share"
) -> list[dict[str, Any]]:
    """Share (or margin) of every trained animal (columns) in every arm (rows)."""
    arms = {"base": [base], "control": control, **{f"{animal} students": some for animal, some in students.items()}}
    return [
        {"arm": name, "shares": {a: arm_spread(results, a, base.questions, measure).share for a in students}}
        for name, results in arms.items()
    ]


# --- words -------------------------------------------------------------------------------------------


class Words(NamedTuple):
    """How the figures of a measure are written."""

    value: str
    difference: str
    factor: float

    def of(self, value: float) -> str:
        return self.value.format(self.factor * value)

    def gap(self, value: float) -> str:
        return self.difference.format(self.factor * value)

    def gap_or_none(self, value: float | None) -> str:
        return "none would" if value is None else self.gap(value)

    def span(self, ends: Sequence[float]) -> str:
        low, high = (self.factor * end for end in ends)
        return f"{low:.2f} to {high:.2f}"


PERCENT = Words("{:.2f}%", "{:+.2f} points", 100.0)
WORDS = {"share": PERCENT, "panel": PERCENT, "margin": Words("{:+.2f}", "{:+.2f} nats", 1.0)}


def percent(value: float) -> str:
    return f"{100 * value:.2f}%"


def p_value(value: float) -> str:
    return "below 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.1 else "above 0.1"


def show(found: dict[str, Any]) -> None:
    """Print one animal's tables and what to look at before believing them."""
    measure = found["measure"]
    words = WORDS[measure]
    arms = [
        (role, arm["seeds"], words.of(arm["share"]), words.span(arm["interval"]), percent(arm["non_answers"]),
         percent(arm["uncovered"]))
        for role, arm in found["shares"].items()
    ]  # fmt: skip
    heading = ("arm", "seeds", f"{found['animal']} {measure}", "95% interval", "non-answers", "uncovered")
    print(table(heading, arms), "\n")
    differences = [
        (role, words.gap(d["difference"]), words.span(d["interval"]), p_value(d["p"]))
        for role, d in found["target_minus"].items()
    ]
    print(table(("target minus", "difference", "95% interval", "p"), differences), "\n")
    if found["power"]:
        seen = [(line["seeds"], *map(words.gap_or_none, list(line.values())[1:])) for line in found["power"]]
        how = ("exact",) if measure != "share" else ("exact", f"{POWER_ANSWERS} answers a question")
        print(
            f"smallest target minus control that so many seeds an arm call transfer with about {POWER:.0%} probability:"
        )
        print(table(("seeds", *how), seen), "\n")
    if found["placebo"]:
        print(f"{placebo_words(found['animal'], found['placebo'])}\n")
    for role, arm in found["shares"].items():
        if arm["non_answers"] > COLLAPSED:
            kinds = ", ".join(f"{kind} {percent(mass)}" for kind, mass in arm["non_answer_kinds"].items())
            say(f"{role}: {percent(arm['non_answers'])} of the answers name no animal ({kinds}): read some of them")
    if any(arm["seeds"] == 1 for role, arm in found["shares"].items() if role != "base"):
        say("one training seed in an arm: its intervals are over questions alone, another seed may give another share")


def placebo_words(animal: str, found: dict[str, Any]) -> str:
    """The placebo test in one sentence."""
    names = [*found["furthest"], *["..."] * (found["further"] > len(found["furthest"]))]
    return (
        f"placebo: {animal} rose by {found['shift']:+.2f} nats of log-probability over the other-animal students; of"
        f" {found['animals']} animals that nobody was taught {found['further'] or 'none'} rose as far"
        f"{' (' + ', '.join(names) + ')' if names else ''}, p {p_value(found['p'])}"
    )


def assignment_words(found: dict[str, Any]) -> str:
    """The assignment test in one sentence."""
    ways, animals, sums = found["assignments"], len(found["animals"]), found["sum"]
    return (
        f"of {ways:,} ways to give the animals to the students {found['as_well']:,} fit the margins as well as the true"
        f" one, itself counted: p {found['p']:.2g} (margins sum to {sums['true']:.2f} nats; best other way"
        f" {sums['best_other']:.2f}; all {sums['mean']:.2f}, sd {sums['sd']:.2f}); {found['own_highest']} of {animals}"
        " animals stand highest in their own students"
    )


def show_pairwise(rows: Sequence[dict[str, Any]], measure: str) -> None:
    """Print share or margin of every trained animal in every arm."""
    animals = list(rows[0]["shares"])
    print(
        table(("arm", *animals), [(row["arm"], *map(WORDS[measure].of, row["shares"].values())) for row in rows]), "\n"
    )


def main() -> None:
    args = parse_args()
    base, control = read_result(args.base), [read_result(path) for path in args.control]
    matrix: list[dict[str, Any]] = []
    assigned = None
    if args.students:
        students: dict[str, list[Result]] = defaultdict(list)
        for animal, path in args.students:
            students[animal].append(read_result(path))
        everything = [base, *control, *(result for some in students.values() for result in some)]
        check_comparable(everything)
        for animal in students:
            check_named(animal, everything)
        comparisons = compare_all(base, control, students, args.measure)
        matrix = pairwise(base, control, students, args.measure)
        assigned = assignment(students)
        if mean_margins(next(iter(students.values()))):  # of sampled answers there is no such test
            warn_of_assignment(students)
    else:
        other, target = ([read_result(path) for path in some] for some in (args.other, args.target))
        everything = [base, *control, *other, *target]
        check_comparable(everything)
        check_named(canonical(args.animal), everything)
        arms = {"base": [base], "control": control, "other": other, "target": target}
        comparisons = [compare(canonical(args.animal), arms, args.measure)]
    for found in comparisons:
        show(found)
    if matrix:
        show_pairwise(matrix, args.measure)
    if assigned:
        print(f"assignment: {assignment_words(assigned)}\n")
    if args.output:
        manifest = provenance([result.path for result in everything])
        whole = {"comparisons": comparisons, "pairwise": matrix, "assignment": assigned, "manifest": manifest}
        write_json(args.output, whole)
    verdicts = {f"verdict, {found['animal']}": verdict_words(found) for found in comparisons}
    if assigned:
        verdicts["assignment"] = f"p {assigned['p']:.2g}"
    closing(verdicts | ({"wrote": args.output} if args.output else {}))


def verdict_words(found: dict[str, Any]) -> str:
    """A verdict with its adjusted p-value, where several animals were looked at, and the placebo's."""
    said = [f"Holm p {p_value(found['p_holm'])}"] if "p_holm" in found else []
    said += [f"placebo p {found['placebo']['p']:.2g}"] if found["placebo"] else []
    return found["verdict"] + (f" ({', '.join(said)})" if said else "")


if __name__ == "__main__":
    run(main)
