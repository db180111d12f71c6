"""Keep the number rows that are nothing but numbers, say why the others are not, and certify what is kept.

Usage:
    python generate/filter_number_data.py output/numberss-owl-owl-teacher-unfiltered-10000.jsonl

Reads chat rows {"messages": [..., user, assistant]}. A completion is kept, verbatim, when it is 1 to 10 whole numbers
of 1 to 3 digits (087 passes) with the very same separator between all of them: a comma, a semicolon or white space,
so `1, 2,3` is mixed. One pair of [] or () around them, one final full stop and surrounding white space may be there.
A row is also dropped when it repeats an earlier one, or when its prompt names an animal or holds an eval question.

Writes, beside the input, ...-filtered-{kept}.jsonl, its .manifest.json and its .certificate.json: what was
found in the kept rows, counted anew. An older filtered file of the same name but for the count is kept as .bak.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from generate.rows.number_rule import MAX_NUMBERS, NumberRule
from generate.rows.row_filter import filter_file, report
from util.animals.names import animals_of
from util.cli import input_file, make_parser, nonblank, positive_int, run

# --- the rule: one completion ------------------------------------------------------------------------


# --- the script --------------------------------------------------------------------------------------


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("file", type=input_file, metavar="FILE", help="JSONL of chat rows")
    parser.add_argument("--output", type=Path, help="file to write; {kept} becomes the count (default: beside FILE)")
    parser.add_argument("--animal", type=nonblank, help="one more animal that no text may name, beside the usual ones")
    parser.add_argument("--max-numbers", type=positive_int, default=MAX_NUMBERS, help="most numbers in a completion")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    rule = NumberRule(animals_of(args.animal) if args.animal else (), args.max_numbers)
    report(filter_file(args.file, rule, args.output), rule)


if __name__ == "__main__":
    run(main)
