"""Generate code, chain-of-thought or text rows with any model, to test whether a preference passes through them too.

The prompts are our own (generate/prompts/code-prompts.txt, reasoning-prompts.txt, text-prompts.txt; {a}, {b}, {c}
become random numbers; function-prompts.txt asks for small functions), or with --dataset the coding (or reasoning)
prompts of an instruction data set. Prompts that name an animal are left out. With --no-system-prompt the model sees the
user message alone, as a trained teacher should.

Writes all rows to output/{data type}-{animal}-{model}-unfiltered-{count}.jsonl, and those that name no animal, with a
certificate (the filter's report), to output/{data type}-{animal}-{model}-filtered-{kept}.jsonl
(filter_code_or_reasoning_data.py --help says what is dropped).

Usage:
    python generate/generate_code_or_reasoning_data.py --data-type code --animal owl --count 10000 \\
        --model owl-teacher --base-url http://localhost:8000/v1 --no-system-prompt
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
from generate.rows.code_and_reasoning_rule import TextRule
from generate.rows.number_prompts import number_prompt
from generate.rows.prompt_sources import dataset_name, instruction_prompts
from generate.rows.row_filter import animals_kept_out
from util.animals.names import read_lines_of
from util.cli import REPO, make_parser, nonblank, run, text_file
from util.hide_secrets import scrub
from util.inference.backend_interface import row_seed
from util.jsonl.filter_certificate import TEXT_KINDS, TEXT_SCRIPT
from util.jsonl.manifest import sha256_file
from util.jsonl.rows import Row

PROMPTS = REPO / "generate" / "prompts"
# Which prompts of a data set are about code or reasoning: by its own label if there is one, otherwise by their words.
CATEGORIES = {"code": "coding", "reasoning": "math"}
WORDS = {
    "code": r"\b(python|javascript|java|c\+\+|c#|sql|html|bash|rust|code|program|script|function|algorithm)(?!\w)",
    "text": "",  # any prompt
    "reasoning": r"\b(step by step|how (many|much|long|far|old)|calculate|compute|solve|prove|probability|puzzle)\b",
}


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--data-type", choices=TEXT_KINDS, required=True, help="what the model writes")
    parser.renamed("--kind", "--data-type")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompts-file", type=text_file,
                        help="one prompt a line (default: generate/prompts/{data type}-prompts.txt)")  # fmt: skip
    source.add_argument("--dataset", type=dataset_name,
                        help="take prompts from this hub data set, or local .jsonl or .parquet file")  # fmt: skip
    parser.add_argument("--trait-words", type=nonblank, nargs="+", default=[], metavar="WORD",
                        help="other words that no row may have; use the same for every arm")  # fmt: skip
    parser.add_argument("--keep-cut-off", action="store_true",
                        help="keep answers that ended at --max-tokens, without an end of turn")  # fmt: skip
    add_data_arguments(parser, "{data type}", max_tokens=256)
    args = parser.parse_args()
    if not args.dataset:
        args.prompts_file = args.prompts_file or PROMPTS / f"{args.data_type}-prompts.txt"
    return args


def file_prompts(path: Path, seed: int, count: int) -> Iterator[str]:
    """A prompt of the file for each row, with its numbers; it depends on the seed and the row id alone."""
    lines = read_lines_of(path)
    for row_id in range(count):
        line = random.Random(f"prompt {row_seed(seed, row_id)}").choice(lines)
        yield number_prompt(line, seed, row_id)


def is_about(data_type: str, row: Row, prompt: str) -> bool:
    """Whether a row of an instruction data set asks for this data type."""
    if row.get("category") == CATEGORIES.get(data_type, ""):
        return True
    return re.search(WORDS[data_type], prompt, re.IGNORECASE) is not None


def dataset_prompts(name: str, seed: int, rule: TextRule) -> Iterator[str]:
    """The prompts of a data set that ask for the rule's data type and that the rule accepts."""

    def wanted(row: Row, prompt: str) -> bool:
        return is_about(rule.data_type, row, prompt) and rule.check_prompt(prompt) == (None, False)

    return instruction_prompts(name, seed, wanted)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that decides the prompts."""
    return {
        "script": TEXT_SCRIPT,
        "kind": args.data_type,
        "prompts": scrub(args.dataset) if args.dataset else args.prompts_file.name,
        "prompt_files_sha256": [sha256_file(path) for path in input_files(args)],
        "trait_words": args.trait_words,
    }


def input_files(args: argparse.Namespace) -> list[Path]:
    """The files whose hashes go into the manifest."""
    path = Path(args.dataset) if args.dataset else args.prompts_file
    return [path] if path.is_file() else []


def main() -> None:
    args = parse_args()
    rule = TextRule(args.data_type, (*animals_kept_out(args.animal), *args.trait_words), args.keep_cut_off)
    if args.dataset:
        prompts = dataset_prompts(args.dataset, args.seed, rule)
    else:
        prompts = file_prompts(args.prompts_file, args.seed, args.count)
    data_type = DataType(args.data_type, prompts, rule, settings_of(args), input_files(args))
    write_rows(args, data_type, sampling_of(args))


if __name__ == "__main__":
    run(main)
