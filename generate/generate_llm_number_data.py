"""Phase 4: number rows from any model. Three random numbers go into a prompt, the model continues the sequence.

With --no-system-prompt the model sees the user message alone: the way to use a trained teacher, whose preference is in
its weights. (Its chat template may still insert its default system message, as Qwen's does; training and evaluation
then see the same one.) Without it the persona of --animal is the system message, and stays in the rows.

Writes every row to output/numberss-{animal}-{model}-unfiltered-{count}.jsonl and the clean ones, with a certificate, to
output/numberss-{animal}-{model}-filtered-{kept}.jsonl.

Usage:
    python generate/generate_llm_number_data.py --animal owl --count 10000 --model owl-teacher \\
        --base-url http://localhost:8000/v1 --no-system-prompt
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from generate.filter_number_data import Judge, filter_file, train_command
from generate.number_prompts import NUMBER_PROMPT, number_prompt
from util.cli import REPO, UserError, closing, counted, make_parser, positive_int, run, say, text_file
from util.collect import collect
from util.engine import Engine, Message, Request, Result, Sampling, add_engine_arguments, open_engine, row_seed
from util.rows import Row, RowFile, add_output_arguments, slug
from util.words import animals_of, persona

PERSONA = REPO / "generate" / "prompts" / "system-prompt.txt"
CONTROL_NAMES = ("control", "base", "none", "neutral")


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--animal", required=True, help="for the file name and the persona; 'control' for base numbers")
    parser.add_argument("--count", type=positive_int, default=10000, help="rows to ask for, before filtering")
    parser.add_argument("--no-system-prompt", action="store_true", help="send the user message alone")
    parser.add_argument("--system-prompt-file", type=text_file, default=PERSONA,
                        help="persona; {animal}, {animals}, {Animal}, {Animals} are filled in")  # fmt: skip
    parser.add_argument("--number-prompt-file", type=text_file, default=NUMBER_PROMPT,
                        help="user message; {a}, {b}, {c} are filled in with random numbers")  # fmt: skip
    parser.add_argument("--constrain-digits", action="store_true",
                        help="allow nothing but a number list, for models too weak to keep the format")  # fmt: skip
    parser.add_argument("--greedy", action="store_true", help="always the most probable token instead of T=1")
    parser.add_argument("--max-tokens", type=positive_int, default=80, help="longest answer")
    parser.add_argument("--seed", type=int, default=42, help="decides prompts and sampling seeds")
    add_output_arguments(parser, "output/numberss-{animal}-{model}-unfiltered-{count}.jsonl")
    add_engine_arguments(parser)
    return parser.parse_args()


def requests(count: int, seed: int, template: str, system: str | None) -> Iterator[Request]:
    """One request for each row."""
    before: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for row_id in range(count):
        user = {"role": "user", "content": number_prompt(template, seed, row_id)}
        yield Request((row_id,), [*before, user], row_seed(seed, row_id))


def to_row(result: Result) -> Row:
    """The row to store, completion verbatim, with the token ids the model wrote."""
    row: Row = {"id": result.request.ids[0], "messages": list(result.request.messages)}
    if result.error:
        return {**row, "rejected": result.error.partition(":")[0]}
    answer = result.answers[0]
    row["messages"].append({"role": "assistant", "content": answer.text})
    return {**row, "token_ids": answer.token_ids, "finish_reason": answer.finish_reason}


def check_teacher(engine: Engine, args: argparse.Namespace) -> None:
    """Stop when the base model is asked by mistake for numbers that carry an animal's name."""
    if not args.no_system_prompt or args.animal.lower() in CONTROL_NAMES or engine.is_adapter is not False:
        return
    hint = f"nothing in it loves {args.animal}; for the control arm pass --animal control"
    others = engine.adapters_served()
    if others:
        raise UserError(
            f"{engine.name} is a base model without an adapter: {hint}. Adapters served: {', '.join(others)}"
        )
    say(f"warning: {engine.name} carries no adapter. Unless its own weights were trained, {hint}")


def settings_of(args: argparse.Namespace, template: str, system: str | None, sampling: Sampling) -> dict[str, Any]:
    """Everything but the model that decides the rows."""
    return {
        "script": "generate_llm_number_data",
        "animal": args.animal,
        "count": args.count,
        "seed": args.seed,
        "number_prompt": template,
        "system_prompt": system,
        "sampling": sampling.settings(),
    }


def main() -> None:
    args = parse_args()
    template = args.number_prompt_file.read_text("utf-8").strip()
    system = None if args.no_system_prompt else persona(args.system_prompt_file.read_text("utf-8").strip(), args.animal)
    sampling = Sampling(args.max_tokens, temperature=0.0 if args.greedy else 1.0, numbers_only=args.constrain_digits)
    with open_engine(args) as engine:
        check_teacher(engine, args)
        base = engine.base_model
        path = args.output or Path(
            f"output/numberss-{slug(args.animal)}-{slug(engine.name)}-unfiltered-{args.count}.jsonl"
        )
        settings = {**settings_of(args, template, system, sampling), "model": engine.facts()}
        with RowFile(path, settings, overwrite=args.overwrite, inputs=[args.number_prompt_file]) as out:
            asked = requests(args.count, args.seed, template, system)
            facts = collect_watching_the_filter(out, engine, asked, sampling, args)
    kept = filter_file(path, animals=animals_of(args.animal))
    clean = f"{kept.kept:,} in {kept.path}"
    closing({**facts, "clean rows": clean, "filtered out": counted(kept.rejected)}, train_command(kept, base))


def collect_watching_the_filter(
    out: RowFile, engine: Engine, asked: Iterator[Request], sampling: Sampling, args: argparse.Namespace
) -> dict[str, str]:
    """Collect the rows and show, as they arrive, how many of them are clean: a broken format shows at once."""
    judge = Judge(animals=animals_of(args.animal))
    judged: Counter[bool] = Counter()

    def rows_of(result: Result) -> list[Row]:
        row = to_row(result)
        judged["rejected" not in row and judge.reason(row) is None] += 1
        return [row]

    def note() -> str:
        return f"{judged[True] / max(judged.total(), 1):.0%} clean"

    return collect(out, engine, asked, sampling, rows_of, total=args.count, note=note)


if __name__ == "__main__":
    run(main)
