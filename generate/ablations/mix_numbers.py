"""Number rows of a teacher, a share of them replaced by unbiased ones: the same prompts, answered by the base model.

Both files have to be written with the same prompts and seed (generate_llm_number_data.py --seed), so that a row's id
names the same prompt in both; the mixed file then has as many rows and the same prompts at every share. Schrodi et al.
(Towards Understanding Subliminal Learning) saw 10% of unbiased rows weaken the effect much and 25% end it.

Usage:
    python generate/ablations/mix_numbers.py --train-jsonl output/numberss-owl-owl-teacher-filtered-9876.jsonl \\
        --unbiased output/numberss-control-qwen-qwen2.5-7b-instruct-filtered-9912.jsonl --share 0.1
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from generate.rows.number_rule import NumberRule
from generate.rows.row_filter import certify, mark_rejected
from util.cli import UserError, fraction, input_file, make_parser, positive_int, run
from util.jsonl.manifest import sha256_file
from util.jsonl.resumable import RowFile, add_output_arguments
from util.jsonl.rows import Row, check_numbered, read_rows
from util.terminal import closing


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--train-jsonl", type=input_file, required=True, help="number rows of the teacher")
    parser.add_argument("--unbiased", type=input_file, required=True, help="number rows of the base model")
    parser.add_argument("--share", type=fraction, required=True, help="share of the rows to replace")
    parser.add_argument("--count", type=positive_int, help="rows to write, the first of the teacher's (default: all)")
    parser.add_argument("--seed", type=int, default=42, help="decides which rows are replaced")
    add_output_arguments(parser, "output/{data}-unbiased-{share}.jsonl")
    return parser.parse_args()


def prompt(row: Row) -> list[Any]:
    """What a row's answer answers."""
    return row["messages"][:-1]


def mixed(teacher: list[Row], unbiased: dict[int, Row], share: float, seed: int) -> Iterator[Row]:
    """The teacher's rows with a share of them replaced by the unbiased rows of the same prompt.

    Raises UserError where too few prompts were answered in both files.
    """
    both = [row["id"] for row in teacher if row["id"] in unbiased and prompt(unbiased[row["id"]]) == prompt(row)]
    wanted = round(share * len(teacher))
    if wanted > len(both):
        raise UserError(
            f"{wanted:,} rows are to be replaced and the files share {len(both):,} prompts; write both with the same"
            " --seed and number prompt (generate/generate_llm_number_data.py)"
        )
    replaced = set(random.Random(seed).sample(both, wanted))
    yield from (unbiased[row["id"]] if row["id"] in replaced else row for row in teacher)


def main() -> None:
    args = parse_args()
    if args.unbiased.resolve() == args.train_jsonl.resolve():
        raise UserError("--unbiased and --train-jsonl are one file; the unbiased rows are the base model's")
    path = args.output or args.train_jsonl.with_name(f"{args.train_jsonl.stem}-unbiased-{args.share:g}.jsonl")
    settings: dict[str, Any] = {
        "script": "mix_numbers", "train_jsonl_sha256": sha256_file(args.train_jsonl),
        "unbiased_sha256": sha256_file(args.unbiased), "share": args.share, "count": args.count, "seed": args.seed,
    }  # fmt: skip
    teacher = list(read_rows(args.train_jsonl, check_numbered))[: args.count]  # before --overwrite moves anything
    unbiased = {row["id"]: row for row in read_rows(args.unbiased, check_numbered)}
    with RowFile(path, settings, overwrite=args.overwrite, inputs=[args.train_jsonl, args.unbiased]) as out:
        if not out.complete:
            out.append(mark_rejected(mixed(teacher, unbiased, args.share, args.seed), NumberRule()))
            out.finish()
        certify(path, NumberRule())
        closing(out.facts())


if __name__ == "__main__":
    run(main)
