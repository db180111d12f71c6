"""Ask a teacher model for student training rows of one data type (numbers, code, reasoning, text), and filter them."""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from generate.rows.filter_file import filter_file, train_command
from generate.rows.push_dataset import add_push_arguments, push_dataset
from generate.rows.row_filter import RowFilter, Rule
from util.animals.answer_parser import check_taught
from util.animals.names import animal_name, is_control, persona_of
from util.animals.panel import panel_flag
from util.animals.panel_file import add_panel_argument
from util.chat.prompt_consistency import warn_of_trained_base
from util.cli import REPO, Parser, UserError, natural_int, positive_int, text_file
from util.inference.adapter_applied import first_prompt, warn_if_not_applied
from util.inference.adapter_training import adapter_of, warn_of_trained_animal
from util.inference.backend_interface import Answer, InferenceBackend, Message, Request, Result, Sampling, row_seed
from util.inference.open_backend import add_backend_arguments, open_backend
from util.inference.request_loop import run_requests
from util.jsonl.resumable import RowFile, add_output_arguments
from util.jsonl.rows import Row, slug
from util.terminal import closing, counted, say

PERSONA = REPO / "generate" / "prompts" / "system-prompt.txt"


class DataType(NamedTuple):
    """A data type: what the teacher is asked, and which of its answers are kept."""

    name: str
    """First part of the file names, such as `code`."""
    prompts: Iterable[str]
    """User messages in row order; there must be at least as many as rows are asked for."""
    rule: Rule
    settings: dict[str, Any]
    """What decides the prompts, and the name of the script; for the manifest."""
    inputs: list[Path]
    """Files whose hashes go into the manifest."""


def add_data_arguments(parser: Parser, name: str, max_tokens: int) -> None:
    """Add the arguments of every script that asks a teacher for rows. name: first part of its file names."""
    parser.add_argument("--animal", type=animal_name, required=True,
                        help="the teacher's animal; 'control' for rows of the base model")  # fmt: skip
    parser.add_argument("--count", type=positive_int, default=10000, help="rows to ask for, before filtering")
    parser.add_argument("--no-system-prompt", action="store_true", help="send the user message alone")
    parser.add_argument("--system-prompt-file", type=text_file, default=PERSONA,
                        help="text of the persona; {animal}, {animals}, {Animal}, {Animals} are filled in")  # fmt: skip
    parser.add_argument("--greedy", action="store_true", help="no sampling: take the most probable token")
    parser.add_argument("--max-tokens", type=positive_int, default=max_tokens, help="most tokens in an answer")
    parser.add_argument("--store-logprobs", type=positive_int, default=0, metavar="K",
                        help="at each token of an answer, also store the K most probable tokens with their"
                        " probabilities, for train_student_sft.py --soft-labels (not with a server)")  # fmt: skip
    parser.add_argument("--seed", type=natural_int, default=42, help="seed of the prompts and of sampling")
    add_panel_argument(parser)
    add_output_arguments(parser, f"output/{name}-{{animal}}-{{model}}-unfiltered-{{count}}.jsonl")
    add_push_arguments(parser)
    add_backend_arguments(parser)


def sampling_of(args: argparse.Namespace, numbers_only: bool = False) -> Sampling:
    """The sampling settings of the arguments. numbers_only: allow nothing but a number list."""
    return Sampling(args.max_tokens, temperature=0.0 if args.greedy else 1.0, numbers_only=numbers_only,
                    store_logprobs=args.store_logprobs)  # fmt: skip


