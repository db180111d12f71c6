"""Write one self-contained HTML page, and PNG files of its figures, from the comparisons of compare_arms.py.

First the result in a sentence, a line for each animal and the main figures; then, folded, each animal's tables and
questions; the training rows and what tells the arms' numbers apart; and how everything was made. The page has inline
SVG, no script, and loads nothing; every text is escaped. It can be opened on a phone, printed and mailed.

Usage:
    python eval/report.py --comparison output/compare.json \\
        --train-jsonl output/numberss-owl-owl-teacher-filtered-*.jsonl --output output/report.html
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from eval.answers.answer_rows import animal_masses, check_answer
from eval.answers.shares_to_wandb import log_figures, share_with_interval
from eval.compare.comparability import adapter_folder
from eval.compare.compare_teacher_kinds import FEWEST_KINDS
from eval.compare.comparison_result import ArmComparison, Comparisons, read_comparisons
from eval.compare.comparison_text import (
    COLLAPSED,
    UNITS,
    assignment_words,
    kind_power_words,
    lift_words,
    profile_words,
    untaught_rank_words,
)
from eval.compare.how_it_was_made import chain, commands_of, differs_from_plan
from eval.compare.intervals import Ends
from eval.compare.plot_arms import (
    Checkpoint,
    arms_figure,
    assignment_figure,
    matrix_figure,
    profile_figure,
    trajectory_figure,
)
from eval.compare.result_words import MARKS, MEANINGS, looks_like, own_highest_words, result_of, word_of
from eval.compare.statistics_as_text import p_value, percent
from eval.compare.visible_number_differences import Numbers, differences, digits_figure, read_numbers
from util.animals.panel import panel
from util.animals.panel_file import add_panel_argument
from util.cli import UserError, input_file, make_parser, output_name, run
from util.jsonl.filter_certificate import read_certificate
from util.jsonl.manifest import Manifest, write_atomically
from util.jsonl.rows import read_rows
from util.pages.figure_style import ARMS, Figure
from util.pages.html_page import render_page, visible
from util.pages.html_page import shown as shown_figure
from util.terminal import closing, say

TEMPLATE = Path(__file__).with_name("templates") / "arms_report.html"
NAMED = 5  # animals named most
ROWS = 10  # training rows shown as they are
Figures = dict[str, Figure]


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--comparison", required=True, nargs="+", type=input_file, metavar="JSON",
                        help="files written by compare_arms.py --output")  # fmt: skip
    parser.add_argument("--train-jsonl", nargs="*", default=[], type=input_file, metavar="JSONL",
                        help="files of training rows to show")  # fmt: skip
    parser.add_argument("--checkpoints", nargs="*", default=[], type=input_file, metavar="R",
                        help="results of a student's checkpoints, to show the shares over training")  # fmt: skip
    parser.add_argument("--root", type=Path, default=Path(), metavar="FOLDER",
                        help="folder that file names in the comparisons start from")  # fmt: skip
    add_panel_argument(parser)
    parser.add_argument("--report-to", choices=["none", "wandb"], default="none",
                        help="wandb: also write the figures into the W&B runs of the students' trainings")  # fmt: skip
    parser.add_argument("--title", default="Subliminal learning", help="heading")
    parser.add_argument("--output", type=output_name(".html"), default=Path("output/report.html"), help="page to write")
    parser.default_folder("--output", Path("output"))
    parser.renamed("--data", "--train-jsonl")
    return parser.parse_args()


# --- what is read ------------------------------------------------------------------------------------


def files_of(found: Comparisons, root: Path) -> Iterator[tuple[str, Path]]:
    """(arm, file) of every results file, each once. A target of one animal is an other of the rest."""
    arms: dict[str, str] = {}
    for one in found.comparisons:
        for role, arm in one.shares.items():
            for name in arm.files:
                if role == "target":
                    arms[name] = f"{one.animal} students"
                else:
                    arms.setdefault(name, role)
    for name, role in arms.items():
        yield role, root / name


def readable(found: Comparisons) -> Comparisons:
    """The comparison with names of animals that can be shown: a file may hold any text."""
    return replace(found, comparisons=[replace(one, animal=visible(one.animal)[:40]) for one in found.comparisons])


def check_arms(comparison: Path, found: Comparisons) -> None:
    """UserError for a comparison with an arm that the page does not know, or with none."""
    if not found.comparisons:
        raise UserError(f"{comparison} compares nothing; make one with eval/compare_arms.py")
    for one in found.comparisons:
        if one.measure not in UNITS:
            raise UserError(f"{comparison}: {one.animal} has the measure {one.measure}; known are {', '.join(UNITS)}")
        if unknown := (set(one.shares) - set(ARMS)) | ({"target"} - set(one.shares)):
            raise UserError(f"{comparison}: {one.animal} has the arms {', '.join(one.shares)}; expected are"
                            f" {', '.join(ARMS)} ({', '.join(unknown)}: unknown or missing)")  # fmt: skip


def check_panel(comparison: Path, found: Comparisons) -> None:
    """UserError for a comparison in the words of another panel: the page would call trees animals."""
    if found.panel != panel().facts().get("panel"):
        name = found.panel["name"] if found.panel else "animals"
        raise UserError(f"{comparison} was made with the panel {name!r}; pass --panel {name}")


def warn_of_missing(comparison: Path, files: Sequence[Path]) -> None:
    """Say which results files are not where the comparison says, and what the page lacks without them."""
    missing = [path for path in files if not path.is_file()]
    if missing:
        say(
            f"warning: {len(missing)} of the {len(files)} results files behind {comparison} are not here, such as"
            f" {missing[0]}; pass --root with the folder that these names start from. Without them the page does not"
            " say which animals are named most, and how the files were made"
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


def trajectory(files: Sequence[Path], animals: Sequence[str]) -> list[Checkpoint]:
    """The shares of some animals at each evaluated checkpoint, in the order of training."""
    found: list[tuple[PurePath, int, dict[str, tuple[float, Ends]]]] = []
    for path in files:
        folder = adapter_folder(Manifest.read(path) or Manifest())
        number = re.fullmatch(r"checkpoint-(\d+)", folder.name) if folder else None
        if folder is None or number is None:
            raise UserError(
                f"the manifest of {path} names no checkpoint-N folder; pass results of"
                " eval/eval.py --adapter .../checkpoint-N"
            )
        measured = {animal: share_with_interval(path, animal) for animal in animals}
        found.append((folder.parent, int(number[1]), measured))
    names = run_names({folder for folder, _, _ in found})
    points = [
        Checkpoint(names[folder], update, {name: share for name, (share, _) in measured.items()},
                   {name: ends for name, (_, ends) in measured.items()})
        for folder, update, measured in found
    ]  # fmt: skip
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


@dataclass(frozen=True)
class Section:
    """One comparison as the page shows it."""

    file: str
    found: Comparisons
    root: Path

    @property
    def figures(self) -> Figures:
        """Its figures by name."""
        found = self.found
        figures = {"arms": arms_figure(found.comparisons, own_highest_words(found.comparisons))}
        if found.matrix:
            figures["matrix"] = matrix_figure(found.matrix)
        elif found.assignment:
            figures["matrix"] = assignment_figure(found.assignment)
        if found.profile and len(found.profile.kinds) >= FEWEST_KINDS:  # two kinds are mirror images
            figures["profile"] = profile_figure(found.profile)
        return figures

    @property
    def tests(self) -> list[str]:
        """The tests over all kinds, a sentence each."""
        found = self.found
        said = [f"Profile test: {profile_words(found.profile)}"] if found.profile else []
        said += [f"Assignment test: {assignment_words(found.assignment)}"] if found.assignment else []
        lifts = found.matrix.lifts if found.matrix else []
        return said + [f"Mean over the {panel().many}, nats or log odds: {lift_words(lift)}" for lift in lifts]

    def named_most(self, one: ArmComparison) -> dict[str, list[tuple[str, float]]]:
        """By role: the animals named most in its first file; roles whose file is not here are left out."""
        first = {role: self.root / arm.files[0] for role, arm in one.shares.items() if arm.files}
        return {role: ranked_animals(path)[:NAMED] for role, path in first.items() if path.is_file()}

    def rank_words(self, one: ArmComparison) -> str:
        """The rank among untaught animals, or ""."""
        return untaught_rank_words(one.animal, one.untaught_rank) if one.untaught_rank else ""


def signs_of(numbers: Sequence[Numbers]) -> list[dict[str, Any]]:
    """What tells each file of numbers from the control's."""
    control = next((one for one in numbers if one.animal == "control"), None)
    return [
        {"file": one.path.name, "animal": one.animal, "rows": one.rows[:ROWS], "read": len(one.rows),
         "per_row": one.per_row, "first": [(n, k / len(one.rows)) for n, k in one.first.most_common(NAMED)],
         "apart": differences(one, control) if control and one is not control else []}
        for one in numbers
    ]  # fmt: skip


