"""Filter number rows: keep those that are nothing but numbers, count the others by reason, and write a certificate.

Usage:
    python generate/filter_number_data.py output/numberss-owl-owl-teacher-unfiltered-10000.jsonl

Reads chat rows {"messages": [..., user, assistant]}. A completion is kept, verbatim, if it is 1 to 10 whole numbers
of 1 to 3 digits (087 passes) with exactly the same separator between all of them: a comma, a semicolon or white space.
(`1, 2,3` has two separators.) One pair of [] or () around the numbers, one final full stop and surrounding white space
are allowed. A row is also dropped if it repeats an earlier one, if its prompt names an animal, or if its prompt
contains an evaluation question.

Writes ...-filtered-{kept}.jsonl beside the input, with its .manifest.json and its .certificate.json, a report of what a
second count found in the kept rows; training asks for it. An older filtered file of the same rows is renamed to .bak.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from generate.rows.filter_file import filter_file, report
from generate.rows.number_rule import MAX_NUMBERS, NumberRule
from generate.rows.push_dataset import add_push_arguments
from generate.rows.row_filter import animals_kept_out
from util.animals.names import animal_name
from util.animals.panel_file import add_panel_argument
from util.cli import make_parser, positive_int, run
from util.jsonl.hub_dataset import rows_file
from util.jsonl.resumable import rows_name


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("file", type=rows_file, metavar="FILE", help="chat rows: a file, or a data set on the Hub")
    parser.add_argument(
        "--output", type=rows_name, help="file to write; {kept} becomes the count (default: beside FILE)"
    )
    add_panel_argument(parser)
    parser.add_argument("--animal", type=animal_name, help="one more animal that no row may name, beside the panel")
    parser.add_argument("--max-numbers", type=positive_int, default=MAX_NUMBERS, help="most numbers in a completion")
    add_push_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    rule = NumberRule(animals_kept_out(args.animal), args.max_numbers)
    report(filter_file(args.file, rule, args.output), rule, args)


if __name__ == "__main__":
    run(main)
