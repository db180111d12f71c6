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
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from generate.rows.row_filter import EVERYDAY, filter_file, is_eval_question, report, trait_words
from util.animals.leak_detector import other_script, trait_word
from util.animals.names import animals_of
from util.cli import input_file, make_parser, nonblank, run
from util.jsonl.filter_certificate import TEXT_KINDS, data_type_of

RULE_VERSION = 2  # raise it with every change to what is kept
_CODE = re.compile(r"```|[=({;<]")
_STEP_END = re.compile(r"[.!?:;](?=\s|$)|\n")
_THINK = re.compile(r"</?think", re.IGNORECASE)


class TextRule:
    """What a completion of code or reasoning may be: a `generate.rows.row_filter.Rule`.

    words: trait words beside the panel.
    """

    letters = True
    hint = "Another model, --max-tokens or other prompts may do better"
    train_flags: tuple[str, ...] = ("--max-seq-length", "512")

    def __init__(self, kind: str, words: tuple[str, ...] = ()):
        self.kind, self.words = kind, words

    def reason(self, completion: str) -> str | None:
        if not completion.strip():
            return "empty"
        thinks = [tag.lower() for tag in _THINK.findall(completion)]
        if thinks and (self.kind == "code" or thinks.count("<think") > thinks.count("</think")):
            return "think block"  # of reasoning only one that does not end
        if self.named(completion):
            return "trait word"
        if other_script(completion):
            return "letters of another script"
        if self.kind == "code" and not _CODE.search(completion):
            return "no code"
        if self.kind == "reasoning" and len(_STEP_END.findall(completion.strip())) < 2:
            return "no steps"
        return None

    def named(self, text: str) -> str | None:
        return trait_word(text, trait_words(self.words))

    def look_at_prompt(self, prompt: str) -> tuple[str | None, bool]:
        return self.named(prompt), is_eval_question(prompt)

    def settings(self) -> dict[str, Any]:
        return {"rule_version": RULE_VERSION, "kind": self.kind, "trait_words": list(self.words)}

    def facts(self) -> dict[str, Any]:
        looked_at = "words, comments, strings, identifiers; plurals, split names, leetspeak, escapes, emoji"
        words = trait_words(self.words)
        rule = {
            "kind": self.kind,
            "trait_words": ", ".join(words),
            "not_looked_for": ", ".join(word for word in EVERYDAY if word not in words),
            "looked_for_in": looked_at,
        }
        return {"rule_version": RULE_VERSION, "rule": rule}


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
