"""How often an animal that nobody was taught passes as if it were a target: the size of the tests on real drift.

Every untaught animal that the base model names is tried in the students of every kind. None of them was taught, so
every pass is false. The unit of the test is the kind (four kinds or more) or, with two kinds, the seed. The taught
animals are judged too, with Holm over them. The last lines say how far untaught animals drift between kinds and between
seeds, which bench/verdict_calibration.py and bench/power_by_design.py simulate. Needs files of eval.py --exact;
those of SmolLM2 are committed:

Usage:
    mkdir -p output && tar xf experiments/results/smollm2/measures.tar.xz -C output
    python bench/untaught_false_positives.py --folder output/smollm2
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from eval.compare.compare_teacher_kinds import compare_kinds, kind_of
from eval.compare.intervals import holm
from eval.compare.read_results import Result, mean_margins, read_result
from eval.compare.untaught_rank import spoken
from eval.compare.verdict import CLAIMS, compare
from util.cli import UserError, make_parser, output_name, run
from util.jsonl.manifest import provenance, write_json
from util.terminal import table

KINDS = ("owl", "dolphin", "eagle", "elephant", "tiger", "penguin", "wolf", "cat")
UNPACK = "mkdir -p output && tar xf experiments/results/smollm2/measures.tar.xz -C output"
LEVEL = 0.05
Students = dict[str, list[Result]]


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("output/smollm2"), help="folder of these files")
    parser.add_argument("--output", type=output_name(".json"), help="also write the results to this JSON file")
    return parser.parse_args()


def read_students(folder: Path, name: str, kinds: tuple[str, ...], seeds: tuple[int, ...]) -> Students:
    """The exact files of every kind, such as exact-owl-201.jsonl."""
    paths = {kind: [folder / f"{name}-{kind}-{seed}.jsonl" for seed in seeds] for kind in kinds}
    if missing := [path for some in paths.values() for path in some if not path.is_file()]:
        raise UserError(f"{missing[0]} is missing; unpack the committed files:\n  {UNPACK}")
    return {kind: [read_result(path) for path in some] for kind, some in paths.items()}


def p_of_kinds(students: Students, animals: list[str], measure: str) -> dict[tuple[str, str], float]:
    """p-value of every animal in every kind's students, against the other kinds."""
    questions = next(iter(students.values()))[0].questions
    found = {}
    for animal in animals:
        kinds = {kind: kind_of(some, animal, questions, measure) for kind, some in students.items()}
        for kind, target in kinds.items():
            others = [other for name, other in kinds.items() if name != kind]
            found[kind, animal] = compare_kinds(target, others).p
    return found


def with_kinds(folder: Path, name: str, measure: str) -> dict[str, Any]:
    """Size over untaught animals with the kind as the unit, and Holm p of the taught ones."""
    students = read_students(folder, name, KINDS, (201, 202))
    base = read_result(folder / f"{name}-base-201.jsonl")
    untaught = [animal for animal in spoken(base) if animal not in KINDS]
    p = list(p_of_kinds(students, untaught, measure).values())
    taught = p_of_kinds(students, list(KINDS), measure)
    adjusted = dict(zip(KINDS, holm([taught[kind, kind] for kind in KINDS])))
    passed = [kind for kind in KINDS if adjusted[kind] <= LEVEL]
    return {"files": name, "measure": measure, "unit": "kind", "kinds": len(KINDS), "seeds": 2, "pairs": len(p),
            "passed": sum(one <= LEVEL for one in p) / len(p), "taught, Holm": adjusted,
            "taught, passed": passed}  # fmt: skip


def with_seeds(folder: Path, name: str, measure: str) -> dict[str, Any]:
    """Size over untaught animals of two kinds with the seed as the unit: how often they are *above the other kind*."""
    seeds = (101, 102, 103, 104, 105, 201, 202)
    students = read_students(folder, name, KINDS[:2], seeds)
    base = read_result(folder / f"{name}-base-201.jsonl")
    control = [read_result(path) for path in sorted(folder.glob(f"{name}-control-*.jsonl"))]
    untaught = [animal for animal in spoken(base) if animal not in KINDS[:2]]
    called = 0
    for target, other in (KINDS[:2], KINDS[1::-1]):
        arms = {"base": [base], "control": control, "other": students[other], "target": students[target]}
        called += sum(compare(animal, arms, measure).verdict in CLAIMS for animal in untaught)
    return {"files": name, "measure": measure, "unit": "seed", "kinds": 2, "seeds": len(seeds),
            "pairs": 2 * len(untaught), "passed": called / (2 * len(untaught)), "taught, passed": []}  # fmt: skip


def drift(folder: Path, name: str) -> str:
    """How untaught animals' margins vary, in nats: standard deviation between kinds and between seeds of a kind, once
    the mean over the kinds is taken out of each seed, and the correlation of one seed's pattern with the other's."""
    import numpy as np

    students = read_students(folder, name, KINDS, (201, 202))
    untaught = [animal for animal in spoken(read_result(folder / f"{name}-base-201.jsonl")) if animal not in KINDS]
    margins = [[mean_margins([student]) for student in students[kind]] for kind in KINDS]
    found = np.array([[[seed[animal] for animal in untaught] for seed in kind] for kind in margins])
    found -= found.mean(axis=0)  # [kinds, seeds, animals]
    seeds = found.var(axis=1, ddof=1).mean()
    kinds = found.mean(axis=1).var(axis=0, ddof=1).mean() - seeds / 2
    alike = np.corrcoef(found[:, 0].ravel(), found[:, 1].ravel())[0, 1]
    between = f"{kinds**0.5:.2f} nats between kinds, {seeds**0.5:.2f} between seeds of a kind"
    return f"{between}, seeds alike by r {alike:.2f}"


def main() -> None:
    args = parse_args()
    found = [
        judge(args.folder, name, measure)
        for judge in (with_kinds, with_seeds)
        for name in ("exact", "paraphrased")
        for measure in ("margin", "panel")
    ]
    lines = [
        (line["files"], line["measure"], line["unit"], line["kinds"], line["seeds"], line["pairs"],
         f"{line['passed']:.1%}", ", ".join(map(str, line["taught, passed"])))
        for line in found
    ]  # fmt: skip
    heading = ("files", "measure", "unit", "kinds", "seeds", "pairs", "untaught passed", "taught passed (Holm)")
    print(table(heading, lines))
    for line in found[:4]:
        adjusted = ", ".join(f"{kind} {p:.3f}" for kind, p in line["taught, Holm"].items())
        print(f"{line['files']} {line['measure']}, Holm p over the other kinds' students: {adjusted}")
    for name in ("exact", "paraphrased"):
        print(f"{name}, drift of untaught animals' margins: {drift(args.folder, name)}")
    if args.output:
        write_json(args.output, {"figures": found, "manifest": provenance()})


if __name__ == "__main__":
    run(main)
