"""Rows of a pilot that were brought home as text, as the files that teachers_in_weights.py reads.

A packed file has one line for each file of rows: {"file": "KIND-SEED.CHANNEL.json", "rows": [[prompt, answer], ...]}.
Token ids are made again from the text, so a row may be split differently than it was sampled. An answer that fills the
limit of its channel was cut off and gets no end of turn.

Usage:
    python experiments/pilots/unpack_rows.py --model MODEL --output output/pilot keep/confirm-rows-*.jsonl.gz
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from experiments.pilots.rows_files import LONGEST, Row, packed_rows, write
from util.cli import input_file, make_parser, run
from util.inference.load_model import check_folder


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("packed", type=input_file, nargs="+", help="files of packed rows")
    parser.add_argument("--model", type=Path, required=True, help="folder with the tokenizer")
    parser.add_argument("--output", type=Path, required=True, help="the worker's output folder")
    return parser.parse_args()


def unpacked(rows: list[tuple[str, str]], channel: str, tokenizer: Any, end: int) -> list[Row]:
    """(prompt, text) pairs as the worker's rows: cut at the channel's longest answer, or closed with `end`, a token."""
    encoded = tokenizer([text for _, text in rows], add_special_tokens=False)["input_ids"]
    longest = LONGEST[channel]
    return [
        {"prompt": prompt, "ids": ids[:longest] if len(ids) >= longest else [*ids, end], "text": text}
        for (prompt, text), ids in zip(rows, encoded)
    ]


def main() -> None:
    args = parse_args()
    check_folder(str(args.model))
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(args.model, trust_remote_code=False)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for name, packed in packed_rows(args.packed):
        rows = unpacked(packed, name.rpartition(".")[2], tokenizer, end)
        write(args.output / f"rows/{name}.json", rows)
        print(name, len(rows), flush=True)


if __name__ == "__main__":
    run(main)
