"""Write one page about everything that has finished: experiments, comparisons and trainings, newest first.

It looks for the tables of experiments in output/experiments/results and experiments/results, for comparisons of
compare_arms.py (JSON), for results files of eval.py that no comparison has, and for trainings below output/. The page
has no script and loads nothing.

Usage:
    make report
    python experiments/index_page.py --output output/index.html
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from eval.answers.shares_to_wandb import named_most
from eval.compare.comparison_result import Comparisons, read_comparisons
from eval.compare.result_words import MARKS, result_of, word_of
from experiments.experiment_figure import figure_from
from experiments.experiment_yaml import FOLDER, experiments, read_yaml
from experiments.stored_tables import read_table
from util.animals.panel import KNOWN
from util.animals.panel_file import read_panel
from util.cli import REPO, UserError, make_parser, output_name, run
from util.jsonl.manifest import Manifest, write_atomically
from util.pages.html_page import ShownFigure, render_page, shown, visible
from util.terminal import call_animals, closing, say

TEMPLATE = Path(__file__).with_name("index.html")
LARGEST = 8_000_000  # bytes of a JSON file that may be a comparison
NAMED = 3  # animals shown of a results file


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--root", type=Path, default=REPO, metavar="FOLDER",
                        help="folder with output/ and experiments/")  # fmt: skip
    parser.add_argument("--output", type=output_name(".html"), help="page to write (default: ROOT/output/index.html)")
    args = parser.parse_args()
    if not args.root.is_dir():
        parser.error(f"argument --root: no folder {args.root}")
    args.output = args.output or args.root / "output" / "index.html"
    return args


@dataclass(frozen=True)
class Finished:
    """One experiment or comparison."""

    when: float
    """seconds since 1970: when its file was written"""
    title: str
    place: str
    """its folder or file, relative to the root"""
    sentence: str
    verdicts: dict[str, int]
    """how many conditions or animals have each verdict"""
    links: dict[str, str]
    figure: ShownFigure | None = None

    @property
    def date(self) -> str:
        return day(self.when)


def day(seconds: float) -> str:
    """2026-11-29 13:05 UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def count_verdicts(verdicts: Iterable[str]) -> dict[str, int]:
    """How often each word occurs, in the order of the words."""
    counts = Counter(map(word_of, verdicts))
    return {word: counts[word] for word in [*MARKS, *counts] if counts[word]}


def link(path: Path, page: Path) -> str:
    """A file as an address on the page."""
    return Path(os.path.relpath(path, page.parent)).as_posix()


# --- what has finished -------------------------------------------------------------------------------


def finished_experiments(root: Path, page: Path) -> Iterator[Finished]:
    """The experiments that have tables; one that cannot be read is named and left out."""
    for table in sorted([*root.glob("output/experiments/results/*/*/summary.csv"),
                         *root.glob("experiments/results/*/*/summary.csv")]):  # fmt: skip
        folder = table.parent
        name, model = folder.parent.name, folder.name
        try:
            verdicts = [str(one["verdict"]) for one in read_table(table)]
            figure = figure_from(folder)
        except (UserError, KeyError, TypeError, ValueError) as error:
            say(f"warning: {folder} is left out: {error}")
            continue
        question = read_yaml(FOLDER / f"{name}.yaml")["question"] if name in experiments() else name
        links = {path.name: link(path, page) for path in sorted(folder.glob("*.csv"))}
        title = f"{name.replace('_', ' ')}, {model}"
        yield Finished(table.stat().st_mtime, title, str(folder.relative_to(root)), question, count_verdicts(verdicts),
                       links, shown(figure))  # fmt: skip


def finished_comparisons(root: Path, page: Path) -> Iterator[Finished]:
    """The comparisons in output/ and experiments/results, with their pages where there are any."""
    for path in sorted([*root.glob("output/**/*.json"), *root.glob("experiments/results/**/*.json")]):
        found = comparison_in(path)
        if found is None:
            continue
        call_animals(*words_of_panel(found))
        pages = [one for one in path.parent.glob("*.html") if one.resolve() != page.resolve()]
        links = {one.name: link(one, page) for one in sorted([path, *pages])}
        animals = ", ".join(one.animal for one in found.comparisons[:8])
        title = f"{path.stem}: {animals} by {found.comparisons[0].measure}"
        verdicts = count_verdicts(one.verdict for one in found.comparisons)
        yield Finished(path.stat().st_mtime, visible(title), str(path.relative_to(root)), result_of(found).sentence,
                       verdicts, links)  # fmt: skip
    call_animals("animal", "animals")


