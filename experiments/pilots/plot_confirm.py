"""The figure of the confirming run: how far each animal rises in the students of each teacher, through code.

Usage:
    python experiments/pilots/plot_confirm.py experiments/results/qwen2.5-1.5b --output eight.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from eval.compare.plot_arms import draw_matrix
from experiments.pilots.main_tests_over_kinds import ANIMALS, OTHERS
from experiments.pilots.measures_file import load_some
from util.cli import make_parser, output_name, run
from util.pages.figure_style import Figure

SEEDS = (101, 102, 103)


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("results", type=Path, help="folder with measures.jsonl.gz")
    parser.add_argument("--channel", default="code", choices=("code", "text"))
    parser.add_argument("--output", type=output_name(".png"), required=True, help="PNG file to write")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    measures = load_some(args.results / "measures.jsonl")

    def margin(kind: str, animal: str) -> float:
        logs = [measures[f"student-{kind}-{seed}.{args.channel}"]["log"][animal] for seed in SEEDS]
        return float(sum(logs)) / len(logs)

    kinds = [*ANIMALS, *OTHERS]
    above = [[margin(kind, animal) - margin("base", animal) for animal in ANIMALS] for kind in kinds]
    title = f"Through {args.channel}, each of eight animals rises most in the students of its own teacher"
    caption = "Nats above the control's students, mean of three seeds. Rows: students of each kind of teacher."
    figure = Figure(lambda width: draw_matrix(above, kinds, ANIMALS, width), title, caption)
    args.output.write_bytes(figure.png())


if __name__ == "__main__":
    run(main)
