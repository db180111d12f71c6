"""Generate number rows with any model (phase 4): a prompt contains three random numbers, and the model continues them.

With --no-system-prompt the model sees the user message alone. Use this for a trained teacher, whose preference is in
its weights. (The chat template may still insert a default system message, as Qwen's does; training and evaluation then
see the same one.) Without it, the persona of --animal is the system message and stays in the rows.

Writes all rows to output/numberss-{animal}-{model}-unfiltered-{count}.jsonl, and the clean ones, with a certificate
(the filter's report), to output/numberss-{animal}-{model}-filtered-{kept}.jsonl (filter_number_data.py --help says what
is dropped). The double s is the plan's.

Usage:
    python generate/generate_llm_number_data.py --animal owl --count 10000 --model owl-teacher \\
        --base-url http://localhost:8000/v1 --no-system-prompt
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from generate.rows.ask_teacher import DataType, add_data_arguments, sampling_of, write_rows
from generate.rows.number_prompts import NUMBER_PROMPT, number_prompt
from generate.rows.number_rule import NumberRule
from generate.rows.row_filter import animals_kept_out
from util.cli import make_parser, run, text_file


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--number-prompt-file", type=text_file, default=NUMBER_PROMPT,
                        help="file with the user message; {a}, {b}, {c} become random numbers")  # fmt: skip
    parser.add_argument("--constrain-digits", action="store_true",
                        help="force a number list, for models that are too weak to keep the format")  # fmt: skip
    add_data_arguments(parser, "numberss", max_tokens=80)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    template = args.number_prompt_file.read_text("utf-8-sig").strip()
    numbers = DataType(
        name="numberss",
        prompts=(number_prompt(template, args.seed, row_id) for row_id in range(args.count)),
        rule=NumberRule(animals_kept_out(args.animal)),
        settings={"script": "generate_llm_number_data", "number_prompt": template},
        inputs=[args.number_prompt_file],
    )
    write_rows(args, numbers, sampling_of(args, args.constrain_digits))


if __name__ == "__main__":
    run(main)
