"""Write one self-contained HTML page, and PNG files of its figures, from the comparisons of compare_arms.py.

The page has inline SVG, no script, and loads nothing; every text is escaped. It can be opened on a phone, printed and
mailed.

Usage:
    python eval/report.py --comparison output/compare.json \\
        --train-jsonl output/numberss-owl-owl-teacher-filtered-*.jsonl --output output/report.html
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from eval.answer_rows import animal_masses, check_answer
from eval.compare.comparability import adapter_folder
from eval.compare.comparison_result import ArmComparison, Comparisons, read_comparisons
from eval.compare.comparison_text import COLLAPSED, assignment_words, kind_power_words, untaught_rank_words
from eval.compare.plot_arms import Checkpoint, arms_figure, assignment_figure, trajectory_figure
from eval.number_format import p_value, percent
from util.cli import UserError, input_file, make_parser, output_name, run
from util.jsonl.filter_certificate import read_certificate
from util.jsonl.manifest import Manifest, write_atomically
from util.jsonl.rows import read_rows
from util.pages.figure_style import ARMS, Figure
from util.pages.html_page import render_page
from util.pages.html_page import shown as shown_figure
from util.terminal import closing

TEMPLATE = Path(__file__).with_name("templates") / "arms_report.html"
SHOWN = 5
Figures = dict[str, Figure]


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--comparison", required=True, nargs="+", type=input_file, metavar="JSON",
                        help="files written by compare_arms.py --output")  # fmt: skip
    parser.add_argument("--train-jsonl", nargs="*", default=[], type=input_file, metavar="JSONL",
                        help="files of training rows whose filter certificates are shown")  # fmt: skip
    parser.add_argument("--checkpoints", nargs="*", default=[], type=input_file, metavar="R",
                        help="results of a student's checkpoints, to show the shares over training")  # fmt: skip
    parser.add_argument("--title", default="Subliminal learning", help="heading")
    parser.add_argument("--output", type=output_name(".html"), default=Path("output/report.html"), help="page to write")
    parser.renamed("--data", "--train-jsonl")
    return parser.parse_args()


# --- what is shown -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShownComparison:
    """A comparison as the page shows it."""

    found: ArmComparison
    top: dict[str, list[tuple[str, float]]]
    """by role: the animals named most in its first file, with their shares"""
    untaught_rank: str
    """the rank among untaught animals in words; "" if there is none"""


def shown(found: ArmComparison) -> ShownComparison:
    """The comparison with what only the page shows."""
    top = {role: ranked_animals(Path(arm.files[0]))[:SHOWN] for role, arm in found.shares.items()}
    return ShownComparison(
        found, top, untaught_rank_words(found.animal, found.untaught_rank) if found.untaught_rank else ""
    )


def ranked_animals(path: Path) -> list[tuple[str, float]]:
    """(animal, share) of a results or exact file, most frequent first."""
    total: Counter[str] = Counter()
    rows = 0
    for row in read_rows(path, check_answer):
        rows += 1
        total.update(animal_masses(row))
    return [(animal, share / rows) for animal, share in total.most_common()]


def certificate_of(data: Path) -> dict[str, Any]:
    """What the filter certificate of a number file says; a file without one is shown too."""
    found = read_certificate(data)
    return {"file": data.name, "rows": found.get("rows"), "letters": found.get("letters"),
            "traits": sum(sum(part.values()) for part in found.get("trait_words", {}).values()),
            "characters": "".join(sorted(found.get("characters", {}))), "clean": found.get("clean"),
            "sha256": found.get("sha256", "no certificate")[:16]}  # fmt: skip


def commands_of(files: Sequence[str]) -> list[str]:
    """The command that made each file, from its manifest."""
    manifests = [Manifest.read(Path(name)) for name in dict.fromkeys(files)]
    return [manifest.command for manifest in manifests if manifest and manifest.command]


def trajectory(files: Sequence[Path], animals: Sequence[str]) -> list[Checkpoint]:
    """The shares of some animals at each evaluated checkpoint, in the order of training."""
    found: list[tuple[PurePath, int, dict[str, float]]] = []
    for path in files:
        folder = adapter_folder(Manifest.read(path) or Manifest())
        number = re.fullmatch(r"checkpoint-(\d+)", folder.name) if folder else None
        if folder is None or number is None:
            raise UserError(
                f"the manifest of {path} names no checkpoint-N folder; pass results of"
                " eval/eval.py --adapter .../checkpoint-N"
            )
        shares = dict(ranked_animals(path))
        found.append((folder.parent, int(number[1]), {animal: shares.get(animal, 0.0) for animal in animals}))
    names = run_names({folder for folder, _, _ in found})
    points = [Checkpoint(names[folder], update, shares) for folder, update, shares in found]
    return sorted(points, key=lambda point: (point.run, point.update))


def run_names(folders: Collection[PurePath]) -> dict[PurePath, str]:
    """A short name for each run folder: its last part (of output/student-sft/seed-42 the last two), or as many parts as
    tell it from the others."""
    names = {}
    for folder in folders:
        parts = 2 if re.fullmatch(r"seed-\d+", folder.name) else 1
        while any(folder != other and folder.parts[-parts:] == other.parts[-parts:] for other in folders):
            parts += 1
        names[folder] = "/".join(folder.parts[-parts:])
    return names


# --- the page ----------------------------------------------------------------------------------------


def draw(read: Sequence[Comparisons], checkpoints: Sequence[Path]) -> Figures:
    """Every figure of the page, by name."""
    comparisons = [comparison for found in read for comparison in found.comparisons]
    figures = {"arms": arms_figure(comparisons, "The animals in all arms")}
    for place, assigned in enumerate((found.assignment for found in read if found.assignment), 1):
        figures[f"assignment {place}"] = assignment_figure(assigned)
    if checkpoints:
        figures["trajectory"] = trajectory_figure(trajectory(checkpoints, [one.animal for one in comparisons]))
    return figures


def value_of(value: float, measure: str) -> str:
    """A share, margin or difference, in the unit of its measure."""
    return f"{value:+.3f}" if measure == "margin" else percent(value)


def render(title: str, read: Sequence[tuple[str, Comparisons]], data: Sequence[Path], figures: Figures) -> str:
    """The page as text. read: (name of a comparison file, its content)."""
    comparisons = [comparison for _, found in read for comparison in found.comparisons]
    files = [name for comparison in comparisons for arm in comparison.shares.values() for name in arm.files]
    return render_page(
        TEMPLATE,
        {"percent": percent, "of": value_of, "p": p_value},
        title=title,
        titles={role: look.title for role, look in ARMS.items()},
        kind_power=kind_power_words,
        collapsed=COLLAPSED,
        figures={name: shown_figure(figure) for name, figure in figures.items()},
        comparisons=[shown(found) for found in comparisons],
        pairwise=[(found.pairwise, found.comparisons[0].measure) for _, found in read],
        assignments=[(file, assignment_words(one.assignment)) for file, one in read if one.assignment],
        certificates=[certificate_of(path) for path in data],
        commands=commands_of([*map(str, data), *files]),
    )


def main() -> None:
    args = parse_args()
    read = [(path.name, read_comparisons(path)) for path in args.comparison]
    figures = draw([found for _, found in read], args.checkpoints)
    write_atomically(args.output, render(args.title, read, args.train_jsonl, figures).encode())
    images = {
        name: args.output.with_suffix(".png" if name == "arms" else f".{name.replace(' ', '-')}.png")
        for name in figures
    }
    for name, image in images.items():
        write_atomically(image, figures[name].png())
    closing({"wrote": args.output, "figures": ", ".join(map(str, images.values()))})


if __name__ == "__main__":
    run(main)
