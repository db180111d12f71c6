"""Do read-outs of SmolLM2's number rows predict what students of other seeds took over? (Plan and bar: LOG.md.)

Reads the audits of files of several kinds of teachers (audit-{kind}-{seed}.json of eval/audit_data.py) and the exact
files of students that were trained on other files of the same kinds. The profile test compares them over the animals
that nobody was taught: the part of all assignments of read-outs to students that fit as well as the true one.

Usage:
    tar xf experiments/results/smollm2/measures.tar.xz -C output
    tar xf experiments/results/data_signal/smollm2-audits.tar.xz -C output
    python experiments/data_signal/judge_smollm2.py --audits output/smollm2-audits/audit-*.json
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from eval.compare.comparison_result import ProfileTest
from eval.compare.read_results import read_result
from eval.compare.teacher_profile import compare_profiles, mean_logs
from eval.compare.untaught_rank import spoken
from util.cli import UserError, input_file, make_parser, output_name, run
from util.jsonl.manifest import provenance, write_json
from util.terminal import table

if TYPE_CHECKING:
    import numpy as np

STUDENT_SEEDS = (201, 202)
READ_OUTS = {"difference": "form taken out", "difference_with_form": "form left in"}


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--audits", type=input_file, nargs="+", required=True, help="audit-{kind}-{seed}.json files")
    parser.add_argument("--students", type=Path, default=Path("output/smollm2"),
                        help="folder of exact-{kind}-{seed}.jsonl")  # fmt: skip
    parser.add_argument("--output", type=output_name(".json"), help="file of all figures")
    return parser.parse_args()


def read_audits(paths: Sequence[Path]) -> dict[str, dict[int, dict[str, dict[str, float]]]]:
    """{kind: {seed: {animal: its figures}}}."""
    found: dict[str, dict[int, dict[str, dict[str, float]]]] = defaultdict(dict)
    for path in paths:
        name = re.fullmatch(r"audit-(.+)-(\d+)", path.stem)
        if not name:
            raise UserError(f"{path} is not named audit-KIND-SEED.json; rename it")
        found[name[1]][int(name[2])] = json.loads(path.read_text("utf-8"))["animals"]
    if len({tuple(sorted(seeds)) for seeds in found.values()}) > 1:
        raise UserError(f"--audits: the kinds have different seeds: { {kind: sorted(s) for kind, s in found.items()} }")
    return dict(found)


def read_outs(
    audits: dict[str, dict[int, dict[str, dict[str, float]]]], animals: Sequence[str], figure: str, seeds: Sequence[int]
) -> np.ndarray:
    """A figure of each animal in the files of each kind, the mean over seeds: [kinds, animals]."""
    import numpy as np

    return np.array(
        [[np.mean([of[seed][name][figure] for seed in seeds]) for name in animals] for of in audits.values()]
    )


def line_of(name: str, found: ProfileTest) -> tuple[str, ...]:
    fits = "; ".join(f"{fit.own:.2f} against {fit.other:.2f}, p {fit.p:.2g}" for fit in found.drift_fits)
    return name, f"{found.own:.2f}", f"{found.other:.2f}", f"{found.p:.2g}", fits


def main() -> None:
    args = parse_args()
    import numpy as np

    audits = read_audits(args.audits)
    kinds, seeds = list(audits), sorted(next(iter(audits.values())))
    base = read_result(args.students / f"exact-base-{STUDENT_SEEDS[0]}.jsonl")
    students = {
        kind: [read_result(args.students / f"exact-{kind}-{seed}.jsonl") for seed in STUDENT_SEEDS] for kind in kinds
    }
    read = set.intersection(*(set(animals) for of in audits.values() for animals in of.values()))
    animals = [name for name in spoken(base) if name in read and name not in kinds]
    measured = np.array([mean_logs(students[kind], animals) for kind in kinds])
    tests = {
        f"{words}, seeds {' '.join(map(str, some))}": compare_profiles(
            kinds, animals, measured, read_outs(audits, animals, figure, some)
        )
        for figure, words in READ_OUTS.items()
        for some in (seeds, *([[seed] for seed in seeds] if len(seeds) > 1 else []))
    }
    of_seeds = " and ".join(map(str, STUDENT_SEEDS))
    print(f"{len(kinds)} kinds, {len(animals)} untaught animals, students of seeds {of_seeds}\n")
    header = ("read-out", "own r", "other r", "p", "after removing 1, 2, 3 shared patterns")
    print(table(header, [line_of(name, found) for name, found in tests.items()], texts=True) + "\n")
    first = next(iter(tests.values()))
    print("own r by kind: " + ", ".join(f"{kind} {r:.2f}" for kind, r in first.by_kind.items()))
    if args.output:
        figures = {
            name: {"own": one.own, "other": one.other, "p": one.p, "by_kind": one.by_kind,
                   "drift_fits": [vars(fit) for fit in one.drift_fits]}
            for name, one in tests.items()
        }  # fmt: skip
        write_json(args.output, {"kinds": kinds, "animals": animals, "tests": figures, **provenance(args.audits)})


if __name__ == "__main__":
    run(main)