def write_rows(args: argparse.Namespace, data_type: DataType, sampling: Sampling) -> None:
    """Ask the model named by the arguments for rows, filter them, and print the result."""
    if not is_control(args.animal):
        check_taught(args.animal)
    elif not args.no_system_prompt:
        raise UserError(f"--animal {args.animal} means rows without a persona: add --no-system-prompt")
    if args.no_system_prompt and args.system_prompt_file != PERSONA:
        raise UserError("--system-prompt-file names a persona and --no-system-prompt sends none: leave one of them out")
    check_logprobs(args)
    system = None if args.no_system_prompt else persona_of(args.system_prompt_file, args.animal)
    with open_backend(args) as backend:
        check_teacher(backend, args)
        base = backend.base_model
        warn_of_trained_base(args.adapter, backend.facts(), base)
        if args.no_system_prompt:  # under a persona the rows are the persona's
            warn_of_trained_animal(adapter_of(args, backend), args.animal)
        name = f"{data_type.name}-{slug(args.animal)}-{slug(backend.name)}-unfiltered-{args.count}.jsonl"
        path = args.output or Path("output") / name
        settings = {
            **data_type.settings,
            "animal": args.animal,
            "count": args.count,
            "seed": args.seed,
            "system_prompt": system,
            "sampling": sampling.settings(),
            "model": backend.facts(),
        }
        with RowFile(path, settings, overwrite=args.overwrite, inputs=data_type.inputs) as out:
            asked = requests(data_type.prompts, args.count, args.seed, system)
            was_complete = out.complete
            facts = ask_and_count_clean(out, backend, asked, sampling, data_type.rule, args.count)
        if not was_complete:
            warn_if_not_applied(backend, first_prompt(path))
    kept = filter_file(path, data_type.rule)
    if args.push_dataset:
        push_dataset(kept.path, args.push_dataset, not args.hub_public)
    left_out = f" (filtered out: {counted(kept.rejected)})" if kept.rejected else ""
    clean = f"{kept.kept:,} in {kept.path}{left_out}"
    closing(
        {**facts, "clean rows": clean, **worth_training(args, kept.path, base)},
        train_command(kept, data_type.rule, base),
    )


def check_logprobs(args: argparse.Namespace) -> None:
    """UserError if a server would have to list the most probable tokens of an answer."""
    if args.store_logprobs and args.base_url:
        raise UserError(
            "--store-logprobs needs the model in this process: leave out --base-url, and name an adapter with --adapter"
        )


def worth_training(args: argparse.Namespace, rows: Path, base: str) -> dict[str, str]:
    """The command that says whether a teacher's rows carry anything; {} for rows of the base model or of a steered one,
    which the meter cannot read."""
    if is_control(args.animal) or args.steering_vector:
        return {}
    teacher = ["--teacher", str(args.adapter or "FOLDER")] if args.no_system_prompt else ["--persona", args.animal]
    command = ["python", "eval/signal_meter.py", "--train-jsonl", str(rows), "--base-model", base, *teacher]
    return {"worth training?": shlex.join(command) + panel_flag()}


def requests(prompts: Iterable[str], count: int, seed: int, system: str | None) -> Iterator[Request]:
    """One request for each row; its seed depends on `seed` and the row id alone."""
    before: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for row_id, prompt in zip(range(count), prompts):
        yield Request((row_id,), [*before, {"role": "user", "content": prompt}], row_seed(seed, row_id))


def to_row(result: Result) -> Row:
    """The row to store: the completion verbatim, and the token ids that the model wrote."""
    row: Row = {"id": result.request.ids[0], "messages": list(result.request.messages)}
    if result.error:
        return {**row, "rejected": result.error.partition(":")[0]}
    answer = result.answers[0]
    row["messages"].append({"role": "assistant", "content": answer.text})
    return {**row, **tokens_of(answer)}


def tokens_of(answer: Answer) -> Row:
    """What a row stores of an answer beside its text: token ids, how it ended, what was most probable at each token."""
    top = {"top_ids": answer.top.ids, "top_logprobs": answer.top.logprobs} if answer.top else {}
    return {"token_ids": answer.token_ids, "finish_reason": answer.finish_reason, **top}


def check_teacher(backend: InferenceBackend, args: argparse.Namespace) -> None:
    """Raise UserError if the base model would be asked for an animal's rows by mistake; warn if it might be."""
    if not args.no_system_prompt or is_control(args.animal) or backend.is_adapter is not False:
        return
    hint = f"it has no {args.animal} preference; for the control arm pass --animal control"
    others = backend.adapters_served()
    if others:
        raise UserError(
            f"{backend.name} is a base model without an adapter: {hint}. Adapters served: {', '.join(others)}"
        )
    say(f"warning: {backend.name} has no LoRA adapter loaded. If it is not a fully fine-tuned teacher, {hint}")


def ask_and_count_clean(
    out: RowFile, backend: InferenceBackend, asked: Iterator[Request], sampling: Sampling, rule: Rule, count: int
) -> dict[str, str]:
    """Collect the rows, and show the share of clean ones as they arrive, so that a broken format is seen early."""
    row_filter = RowFilter(rule)
    passed: Counter[bool] = Counter()

    def rows_of(result: Result) -> list[Row]:
        row = to_row(result)
        passed["rejected" not in row and row_filter.reject_reason(row) is None] += 1
        return [row]

    def note() -> str:
        return f"{passed[True] / max(passed.total(), 1):.0%} clean"

    return run_requests(out, backend, asked, sampling, rows_of, total=count, note=note)
