"""Draws the figure of experiments again, from the tables in their results folders.

Usage:
    python experiments/draw_figures.py experiments/results/*/pocket
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from experiments.experiment_figure import figure_from
from util.cli import make_parser, run
from util.jsonl.manifest import write_atomically
from util.terminal import closing


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER",
                        help="folder written by experiments/summarize.py: .../EXPERIMENT/MODEL")  # fmt: skip
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    for folder in args.folders:
        write_atomically(folder / "figure.png", figure_from(folder.resolve()).png())
    closing({"wrote": f"figure.png in {', '.join(map(str, args.folders))}", "figures": len(args.folders)})


if __name__ == "__main__":
    run(main)
