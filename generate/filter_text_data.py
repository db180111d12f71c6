"""Keep the rows of code or reasoning that name no animal, say why the others are not kept, and certify what is kept.

Usage:
    python generate/filter_text_data.py output/code-owl-owl-teacher-unfiltered-10000.jsonl

A completion is dropped, never mended, when an animal of the panel, --animal or one of --trait-words is in it, under
this or another name of util/animals/animals.txt (kitten, owlet; not doe and stag, whose forms `does` and `stages` look
like):
as a word, in a comment, a string or an identifier (snake_case, camelCase, CAPITALS, glued to a word such as `count`),
in the plural, split over punctuation or lines, in leetspeak, by escapes or as an emoji (util/animals/leak_detector.py
says what is
found). Dropped too: what is empty, holds no code (or no steps), was cut off, has letters that are neither Latin nor
Greek or, of code, a <think> block; a row that repeats another; one whose prompt names an animal or holds a question of
eval/questions*.txt.

Names are certified, not thoughts: words that only hint at an animal (hoot, feather) are for --trait-words. Filter every
arm of a comparison with the same words.

Writes, beside the input, ...-filtered-{kept}.jsonl, its .manifest.json and its .certificate.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from generate.rows.row_filter import filter_file, report
from generate.rows.text_rule import TextRule
from util.animals.names import animals_of
from util.cli import input_file, make_parser, nonblank, run
from util.jsonl.filter_certificate import TEXT_KINDS, data_type_of


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("file", type=input_file, metavar="FILE", help="JSONL of chat rows")
    parser.add_argument("--kind", choices=TEXT_KINDS, help="what the rows are (default: by manifest or name)")
    parser.add_argument("--output", type=Path, help="file to write; {kept} becomes the count (default: beside FILE)")
    parser.add_argument("--animal", type=nonblank, help="one more animal that no text may name, beside the usual ones")
    parser.add_argument("--trait-words", nargs="+", default=[], metavar="WORD", help="further words to keep out")
    args = parser.parse_args()
    if args.kind is None:
        args.kind = data_type_of(args.file)
        if args.kind not in TEXT_KINDS:
            parser.error(f"manifest and name of {args.file} do not tell what it holds: pass --kind code or reasoning")
    return args


def main() -> None:
    args = parse_args()
    animals = animals_of(args.animal) if args.animal else ()
    rule = TextRule(args.kind, (*animals, *args.trait_words))
    report(filter_file(args.file, rule, args.output), rule)


if __name__ == "__main__":
    run(main)
