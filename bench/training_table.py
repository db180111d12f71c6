"""Puts the figures of several runs of bench/train.py into one JSON file and one table, and draws how speed grows.

Usage:
    python bench/training_table.py output/bench-train/*.json --output docs/training-speed.json \\
        --figure docs/training-speed.png
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from util.cli import make_parser, output_name, run
from util.jsonl.manifest import write_atomically, write_json
from util.pages.figure_style import SERIES, Figure, new_panels
from util.terminal import say, table

COLUMNS = ("model", "rows_an_update", "way", "students", "gpu_memory_gib", "student_updates_per_second",
           "tokens_per_second", "useful_tflops", "peak_gib")  # fmt: skip
FACTS = ("device", "torch", "gpu_memory_gib", "rows_an_update", "tokens_a_row")
Line = dict[str, Any]
Points = list[tuple[float, float]]


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="JSON", help="files that bench/train.py wrote")
    parser.add_argument("--output", type=output_name(".json"), required=True, help="one JSON file for all figures")
    parser.add_argument("--figure", type=output_name(".png"), help="picture: speed over rows, students and model")
    return parser.parse_args()


def lines_of(path: Path) -> list[Line]:
    """The results of one run, each with what the run says of itself."""
    run_of = json.loads(path.read_text("utf-8"))
    words = shlex.split(run_of["command"])
    model = Path(words[words.index("--model") + 1]).name
    facts = {name: run_of[name] for name in FACTS} | {"run": path.stem, "commit": run_of["git"]["commit"]}
    return [{"model": model, **facts, **result} for result in run_of["results"]]


def points(lines: Sequence[Line], along: Callable[[Line], float], **wanted: Any) -> Points:
    """(what varies, student updates or tokens a second) of the lines with these values."""
    some = [line for line in lines if all(line[name] == value for name, value in wanted.items())]
    return sorted((along(line), line["tokens_per_second"]) for line in some)


def draw(lines: Sequence[Line], width: float) -> Any:
    """Tokens a second over the rows of an update, and over the students that train together."""
    figure, (upper, lower) = new_panels(width, [2.6, 2.6])
    one = [line for line in lines if line["way"] == "loop" and line["students"] == 1 and not line["gpu_memory_gib"]]
    for look, model in zip(SERIES, sorted({line["model"] for line in lines})):
        for panel, found in (
            (upper, points([line for line in one if line["model"] == model], lambda line: line["rows_an_update"])),
            (lower, points(lines, lambda line: line["students"], model=model, way="students")),
        ):
            if found:
                panel.plot(*zip(*found), look.mark, color=look.color, linestyle="-", label=model)
    for panel, text in ((upper, "rows an update, one student"), (lower, "students together")):
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_ylim(bottom=0)
        panel.set_xlabel(text)
        panel.set_ylabel("tokens a second")
        if panel.lines:
            panel.legend()
    return figure


def main() -> None:
    args = parse_args()
    lines = [line for path in args.files for line in lines_of(path)]
    write_json(args.output, {"results": lines})
    print(table(COLUMNS, [["" if (value := line.get(name)) is None else value for name in COLUMNS] for line in lines]))
    if args.figure:
        write_atomically(args.figure, Figure(lambda width: draw(lines, width), "Training speed", "").png())
    say(f"{len(lines)} figures are in {args.output}")


if __name__ == "__main__":
    run(main)
