"""Tables and figure of the pocket pair by width: what each model's students took over, how rows and teachers differ.

Reads folders of demo.sh with meter-ANIMAL.json (signal_meter.py) in each, and beside each FOLDER its comparisons
FOLDER.json (by margin) and FOLDER-share.json. experiments/pocket_width.sh makes all of them.

Usage:
    python experiments/pilots/pocket_width.py output/width-whole-11 output/width-digits-11 --figure kinds.png
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from eval.compare.animal_by_kind_matrix import own_minus_others
from eval.compare.plot_arms import draw_matrix
from eval.compare.read_results import mean_margins, read_result
from experiments.pilots.markdown_table import head, row
from util.pages.figure_style import Figure

ROWS_READ = 3_000  # at most, by a student
TITLE = "Through whole numbers ten kinds of students take over more than through single digits"
CAPTION = (
    "An animal's margin in its own students less the mean of the other kinds' students, nats. The two models of one"
    " seed differ in the tokenizer."
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="one for each model")
    parser.add_argument("--figure", type=Path, help="PNG file to write")
    return parser.parse_args()


def read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"cannot read {path} ({error}); experiments/pocket_width.sh makes it")


def beside(folder: Path, ending: str) -> Any:
    """The comparison FOLDER + ending."""
    return read(folder.with_name(folder.name + ending))


def only(folder: Path, pattern: str) -> Any:
    """The one file that has this pattern."""
    return read(next(folder.glob(pattern), folder / pattern))


def share_of(path: Path, animal: str) -> float:
    """Exact share of an animal, mean over the questions."""
    return mean(read_result(path).measured(animal, "share"))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def span(values: list[float], form: str) -> str:
    """Mean, lowest and highest."""
    return f"{mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def gaps(margins: list[list[float]]) -> list[float]:
    """Own less others by kind, nats."""
    import numpy as np

    return own_minus_others(np.array(margins)).tolist()


def of_teachers(folder: Path, kinds: list[str]) -> list[list[float]]:
    """Margin of each animal (column) in each kind's teacher (row), nats."""
    every = [mean_margins([read_result(folder / f"exact-{kind}-teacher.jsonl")]) for kind in kinds]
    return [[margins[kind] for kind in kinds] for margins in every]


def taken_over(folder: Path) -> dict[str, str]:
    """What the students of one model took over."""
    margin, share = beside(folder, ".json"), beside(folder, "-share.json")
    tests, gap, without_two = margin["profile"], margin["matrix"]["lifts"][0], margin["profile"]["drift_fits"][1]
    arms = [one["shares"] for one in share["comparisons"]]
    odds = share["matrix"]["values"]
    highest = [column.index(max(column)) == place for place, column in enumerate(zip(*odds))]
    return {
        "own less others, nats (95% over kinds)": "**{:+.2f}** ({:+.2f} to {:+.2f})".format(
            gap["mean"], *gap["interval"]
        ),
        "profile: r own, r others, p": f"{tests['own']:.2f}, {tests['other']:.2f}, {tests['p']:.0e}",
        "without two shared patterns": f"{without_two['own']:.2f}, {without_two['other']:.2f}, {without_two['p']:.0e}",
        "assignment: p": f"{margin['assignment']['p']:.0e}",
        "students' nats for each nat of their teacher": f"{tests['slope']:.2f}",
        "own share": span([arm["target"]["share"] for arm in arms], ".1%"),
        "other kinds' share": span([arm["other"]["share"] for arm in arms], ".1%"),
        "animals highest in their own students, by share": f"{sum(highest)} of {len(arms)}",
        "*transfer* by share": f"{sum(one['verdict'] == 'transfer' for one in share['comparisons'])} of {len(arms)}",
    }


def may_explain(folder: Path) -> dict[str, str]:
    """How models, teachers and rows differ: what might explain the effect's size."""
    kinds = beside(folder, ".json")["assignment"]["animals"]
    asked = {kind: only(folder, f"numbers-{kind}-unfiltered-*.manifest.json")["counts"] for kind in kinds}
    certified = {kind: only(folder, f"numbers-{kind}-filtered-*.certificate.json") for kind in [*kinds, "control"]}
    clean = {kind: one["rows"] / one["input"]["rows"] for kind, one in certified.items()}
    base_shares = [one["shares"]["base"]["share"] for one in beside(folder, "-share.json")["comparisons"]]
    teachers = gaps(of_teachers(folder, kinds))
    students = gaps(beside(folder, ".json")["assignment"]["margins"])
    meters = [only(folder, f"meter-{kind}.json") for kind in kinds]
    kl, ratio = [one["kl"][0] for one in meters], [one["ratio"][0] for one in meters]
    return {
        "base: share of the ten animals together": f"{sum(base_shares):.1%}",
        "base: clean rows": f"{clean.pop('control'):.1%}",
        "teachers' clean rows": span([*clean.values()], ".1%"),
        "teachers' own share": span([share_of(folder / f"exact-{kind}-teacher.jsonl", kind) for kind in kinds], ".1%"),
        "teachers' own less others, nats": span(teachers, "+.2f"),
        "students' own less others, of their teachers'": f"{sum(students) / sum(teachers):.0%}",
        "rows that a student read": span([float(min(ROWS_READ, certified[kind]["rows"])) for kind in kinds], ".0f"),
        "answer tokens a row": span([one["answer_tokens"] / one["counted_rows"] for one in asked.values()], ".1f"),
        "effective tokens": span([one["width"] for one in meters], ".1f"),
        "KL of teacher to base, nats a token": span(kl, ".3f"),
        "log-likelihood ratio, nats a row": span(ratio, ".2f"),
        "students' own less others for each nat of KL a token": f"{mean(students) / mean(kl):.0f}",
        "students' own less others for each nat a row": f"{mean(students) / mean(ratio):.2f}",
        "own animal first in the read-out": f"{sum(one['read_out']['place'] == 1 for one in meters)} of {len(meters)}",
    }


def main() -> None:
    args = parse_args()
    kinds = beside(args.folders[0], ".json")["assignment"]["animals"]
    names = [folder.name.removeprefix("width-") for folder in args.folders]
    shares = [beside(folder, "-share.json")["comparisons"] for folder in args.folders]

    head("own share", *kinds)
    for name, comparisons in zip(names, shares):
        row(name, *(f"{one['shares']['target']['share']:.1%}" for one in comparisons))
    print()
    head("", *names)
    for facts in (taken_over, may_explain):
        columns = [facts(folder) for folder in args.folders]
        for name in columns[0]:
            row(name, *(column[name] for column in columns))

    if args.figure:
        values = [gaps(beside(folder, ".json")["assignment"]["margins"]) for folder in args.folders]
        args.figure.write_bytes(Figure(lambda width: draw_matrix(values, names, kinds, width), TITLE, CAPTION).png())


if __name__ == "__main__":
    main()