def render(title: str, sections: Sequence[Section], data: Sequence[Path], figures: Figures) -> str:
    """The page as text. figures: by name, those of a section with its number before it."""
    files = [pair for one in sections for pair in files_of(one.found, one.root)]
    results = [path for _, path in files if path.is_file()]
    numbers = [found for path in data if (found := read_numbers(path))]
    digits = digits_figure(numbers) if numbers else None
    return render_page(
        TEMPLATE,
        {"percent": percent, "p": p_value, "visible": visible, "word": word_of, "looks_like": looks_like},
        title=title,
        sections=sections,
        result_of=result_of,
        units=UNITS,
        arms=ARMS,
        marks=MARKS,
        meanings=MEANINGS,
        collapsed=COLLAPSED,
        kind_power=kind_power_words,
        figures={name: shown_figure(figure) for name, figure in figures.items()},
        certificates=[certificate_of(path) for path in data],
        signs=signs_of(numbers),
        digits=shown_figure(digits) if digits else None,
        steps=chain(data, [(arm, path) for arm, path in files if path.is_file()]),
        plan=differs_from_plan(data, results),
        commands=commands_of([*data, *results]),
    )


def main() -> None:
    args = parse_args()
    sections = [Section(path.name, readable(read_comparisons(path)), args.root) for path in args.comparison]
    figures: Figures = {}
    for place, (path, section) in enumerate(zip(args.comparison, sections), 1):
        check_arms(path, section.found)
        check_panel(path, section.found)
        warn_of_missing(path, [file for _, file in files_of(section.found, args.root)])
        figures |= {f"{name}-{place}": figure for name, figure in section.figures.items()}
    if args.checkpoints:
        animals = [one.animal for section in sections for one in section.found.comparisons]
        figures["trajectory"] = trajectory_figure(trajectory(args.checkpoints, list(dict.fromkeys(animals))))
    write_atomically(args.output, render(args.title, sections, args.train_jsonl, figures).encode())
    pictures = {name.removesuffix("-1"): figure.png() for name, figure in figures.items()}
    for name, png in pictures.items():
        write_atomically(args.output.with_suffix(".png" if name == "arms" else f".{name}.png"), png)
    facts: dict[str, Any] = {"wrote": args.output, "figures": f"{len(figures)} PNG files beside it"}
    if args.report_to == "wandb":
        results = [path for section in sections for _, path in files_of(section.found, args.root)]
        facts["W&B runs"] = log_figures([*results, *args.checkpoints], args.root, pictures)
    closing(facts)


if __name__ == "__main__":
    run(main)
