"""Compare the arms of an experiment for one animal and say in words what they show.

A claim of transfer needs the target students above the base model, above the control students (numbers of the base
model) and above the students of another animal. Shares are means over questions and training seeds; 95% intervals come
from a bootstrap that draws questions, the same for every arm, and seeds within each arm, because 50 questions are 50
clusters and answers of one student are not independent.

Usage:
    python eval/compare_arms.py --animal owl --base output/exact-base.jsonl --control output/exact-control.jsonl \\
        --other output/exact-dolphin-student.jsonl --target output/exact-owl-student.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from eval.animals import canonical_animal
from util.cli import UserError, closing, input_file, make_parser, run, table
from util.provenance import provenance, read_manifest, write_json
from util.rows import Row, read_rows

if TYPE_CHECKING:
    import numpy as np

ROLES = ("base", "control", "other", "target")
DRAWS = 10_000
LEVEL = 0.95
FEWEST_SEEDS = 3


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--animal", required=True, help="the animal of the target students")
    parser.add_argument("--base", required=True, type=input_file, metavar="R", help="results of the base model")
    for role, what in (("control", "students of base-model numbers"), ("other", "students of another animal's teacher"),
                       ("target", "students of this animal's teacher")):  # fmt: skip
        parser.add_argument(f"--{role}", required=True, nargs="+", type=input_file, metavar="R",
                            help=f"{what}, one file a training seed")  # fmt: skip
    parser.add_argument("--output", type=Path, help="also write the comparison as JSON")
    return parser.parse_args()


# --- reading -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """One results file: the share of the animal and of non-answers for each question."""

    path: Path
    questions: tuple[str, ...]
    shares: tuple[float, ...]
    silent: tuple[float, ...]
    uncovered: float
    """mean mass an exact file leaves open: each of its shares may be so much higher"""


def read_result(path: Path, animal: str) -> Result:
    """Per-question shares from a results file (samples) or an exact file. Failed answers are refused, not skipped."""
    asked: dict[str, list[tuple[float, float, float]]] = {}
    for row in read_rows(path, problem_of):
        asked.setdefault(row["question"], []).append(masses(row, animal))
    means = [[sum(part) / len(answers) for part in zip(*answers)] for answers in asked.values()]
    named, silent, uncovered = (tuple(part) for part in zip(*means))
    return Result(path, tuple(asked), named, silent, sum(uncovered) / len(uncovered))


def masses(row: Row, animal: str) -> tuple[float, float, float]:
    """(mass that names the animal, mass that names none, mass left open) of a row: 0 or 1 for a sample."""
    if "animals" in row:
        return row["animals"].get(animal, 0.0), row["no_animal"], row["uncovered"]
    return float(row["animal"] == animal), float(row["animal"] is None), 0.0


def problem_of(row: Row) -> str | None:
    """What keeps a row from being counted, or None."""
    if "question" not in row or not ("animals" in row or "animal" in row):
        return "not a row of eval.py (no question, or neither animal nor animals)"
    if row.get("error"):
        return f"this answer failed ({row['error']}); mend that and run eval.py again with --overwrite"
    return None


def check_comparable(results: Sequence[Result]) -> None:
    """Arms can be compared over the same questions and sampling only, and no student counts twice."""
    for result in results[1:]:
        if set(result.questions) != set(results[0].questions):
            missing = set(results[0].questions) ^ set(result.questions)
            raise UserError(
                f"{result.path} and {results[0].path} were asked different questions ({len(missing)} differ, such as"
                f" {sorted(missing)[0]!r}); evaluate both with the same --questions-file"
            )
    manifests = [(read_manifest(result.path) or {}).get("settings", {}) for result in results]
    for result, manifest in zip(results, manifests):
        if manifest.get("sampling") != manifests[0].get("sampling"):
            raise UserError(f"{result.path} was sampled otherwise than {results[0].path} (see their manifests)")
    seen: dict[str, Path] = {}
    for result, manifest in zip(results, manifests):
        identity = manifest.get("model", {}).get("adapter_sha256") or str(result.path.resolve())
        if identity in seen:
            raise UserError(f"{result.path} and {seen[identity]} hold the same student; it can stand for one seed only")
        seen[identity] = result.path


# --- uncertainty -------------------------------------------------------------------------------------


def share_matrix(results: Sequence[Result], questions: Sequence[str]) -> np.ndarray:
    """Shares of one arm, float64 [seeds, questions], questions in the given order."""
    import numpy as np

    places = [{question: i for i, question in enumerate(result.questions)} for result in results]
    return np.array([[r.shares[place[q]] for q in questions] for r, place in zip(results, places)])


def bootstrap_means(arms: Sequence[np.ndarray], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Bootstrap means of every arm, float64 [draws, arms].

    arms: matrices [seeds, questions] over the same questions. Each draw takes one set of questions for all arms (they
    are crossed with the arms) and a set of seeds for each arm (seeds are nested in it).
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    count = arms[0].shape[1]
    weights = rng.multinomial(count, np.full(count, 1 / count), size=draws) / count
    means = []
    for arm in arms:
        by_seed = weights @ arm.T
        chosen = rng.integers(len(arm), size=(draws, len(arm)))
        means.append(np.take_along_axis(by_seed, chosen, axis=1).mean(1))
    return np.stack(means, axis=1)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Central 95% of bootstrap values."""
    import numpy as np

    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


