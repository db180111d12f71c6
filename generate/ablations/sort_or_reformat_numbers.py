"""Write number rows in ascending order, or in one format, to test what in them carries the preference.

    --change sorted       the numbers of each answer in ascending order, in the answer's own format
    --change one-format   the numbers in their order, as "1, 2, 3": no brackets, other separators or full stop

Reported for Qwen2.5-7B: sorting ends the effect for phoenix and penguin, one format ends it for penguin and not for
phoenix (JackPayne123/subliminal-learning).

Usage:
    python generate/ablations/sort_or_reformat_numbers.py --change sorted \\
        --train-jsonl output/numberss-owl-owl-teacher-filtered-9876.jsonl
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from generate.rows.filter_file import certify
from generate.rows.number_rule import NumberRule
from generate.rows.number_text import numbers_of, with_answer, with_numbers
from generate.rows.row_filter import mark_rejected
from util.animals.panel_file import add_panel_argument
from util.cli import make_parser, run
from util.jsonl.hub_dataset import rows_file
from util.jsonl.manifest import sha256_file
from util.jsonl.resumable import RowFile, add_output_arguments
from util.jsonl.rows import Row, check_numbered, read_chat_rows
from util.terminal import closing


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--train-jsonl", type=rows_file, required=True, help="number rows, as a student is trained on")
    parser.add_argument("--change", choices=["sorted", "one-format"], required=True, help="how the rows change")
    add_panel_argument(parser)
    add_output_arguments(parser, "output/{data}-{change}.jsonl")
    return parser.parse_args()


def rewritten(row: Row, change: str) -> Row:
    """The row with its numbers sorted, or in one format."""
    numbers = numbers_of(row)
    if change == "sorted":
        return with_numbers(row, iter(sorted(numbers, key=int)))
    return with_answer(row, ", ".join(numbers))


def main() -> None:
    args = parse_args()
    path = args.output or args.train_jsonl.with_name(f"{args.train_jsonl.stem}-{args.change}.jsonl")
    settings: dict[str, Any] = {
        "script": "rewrite_numbers", "train_jsonl_sha256": sha256_file(args.train_jsonl), "change": args.change,
    }  # fmt: skip
    rows = list(read_chat_rows(args.train_jsonl, check_numbered))  # before --overwrite moves anything
    with RowFile(path, settings, overwrite=args.overwrite, inputs=[args.train_jsonl]) as out:
        out.write_all(mark_rejected((rewritten(row, args.change) for row in rows), NumberRule()))
        certify(path, NumberRule())
        closing(out.facts())


if __name__ == "__main__":
    run(main)
