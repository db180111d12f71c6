"""Puts the figures of several training runs into one JSON file and one table, and draws how speed grows.

It reads what bench/training_speed.py wrote, manifests of trainings, and its own output, so that new runs can be added
to it. A file is named after its host and what ran there, such as e-plan-7b.json; the figure names hosts by what is
before the first dash.

Usage:
    python bench/training_table.py docs/training-speed.json output/bench-train/*.json \\
        --output docs/training-speed.json --figure docs/training-speed.png
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from util.cli import UserError, first_line, make_parser, output_name, run
from util.jsonl.manifest import write_atomically, write_json
from util.pages.figure_style import SERIES, Figure, Look, key_above, new_panels
from util.terminal import say, table

COLUMNS = ("run", "model", "rows_an_update", "way", "students", "gpu_memory_gib", "student_updates_per_second",
           "tokens_per_second", "useful_tflops", "peak_gib")  # fmt: skip
FACTS = ("device", "torch", "gpu_memory_gib", "rows_an_update", "tokens_a_row")
MODELS = {"smollm2": ("135M", 0.135), "qwen1.5b": ("1.5B", 1.54), "qwen7b": ("7B", 7.62)}
"""name in a file -> its name in the figure, and its parameters in billions (model cards on the Hub)"""
TITLE = "Training speed by rows, students and size of the model"
Line = dict[str, Any]


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="JSON", help="files of runs, or of this script")
    parser.add_argument("--output", type=output_name(".json"), required=True, help="one JSON file for all figures")
    parser.add_argument("--figure", type=output_name(".png"), help="picture: speed over rows, students and model")
    return parser.parse_args()


# --- figures of runs ---------------------------------------------------------------------------------


def lines_of(path: Path) -> list[Line]:
    """The figures of one file, each with what the run says of itself. UserError for a file of something else."""
    try:
        return lines_of_run(path, json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} has no figures of a training ({type(error).__name__}: {first_line(error)}); pass what"
            " bench/training_speed.py or this script wrote, or the manifest of a training"
        ) from None


def lines_of_run(path: Path, found: dict[str, Any]) -> list[Line]:
    """The lines of a table of this script, of a training's manifest, or of a file of bench/training_speed.py."""
    if "command" not in found:
        return list(found["results"])
    run_name = {"run": path.name.removesuffix(".json").removesuffix(".manifest"), "commit": found["git"]["commit"]}
    if "settings" in found:
        return [run_name | line_of_training(found)]
    words = shlex.split(found["command"])
    facts = {"model": Path(words[words.index("--model") + 1]).name} | {name: found[name] for name in FACTS}
    return [facts | run_name | result for result in found["results"]]


def line_of_training(manifest: dict[str, Any]) -> Line:
    """The speed in the manifest of a student that was trained alone, by the names of bench/training_speed.py."""
    counts, speed, arguments = manifest["counts"], manifest["speed"], manifest["arguments"]
    rows, rate = arguments["effective_batch_size"], 1 / speed["seconds_an_update"]
    tokens = counts["tokens"] / counts["updates"]
    return {
        "model": Path(arguments["base_model"]).name, "device": counts["device"],
        "torch": manifest["packages"]["torch"], "gpu_memory_gib": arguments["gpu_memory_gib"], "rows_an_update": rows,
        "tokens_a_row": tokens / rows, "seconds": speed["seconds_an_update"], "peak_gib": counts["peak_memory_gib"],
        "train_loss": counts["train_loss"], "rows_at_once": speed["rows_at_once"], "way": "train_student_sft.py",
        "students": 1, "student_updates_per_second": round(rate, 3), "tokens_per_second": round(rate * tokens),
        "updates": counts["updates"], "whole_seconds": counts["seconds"],
    }  # fmt: skip


# --- the figure --------------------------------------------------------------------------------------


def draw_curve(panel: Any, points: Sequence[tuple[float, Line]], look: Look, title: str, with_hosts: bool) -> None:
    """Thousands of tokens a second over what varies; the curve goes through the newest host of each place.

    points: (what varies, line). with_hosts: name the hosts above each place, from the fastest to the slowest.
    """
    places = {place: [line for at, line in points if at == place] for place in sorted({at for at, _ in points})}
    panel.plot(list(places), [speed(max(lines, key=host)) for lines in places.values()], color=look.color, label=title)
    for place, lines in places.items():
        lines = sorted(lines, key=speed, reverse=True)
        panel.plot([place] * len(lines), [speed(line) for line in lines], look.mark, color=look.color)
        if with_hosts:
            panel.annotate(" ".join(host(line).upper() for line in lines), (place, speed(lines[0])), (0, 5),
                           textcoords="offset points", ha="center", color=look.color)  # fmt: skip


def host(line: Line) -> str:
    return str(line["run"]).partition("-")[0]


def speed(line: Line) -> float:
    return float(line["tokens_per_second"]) / 1000


def draw(lines: Sequence[Line], width: float) -> Any:
    """Tokens a second over the rows of a pass, over the students that train together, and over the model's size."""
    figure, panels = new_panels(width, [2.5, 2.3, 2.5])
    alone = [line for line in lines if line["way"] == "loop"]
    together = [line for line in lines if line["way"] == "students"]
    few_rows = {(line["model"], line["rows_an_update"]) for line in together}
    few = [line for line in alone if (line["model"], line["rows_an_update"]) in few_rows]
    for look, model in zip(SERIES, MODELS):
        rows = [(line["rows_at_once"], line) for line in alone if line["model"] == model]
        students = [(line["students"], line) for line in [*few, *together] if line["model"] == model]
        for panel, points in zip(panels, (rows, students)):
            if points:
                draw_curve(panel, points, look, MODELS[model][0], with_hosts=True)
    for look, some, title in zip(SERIES[3:], (few, together), ("one student", "several together")):
        sizes = [(MODELS[line["model"]][1], line) for line in some if line["model"] in MODELS]
        if sizes:
            draw_curve(panels[2], sizes, look, title, with_hosts=False)
    for panel, text in zip(panels, ("rows at once, one student", "students together", "billions of parameters")):
        finish(panel, text)
    return figure


def finish(panel: Any, text: str) -> None:
    """Scales, labels and key of a panel. text: what varies."""
    panel.set_xscale("log", base=2)
    panel.set_xticks(sorted({place for curve in panel.lines for place in curve.get_xdata()}))
    panel.set_yscale("log")
    panel.set_yticks([10, 20, 50, 100, 200])
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.minorticks_off()
    panel.margins(0.12, 0.18)
    panel.grid(axis="y")
    panel.set_xlabel(text)
    panel.set_ylabel("thousand tokens/s")
    titled = [(curve, curve.get_label()) for curve in panel.lines if not curve.get_label().startswith("_")]
    if titled:
        key_above(panel, titled, len(titled))


def main() -> None:
    args = parse_args()
    found = [line for path in args.files for line in lines_of(path)]
    lines = list({(line["run"], line["way"], line["students"]): line for line in found}.values())  # newest of each
    write_json(args.output, {"results": lines})
    print(table(COLUMNS, [["" if (value := line.get(name)) is None else value for name in COLUMNS] for line in lines]))
    if args.figure:
        write_atomically(args.figure, Figure(lambda width: draw(lines, width), TITLE, "").png())
    say(f"{len(lines)} figures are in {args.output}")


if __name__ == "__main__":
    run(main)
