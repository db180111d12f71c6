"""Look at JSONL files of the suite before you use them: one HTML page, or with --text the first rows here.

Training rows are shown as they are, with the answers that repeat and the rows that a filter left out, by reason.
Results are shown by animal and by question, with what was said. The page has no script and loads nothing.

Usage:
    python util/view.py output/numberss-owl-owl-teacher-filtered-9876.jsonl output/results-owl-student.jsonl
    python util/view.py output/teacher-owl-qwen-qwen2.5-7b-instruct-5000.jsonl --text
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from util.animals.panel_file import add_panel_argument
from util.cli import make_parser, output_name, positive_int, run, some_file
from util.jsonl.manifest import write_atomically
from util.pages.describe_rows import Description, describe
from util.pages.html_page import TEMPLATES, render_page, visible
from util.terminal import closing, table

WIDTH = 100  # characters of a cell in the terminal


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("files", nargs="+", type=some_file, metavar="FILE", help="JSONL files, unfinished ones too")
    add_panel_argument(parser)
    parser.add_argument("--text", action="store_true", help="print the tables here and write no page")
    parser.add_argument("--count", type=positive_int, help="rows shown as they are (default: 10; with --text 5)")
    parser.add_argument("--output", type=output_name(".html"), default=Path("output/view.html"), help="page to write")
    args = parser.parse_args()
    if not args.text:
        parser.check_writable("--output", args.output.parent)
    args.count = args.count or (5 if args.text else 10)
    return args


def show(found: Description) -> None:
    """Print the tables of a file."""
    print(f"{found.path}: {found.kind}, {', '.join(f'{name} {value}' for name, value in found.facts.items())}\n")
    for part in found.tables:
        rows = [[visible(cell)[:WIDTH] for cell in row] for row in part.rows[:10]]
        print(f"{part.title}\n{table(part.header, rows, texts=True)}\n")


def main() -> None:
    args = parse_args()
    found = [describe(path, args.count) for path in args.files]
    if args.text:
        for one in found:
            show(one)
        return
    names = ", ".join(one.path.name for one in found)
    page = render_page(TEMPLATES / "rows.html", {"visible": visible}, title=f"Rows of {names}", files=found)
    write_atomically(args.output, page.encode("utf-8", "backslashreplace"))
    closing({"wrote": args.output, "files": names})


if __name__ == "__main__":
    run(main)
