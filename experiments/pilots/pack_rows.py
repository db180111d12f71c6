"""Rows files of the pilots' worker as one packed file of prompts and answers, to be taken home (unpack_rows.py).

Usage:
    python experiments/pilots/pack_rows.py output/sceptic/rows/*-13?.code.json --output rows-code.jsonl.xz
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from util.cli import input_file, make_parser, output_name, run


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("rows", type=input_file, nargs="+", help="files KIND-SEED.CHANNEL.json")
    parser.add_argument("--output", type=output_name(".xz"), required=True, help="packed file to write (.jsonl.xz)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with lzma.open(args.output, "wt", encoding="utf-8", preset=9) as packed:
        for path in sorted(args.rows):
            rows = [[row["prompt"], row["text"]] for row in json.loads(path.read_text("utf-8"))]
            packed.write(json.dumps({"file": path.name, "rows": rows}) + "\n")
            print(path.stem, len(rows))


if __name__ == "__main__":
    run(main)
