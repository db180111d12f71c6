"""Shuffle the numbers of number rows: what is left of a student's preference then shows where the signal is.

    --scope row    shuffle the numbers within each answer
    --scope file   shuffle the numbers of all answers among all rows; every row keeps its count of numbers

Separators, brackets and prompts are not changed. Cloud et al. 2025 (arXiv:2507.14805) did both, and most of the effect
was lost: it lies in the sequences, not in single numbers.

Usage:
    python generate/ablations/shuffle_numbers.py \\
        --train-jsonl output/numberss-owl-owl-teacher-filtered-9876.jsonl --scope row
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from generate.rows.filter_file import certify
from generate.rows.number_rule import NumberRule
from generate.rows.number_text import numbers_of, with_numbers
from generate.rows.row_filter import mark_rejected
from util.animals.panel_file import add_panel_argument
from util.cli import make_parser, natural_int, run
from util.inference.backend_interface import row_seed
from util.jsonl.hub_dataset import rows_file
from util.jsonl.manifest import sha256_file
from util.jsonl.resumable import RowFile, add_output_arguments
from util.jsonl.rows import Row, check_numbered, read_chat_rows
from util.terminal import closing


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--train-jsonl", type=rows_file, required=True, help="number rows, as a student is trained on")
    parser.add_argument(
        "--scope", choices=["row", "file"], required=True, help="within each answer, or among all answers"
    )
    parser.add_argument("--seed", type=natural_int, default=42, help="seed of the shuffle")
    add_panel_argument(parser)
    add_output_arguments(parser, "output/{data}-shuffled-{scope}.jsonl")
    return parser.parse_args()


def shuffled(rows: list[Row], scope: str, seed: int) -> Iterator[Row]:
    """The rows in the same order, with shuffled numbers."""
    if scope == "file":
        pool = [number for row in rows for number in numbers_of(row)]
        random.Random(seed).shuffle(pool)
        numbers = iter(pool)
        yield from (with_numbers(row, numbers) for row in rows)
    else:
        for row in rows:
            own = numbers_of(row)
            random.Random(row_seed(seed, row["id"])).shuffle(own)
            yield with_numbers(row, iter(own))


def main() -> None:
    args = parse_args()
    path = args.output or args.train_jsonl.with_name(f"{args.train_jsonl.stem}-shuffled-{args.scope}.jsonl")
    settings: dict[str, Any] = {
        "script": "shuffle_numbers", "train_jsonl_sha256": sha256_file(args.train_jsonl), "scope": args.scope,
        "seed": args.seed,
    }  # fmt: skip
    rows = list(read_chat_rows(args.train_jsonl, check_numbered))  # before --overwrite moves anything
    with RowFile(path, settings, overwrite=args.overwrite, inputs=[args.train_jsonl]) as out:
        out.write_all(mark_rejected(shuffled(rows, args.scope, args.seed), NumberRule()))
        certify(path, NumberRule())
        closing(out.facts())


if __name__ == "__main__":
    run(main)
