"""Cut every answer to its first numbers, so that the rows of every arm have the same form.

Teachers that were trained on one-word answers write shorter lists than the base model does, and students may take over
the length of a row instead of what is in it. Cut the rows of every arm in the same way, the control's too: each answer
is then its first N numbers, joined by a comma and a space. Rows with fewer numbers are left out.

Usage:
    python generate/ablations/cut_numbers.py \\
        --train-jsonl output/numberss-owl-owl-teacher-filtered-9876.jsonl --keep 1
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from generate.rows.filter_file import certify
from generate.rows.number_rule import NumberRule
from generate.rows.number_text import numbers_of, with_answer
from generate.rows.row_filter import mark_rejected
from util.animals.panel_file import add_panel_argument
from util.cli import UserError, make_parser, positive_int, run
from util.jsonl.hub_dataset import rows_file
from util.jsonl.manifest import sha256_file
from util.jsonl.resumable import RowFile, add_output_arguments
from util.jsonl.rows import Row, check_numbered, read_chat_rows
from util.terminal import closing


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--train-jsonl", type=rows_file, required=True, help="number rows, as a student is trained on")
    parser.add_argument("--keep", type=positive_int, required=True, metavar="N", help="numbers that every answer keeps")
    add_panel_argument(parser)
    add_output_arguments(parser, "output/{data}-first-{N}.jsonl")
    return parser.parse_args()


def cut(rows: Iterable[Row], keep: int) -> Iterator[Row]:
    """The rows that have so many numbers, with the first of them as the answer."""
    for row in rows:
        numbers = numbers_of(row)
        if len(numbers) >= keep:
            yield with_answer(row, ", ".join(numbers[:keep]))


def main() -> None:
    args = parse_args()
    path = args.output or args.train_jsonl.with_name(f"{args.train_jsonl.stem}-first-{args.keep}.jsonl")
    settings: dict[str, Any] = {
        "script": "cut_numbers", "train_jsonl_sha256": sha256_file(args.train_jsonl), "keep": args.keep,
    }  # fmt: skip
    given = list(read_chat_rows(args.train_jsonl, check_numbered))  # before --overwrite moves anything
    rows = list(cut(given, args.keep))
    if not rows:
        raise UserError(f"no answer of {args.train_jsonl} has {args.keep} numbers; pass a smaller --keep")
    with RowFile(path, settings, overwrite=args.overwrite, inputs=[args.train_jsonl]) as out:
        out.write_all(mark_rejected(rows, NumberRule()))
        certify(path, NumberRule())
        closing({**out.facts(), "left out": f"{len(given) - len(rows):,} rows with fewer than {args.keep} numbers"})


if __name__ == "__main__":
    run(main)
