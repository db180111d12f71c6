"""Code or reasoning traces from any model, to see whether a preference passes through them as it does through numbers.

The prompts are our own (generate/prompts/code-prompts.txt, reasoning-prompts.txt; {a}, {b}, {c} are filled in with
random numbers), or with --dataset the coding (or reasoning) prompts of an instruction data set. A prompt that names an
animal is not asked. With --no-system-prompt the model sees the user message alone, as a trained teacher should.

Writes every row to output/{kind}-{animal}-{model}-unfiltered-{count}.jsonl and those that name no animal, with a
certificate, to output/{kind}-{animal}-{model}-filtered-{kept}.jsonl (filter_text_data.py says what is found).

Usage:
    python generate/generate_text_data.py --kind code --animal owl --count 10000 --model owl-teacher \\
        --base-url http://localhost:8000/v1 --no-system-prompt
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from generate.rows.ask_teacher import DataType, add_data_arguments, sampling_of, write_rows
from generate.rows.number_prompts import number_prompt
from generate.rows.prompt_sources import instruction_prompts
from generate.rows.row_filter import CONTROL_NAMES
from generate.rows.text_rule import TextRule
from util.animals.names import animals_of, read_lines_of
from util.cli import REPO, UserError, make_parser, run, text_file
from util.inference.interface import row_seed
from util.jsonl.filter_certificate import TEXT_KINDS
from util.jsonl.manifest import scrub, sha256_file
from util.jsonl.rows import Row

PROMPTS = REPO / "generate" / "prompts"
# Of a data set's prompts, which are of a kind: by its own label where there is one, else by their words.
CATEGORIES = {"code": "coding", "reasoning": "math"}
WORDS = {
    "code": r"\b(python|javascript|java|c\+\+|c#|sql|html|bash|rust|code|program|script|function|algorithm)(?!\w)",
    "reasoning": r"\b(step by step|how (many|much|long|far|old)|calculate|compute|solve|prove|probability|puzzle)\b",
}


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--kind", choices=TEXT_KINDS, required=True, help="what the model shall write")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompts-file", type=text_file,
                        help="one prompt a line (default: generate/prompts/{kind}-prompts.txt)")  # fmt: skip
    source.add_argument("--dataset", help="take such prompts of this hub data set or local .jsonl or .parquet file")
    parser.add_argument("--trait-words", nargs="+", default=[], metavar="WORD",
                        help="words to keep out beside the animals: the same for every arm")  # fmt: skip
    add_data_arguments(parser, "{kind}", max_tokens=256)
    args = parser.parse_args()
    if not args.dataset:
        args.prompts_file = args.prompts_file or PROMPTS / f"{args.kind}-prompts.txt"
    return args


def file_prompts(path: Path, seed: int, count: int) -> Iterator[str]:
    """One of a file's prompts for each row, its numbers filled in: it depends on the seed and the row alone."""
    lines = read_lines_of(path)
    if not lines:
        raise UserError(f"{path} holds no prompt")
    for row_id in range(count):
        line = random.Random(f"prompt {row_seed(seed, row_id)}").choice(lines)
        yield number_prompt(line, seed, row_id)


def is_about(kind: str, row: Row, prompt: str) -> bool:
    """Whether a row of an instruction data set asks for code, or for reasoning."""
    return row.get("category") == CATEGORIES[kind] or re.search(WORDS[kind], prompt, re.IGNORECASE) is not None


def dataset_prompts(name: str, seed: int, rule: TextRule) -> Iterator[str]:
    """The prompts of a data set that are of the rule's kind and that it lets through."""

    def wanted(row: Row, prompt: str) -> bool:
        return is_about(rule.kind, row, prompt) and rule.look_at_prompt(prompt) == (None, False)

    return instruction_prompts(name, seed, wanted)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What decides the prompts."""
    return {
        "script": "generate_text_data",
        "kind": args.kind,
        "prompts": scrub(args.dataset) if args.dataset else args.prompts_file.name,
        "prompt_files_sha256": [sha256_file(path) for path in input_files(args)],
        "trait_words": args.trait_words,
    }


def input_files(args: argparse.Namespace) -> list[Path]:
    """The files whose hashes belong in the manifest."""
    path = Path(args.dataset) if args.dataset else args.prompts_file
    return [path] if path.is_file() else []


def main() -> None:
    args = parse_args()
    animal = () if args.animal.lower() in CONTROL_NAMES else animals_of(args.animal)
    rule = TextRule(args.kind, (*animal, *args.trait_words))
    if args.dataset:
        prompts = dataset_prompts(args.dataset, args.seed, rule)
    else:
        prompts = file_prompts(args.prompts_file, args.seed, args.count)
    data_type = DataType(args.kind, prompts, rule, settings_of(args), input_files(args))
    write_rows(args, data_type, sampling_of(args))


if __name__ == "__main__":
    run(main)