def words_of_panel(found: Comparisons) -> tuple[str, str]:
    """What a comparison is about, one and many: tree, trees; word, words for a panel file that is somewhere else."""
    if not found.panel:
        return "animal", "animals"
    known = {file.stem: file for file in KNOWN.glob("*.txt")}
    if found.panel["name"] not in known:
        return "word", "words"
    panel = read_panel(known[found.panel["name"]])
    return panel.one, panel.many


def comparison_in(path: Path) -> Comparisons | None:
    """What compare_arms.py wrote to a JSON file; None for any other file."""
    if path.stat().st_size > LARGEST:
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
        return read_comparisons(path) if isinstance(found, dict) and found.get("comparisons") else None
    except (OSError, ValueError, UserError):
        return None


def compared_files(root: Path) -> set[Path]:
    """The results files that the comparisons in output/ have read."""
    files: set[Path] = set()
    for path in root.glob("output/**/*.json"):
        found = comparison_in(path)
        for one in found.comparisons if found else []:
            files.update((root / name).resolve() for arm in one.shares.values() for name in arm.files)
    return files


def uncompared_results(root: Path, page: Path) -> list[dict[str, Any]]:
    """Every results file of eval.py in output/ that no comparison there has read, newest first. Those of experiments
    are in their tables."""
    compared = compared_files(root)
    rows = []
    for path in root.glob("output/**/*.jsonl"):
        manifest = Manifest.read(path)
        inside = path.relative_to(root / "output").parts
        if manifest is None or manifest.script != "eval" or inside[0] == "experiments" or path.resolve() in compared:
            continue
        try:
            named = ", ".join(f"{animal} {share:.2%}" for animal, share in named_most(path)[:NAMED])
        except (UserError, OSError) as error:
            say(f"warning: {path} is left out: {error}")
            continue
        rows.append({"file": str(path.relative_to(root)), "address": link(path, page), "named": named,
                     "measure": manifest.settings.get("measure", ""), "when": path.stat().st_mtime,
                     "finished": day(path.stat().st_mtime)})  # fmt: skip
    return sorted(rows, key=lambda row: -row["when"])


def finished_trainings(root: Path) -> list[dict[str, Any]]:
    """Every training with a final adapter, newest first."""
    rows = []
    for final in root.glob("output/**/final/adapter_config.json"):
        folder = final.parents[1]
        manifest = Manifest.read(folder)
        if manifest is None or manifest.script != "train_student_sft":
            continue
        counts = manifest.counts
        rows.append({"folder": str(folder.relative_to(root)), "rows": manifest.train_jsonl,
                     "updates": counts.get("updates"), "loss": counts.get("train_loss"),
                     "finished": manifest.finished or ""})  # fmt: skip
    return sorted(rows, key=lambda row: row["finished"], reverse=True)


def main() -> None:
    args = parse_args()
    root = args.root.resolve()
    experiments_found = sorted(finished_experiments(root, args.output.absolute()), key=lambda one: -one.when)
    comparisons = sorted(finished_comparisons(root, args.output.absolute()), key=lambda one: -one.when)
    results, trainings = uncompared_results(root, args.output.absolute()), finished_trainings(root)
    parts = {"Comparisons": comparisons, "Experiments": experiments_found}
    page = render_page(TEMPLATE, {"visible": visible}, title="What has finished", parts=parts, results=results,
                       trainings=trainings, marks=MARKS)  # fmt: skip
    write_atomically(args.output, page.encode())
    counts = {"experiments": len(experiments_found), "comparisons": len(comparisons),
              "results files without a comparison": len(results), "trainings": len(trainings)}  # fmt: skip
    closing({"wrote": args.output, "found": ", ".join(f"{count} {name}" for name, count in counts.items())})


if __name__ == "__main__":
    run(main)
