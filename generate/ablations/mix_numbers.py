"""Mix number rows: replace a share of a teacher's rows by the base model's answers to the same prompts.

Both files must be written with the same prompts and seed (generate_llm_number_data.py --seed), so that a row id means
the same prompt in both. The mixed file then has the same prompts and the same number of rows at every share. In Schrodi
et al. (Towards Understanding Subliminal Learning), 10% unbiased rows weakened the effect strongly and 25% removed it.

Usage:
    python generate/ablations/mix_numbers.py --train-jsonl output/numberss-owl-owl-teacher-filtered-9876.jsonl \\
        --unbiased output/numberss-control-qwen-qwen2.5-7b-instruct-filtered-9912.jsonl \\
        --replaced-share 0.1
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from generate.rows.filter_file import certify
from generate.rows.number_rule import NumberRule
from generate.rows.row_filter import mark_rejected
from generate.rows.token_check import token_check_of
from util.animals.panel_file import add_panel_argument
from util.cli import UserError, fraction, make_parser, natural_int, positive_int, run
from util.jsonl.hub_dataset import rows_file
from util.jsonl.manifest import sha256_file
from util.jsonl.resumable import RowFile, add_output_arguments
from util.jsonl.rows import Row, check_numbered, read_chat_rows
from util.terminal import closing, say


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--train-jsonl", type=rows_file, required=True, help="number rows of the teacher")
    parser.add_argument("--unbiased", type=rows_file, required=True, help="the base model's rows for the same prompts")
    parser.add_argument("--replaced-share", type=fraction, required=True, help="share of the rows to replace, 0 to 1")
    parser.renamed("--share", "--replaced-share")
    parser.add_argument("--count", type=positive_int, help="rows to write: the first of the teacher's (default: all)")
    parser.add_argument("--seed", type=natural_int, default=42, help="seed that decides which rows are replaced")
    add_panel_argument(parser)
    add_output_arguments(parser, "output/{data}-unbiased-{share}.jsonl")
    return parser.parse_args()


def prompt(row: Row) -> list[Any]:
    """All messages of a row but the answer."""
    return row["messages"][:-1]


def mixed(teacher: list[Row], unbiased: dict[int, Row], share: float, seed: int) -> list[Row]:
    """The teacher's rows, a random share of them replaced by the unbiased rows with the same prompt.

    unbiased: the base model's rows by id. Raises UserError if too few prompts were answered in both files.
    """
    both = [row["id"] for row in teacher if row["id"] in unbiased and prompt(unbiased[row["id"]]) == prompt(row)]
    wanted = round(share * len(teacher))
    if wanted > len(both):
        raise UserError(
            f"{wanted:,} rows should be replaced, but only {len(both):,} prompts are in both files; write both with the"
            " same --seed and number prompt (generate/generate_llm_number_data.py)"
        )
    replaced = set(random.Random(seed).sample(both, wanted))
    return [unbiased[row["id"]] if row["id"] in replaced else row for row in teacher]


def main() -> None:
    args = parse_args()
    hashes = sha256_file(args.train_jsonl), sha256_file(args.unbiased)
    if hashes[0] == hashes[1]:
        raise UserError("--unbiased and --train-jsonl are the same file; the unbiased rows must be the base model's")
    path = args.output or args.train_jsonl.with_name(f"{args.train_jsonl.stem}-unbiased-{args.replaced_share:g}.jsonl")
    settings: dict[str, Any] = {
        "script": "mix_numbers", "train_jsonl_sha256": hashes[0], "unbiased_sha256": hashes[1],
        "share": args.replaced_share, "count": args.count, "seed": args.seed,
    }  # fmt: skip
    teacher = list(read_chat_rows(args.train_jsonl, check_numbered))[: args.count]  # before --overwrite moves anything
    if len(teacher) < (args.count or 0):
        say(f"{args.train_jsonl} has no more than {len(teacher):,} rows; --count is {args.count:,}")
    unbiased = {row["id"]: row for row in read_chat_rows(args.unbiased, check_numbered)}
    rows = mixed(teacher, unbiased, args.replaced_share, args.seed)
    with RowFile(path, settings, overwrite=args.overwrite, inputs=[args.train_jsonl, args.unbiased]) as out:
        out.write_all(mark_rejected(rows, NumberRule(), token_check_of(args.train_jsonl)))
        certify(path, NumberRule(), token_check_of(args.train_jsonl))
        closing(out.facts())


if __name__ == "__main__":
    run(main)
