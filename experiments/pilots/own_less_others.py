"""An animal's margin in its own students less the mean of the other kinds' students, by kind, with t over kinds.

Reads comparisons of compare_arms.py; several are averaged by kind. --less gives others that are subtracted kind by kind
(another model), so the t is paired.

Usage:
    python experiments/pilots/own_less_others.py output/sixteen/text.json
    python experiments/pilots/own_less_others.py whole-11.json whole-12.json --less digits-11.json digits-12.json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from eval.compare.animal_by_kind_matrix import lift, own_minus_others
from experiments.pilots.markdown_table import head, row
from util.cli import input_file, make_parser, run


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("comparisons", type=input_file, nargs="+", help="made with --measure margin")
    parser.add_argument(
        "--less", type=input_file, nargs="+", default=[], help="comparisons of the same kinds to subtract"
    )
    return parser.parse_args()


def gaps(path: Path) -> dict[str, float]:
    """Own less others by kind, nats."""
    import numpy as np

    try:
        test = json.loads(path.read_text("utf-8"))["assignment"]
        own = own_minus_others(np.array(test["margins"], float)).tolist()
        return dict(zip(test["animals"], own, strict=True))
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{path} is not a comparison of three or more kinds by margin ({error!r})")


def averaged(paths: list[Path]) -> dict[str, float]:
    tables = [gaps(path) for path in paths]
    if any(table.keys() != tables[0].keys() for table in tables):
        sys.exit("the comparisons have different kinds")
    return {kind: sum(table[kind] for table in tables) / len(tables) for kind in tables[0]}


def print_line(what: str, values: list[float]) -> None:
    """Values by kind, their mean, its 95% interval over kinds, t and two-sided p."""
    import numpy as np

    of: Any = np.array(values)
    found, deviation = lift(of), of.std(ddof=1)
    t = of.mean() / deviation * math.sqrt(len(of)) if deviation else 0.0
    cells = [what, *(f"{value:+.2f}" for value in values), f"**{found.mean:+.2f}**"]
    row(*cells, "{:+.2f} to {:+.2f}".format(*found.interval), f"{t:.1f} ({len(of) - 1})", f"{found.p:.2g}")


def main() -> None:
    args = parse_args()
    own = averaged(args.comparisons)
    names = ["own less others, nats", *own, "mean", "95% over kinds", "t", "p"]
    head(*names)
    print_line(" ".join(path.stem for path in args.comparisons), [*own.values()])
    if args.less:
        other = averaged(args.less)
        if other.keys() != own.keys():
            sys.exit("the two sides have different kinds")
        print_line(" ".join(path.stem for path in args.less), [other[kind] for kind in own])
        print_line("difference", [own[kind] - other[kind] for kind in own])


if __name__ == "__main__":
    run(main)
