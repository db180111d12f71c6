"""Generate control rows without any model: the usual number prompts, answered with random numbers.

A student of these rows shows what training on numbers alone does. (The other control, numbers written by the base
model, is generate_llm_number_data.py --animal control --model BASE --no-system-prompt.)

Usage:
    python generate/generate_control_number_data.py --count 10000
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from generate.rows.filter_file import filter_file, train_command
from generate.rows.number_prompts import NUMBER_PROMPT, number_prompt
from generate.rows.number_rule import NumberRule
from util.animals.panel_file import add_panel_argument
from util.cli import make_parser, natural_int, positive_int, run, text_file
from util.inference.backend_interface import row_seed
from util.jsonl.resumable import RowFile, add_output_arguments
from util.jsonl.rows import Row
from util.terminal import closing

LIST_LENGTHS = (5, 10)
NUMBERS = (0, 999)


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--count", type=positive_int, default=10000, help="rows to write")
    parser.add_argument("--number-prompt-file", type=text_file, default=NUMBER_PROMPT,
                        help="file with the user message; {a}, {b}, {c} become random numbers")  # fmt: skip
    parser.add_argument("--seed", type=natural_int, default=42, help="seed of prompts and numbers")
    add_panel_argument(parser)
    add_output_arguments(parser, "output/numberss-control-random-unfiltered-{count}.jsonl")
    return parser.parse_args()


def control_rows(count: int, seed: int, template: str) -> Iterator[Row]:
    """Rows with the prompts of generate_llm_number_data.py, answered with 5 to 10 uniform random numbers."""
    for row_id in range(count):
        rng = random.Random(f"control {row_seed(seed, row_id)}")
        numbers = [rng.randint(*NUMBERS) for _ in range(rng.randint(*LIST_LENGTHS))]
        question = {"role": "user", "content": number_prompt(template, seed, row_id)}
        answer = {"role": "assistant", "content": ", ".join(map(str, numbers))}
        yield {"id": row_id, "messages": [question, answer]}


def main() -> None:
    args = parse_args()
    template = args.number_prompt_file.read_text("utf-8-sig").strip()
    path = args.output or Path(f"output/numberss-control-random-unfiltered-{args.count}.jsonl")
    settings = {"script": "generate_control_number_data", "count": args.count, "seed": args.seed,
                "number_prompt": template}  # fmt: skip
    with RowFile(path, settings, overwrite=args.overwrite, inputs=[args.number_prompt_file]) as out:
        out.write_all(control_rows(args.count, args.seed, template))
    kept = filter_file(path, NumberRule())
    closing({**out.facts(), "clean rows": f"{kept.kept:,} in {kept.path}"}, train_command(kept, NumberRule()))


if __name__ == "__main__":
    run(main)