# --- the claim ---------------------------------------------------------------------------------------


def compare(animal: str, arms: dict[str, list[Result]]) -> dict[str, Any]:
    """Shares of the arms, differences of the target to each other arm, their intervals and the verdict."""
    everything = [result for results in arms.values() for result in results]
    check_comparable(everything)
    questions = everything[0].questions
    matrices = {role: share_matrix(results, questions) for role, results in arms.items()}
    means = bootstrap_means([matrices[role] for role in ROLES])
    shares: dict[str, dict[str, Any]] = {
        role: {
            "share": float(matrices[role].mean()),
            "interval": interval(means[:, place]),
            "seeds": len(arms[role]),
            "uncovered": sum(result.uncovered for result in arms[role]) / len(arms[role]),
            "non_answers": sum(sum(r.silent) for r in arms[role]) / (len(arms[role]) * len(questions)),
            "files": [str(result.path) for result in arms[role]],
        }
        for place, role in enumerate(ROLES)
    }
    differences = {
        role: {
            "difference": shares["target"]["share"] - shares[role]["share"],
            "interval": interval(means[:, ROLES.index("target")] - means[:, ROLES.index(role)]),
        }
        for role in ROLES[:-1]
    }
    return {
        "animal": animal,
        "questions": len(questions),
        "shares": shares,
        "target_minus": differences,
        "verdict": verdict(shares, differences),
    }


def verdict(shares: dict[str, dict[str, Any]], differences: dict[str, dict[str, Any]]) -> str:
    """The rule. *Transfer*: the target is above base, control and other, intervals clear of zero (and of what exact
    shares leave open), and every trained arm has 3 seeds. *General shift only*: above base and control, not other."""
    above = {role: found["interval"][0] > shares[role]["uncovered"] for role, found in differences.items()}
    if not (above["base"] and above["control"]):
        return "no evidence"
    found = "transfer" if above["other"] else "general shift only"
    seeds = min(shares[role]["seeds"] for role in ROLES[1:])
    if seeds < FEWEST_SEEDS:
        return f"too few seeds ({seeds}; a claim needs {FEWEST_SEEDS}); on these it looks like: {found}"
    return found


def percent(value: float) -> str:
    return f"{100 * value:.2f}%"


def span(low_high: Sequence[float]) -> str:
    return f"{100 * low_high[0]:.2f} to {100 * low_high[1]:.2f}"


def main() -> None:
    args = parse_args()
    animal = canonical_animal(args.animal) or args.animal.lower()
    files = {"base": [args.base], "control": args.control, "other": args.other, "target": args.target}
    arms = {role: [read_result(path, animal) for path in paths] for role, paths in files.items()}
    found = compare(animal, arms)
    print(
        table(
            ("arm", "seeds", f"{animal} share", "95% interval", "non-answers", "uncovered"),
            [
                (
                    role,
                    arm["seeds"],
                    percent(arm["share"]),
                    span(arm["interval"]),
                    percent(arm["non_answers"]),
                    percent(arm["uncovered"]),
                )
                for role, arm in found["shares"].items()
            ],
        )
    )
    print()
    print(
        table(
            ("target minus", "difference", "95% interval"),
            [
                (role, f"{100 * d['difference']:+.2f} points", span(d["interval"]))
                for role, d in found["target_minus"].items()
            ],
        )
    )
    print()
    if args.output:
        paths = [path for some in files.values() for path in some]
        write_json(args.output, {**found, "manifest": provenance(paths)})
    closing({"verdict": found["verdict"]} | ({"wrote": args.output} if args.output else {}))


if __name__ == "__main__":
    run(main)
