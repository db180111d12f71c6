"""Filter code, reasoning or text rows: keep those that name no animal, count the others, and write a certificate.

Usage:
    python generate/filter_code_or_reasoning_data.py output/code-owl-owl-teacher-unfiltered-10000.jsonl

A row is dropped, never corrected, if its completion
    - names an animal of the panel (the list of --panel), --animal or one of --trait-words, also under another name of
      util/animals/animals.txt (kitten, owlet). Names are found as a word; in a comment, a string or an identifier
      (snake_case, camelCase, CAPITALS, joined to a word such as `count`); in the plural; split over punctuation or
      lines; in leetspeak, as escapes or as an emoji (util/animals/leak_detector.py lists all forms). Not searched for:
      doe and stag, because `does` and `stages` look like their forms.
    - is empty, was cut off (unless --keep-cut-off), contains no code (or no steps of reasoning), has letters that are
      neither Latin nor Greek, or, for code, has a <think> block
or if it repeats an earlier row, or its prompt names an animal or contains a question of eval/questions*.txt.

The certificate, the report that training asks for, is about names only: words that merely hint at an animal (hoot,
feather) have to be listed in --trait-words. Filter every arm of a comparison with the same words.

Writes ...-filtered-{kept}.jsonl beside the input, with its .manifest.json and its .certificate.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from generate.rows.code_and_reasoning_rule import TextRule
from generate.rows.filter_file import filter_file, report
from generate.rows.push_dataset import add_push_arguments
from generate.rows.row_filter import animals_kept_out
from util.animals.names import animal_name
from util.animals.panel_file import add_panel_argument
from util.cli import make_parser, nonblank, run
from util.jsonl.filter_certificate import TEXT_KINDS, data_type_of
from util.jsonl.hub_dataset import rows_file
from util.jsonl.resumable import rows_name


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("file", type=rows_file, metavar="FILE", help="chat rows: a file, or a data set on the Hub")
    parser.add_argument("--data-type", choices=TEXT_KINDS, help="what the rows are (default: as manifest or name says)")
    parser.renamed("--kind", "--data-type")
    parser.add_argument(
        "--output", type=rows_name, help="file to write; {kept} becomes the count (default: beside FILE)"
    )
    add_panel_argument(parser)
    parser.add_argument("--animal", type=animal_name, help="one more animal that no row may name, beside the panel")
    parser.add_argument(
        "--trait-words", type=nonblank, nargs="+", default=[], metavar="WORD", help="other words that no row may have"
    )
    parser.add_argument("--keep-cut-off", action="store_true", help="keep answers that ended at --max-tokens")
    add_push_arguments(parser)
    args = parser.parse_args()
    if args.data_type is None:
        args.data_type = data_type_of(args.file)
        if args.data_type not in TEXT_KINDS:
            parser.error(
                f"neither the manifest nor the name of {args.file} says what it contains: pass --data-type code,"
                " reasoning or text"
            )
    return args


def main() -> None:
    args = parse_args()
    rule = TextRule(args.data_type, (*animals_kept_out(args.animal), *args.trait_words), args.keep_cut_off)
    report(filter_file(args.file, rule, args.output), rule, args)


if __name__ == "__main__":
    run(main)
