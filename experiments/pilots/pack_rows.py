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

from util.cli import UserError, first_line, input_file, make_parser, output_name, run
from util.jsonl.manifest import write_atomically


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("rows", type=input_file, nargs="+", help="files KIND-SEED.CHANNEL.json")
    parser.add_argument("--output", type=output_name(".xz"), required=True, help="packed file to write (.jsonl.xz)")
    return parser.parse_args()


def packed_line(path: Path) -> str:
    """A rows file as a line of the packed file. UserError if it is another file."""
    try:
        rows = [[row["prompt"], row["text"]] for row in json.loads(path.read_text("utf-8"))]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a file of rows of the worker ({first_line(error)})") from None
    print(path.stem, len(rows))
    return json.dumps({"file": path.name, "rows": rows}) + "\n"


def main() -> None:
    args = parse_args()
    lines = "".join(packed_line(path) for path in sorted(args.rows))
    write_atomically(args.output, lzma.compress(lines.encode(), preset=9))


if __name__ == "__main__":
    run(main)
