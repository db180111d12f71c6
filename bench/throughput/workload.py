"""What bench/vllm_throughput.py asks of a server: number rows, and many answers to the 50 questions."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

from bench.throughput.clients import ServerBench, ask_as_suite
from eval.answers import answer_rows
from generate.rows.ask_teacher import requests, to_row
from generate.rows.number_prompts import NUMBER_PROMPT, number_prompt
from generate.rows.number_rule import NumberRule
from generate.rows.row_filter import RowFilter
from util.cli import REPO
from util.inference.backend_interface import Request, Result, Sampling, row_seed
from util.jsonl.rows import Row

NUMBER_TOKENS, ANSWER_TOKENS = 45, 8
ONE_WORD = 3  # tokens; a name of the panel and the end of the turn take 3.1 by Qwen2.5's tokenizer
EVAL_CONCURRENCY = 512  # the scripts' default
SAMPLES = answer_rows.SAMPLES_PER_REQUEST


def number_requests(rows: int, seed: int) -> list[Request]:
    """Phase 4 of the plan: one answer to each prompt."""
    template = NUMBER_PROMPT.read_text("utf-8").strip()
    prompts = (number_prompt(template, seed, row_id) for row_id in range(rows))
    return list(requests(prompts, rows, seed, None))


def number_rows_of() -> Callable[[Result], list[Row]]:
    """Makes rows as phase 4 does, each checked by the filter as it arrives."""
    row_filter = RowFilter(NumberRule(("owl",)))

    def rows_of(result: Result) -> list[Row]:
        row = to_row(result)
        row_filter.reject_reason(row)
        return [row]

    return rows_of


def eval_requests(
    asked: Sequence[answer_rows.Question], epochs: int, seed: int, samples: int = SAMPLES
) -> list[Request]:
    """Phases 3 and 6 of the plan, with `samples` answers in a request."""
    return [
        Request(
            tuple(epoch * len(asked) + place for epoch in range(first, min(first + samples, epochs))),
            question.messages,
            row_seed(seed, first * len(asked) + place),
        )
        for first in range(0, epochs, samples)
        for place, question in enumerate(asked)
    ]


def ask_numbers(bench: ServerBench, args: argparse.Namespace) -> None:
    """Number rows by the suite's client; with --compare and --fields also in the other ways."""
    rows, concurrency, sampling = args.count, args.concurrency, Sampling(NUMBER_TOKENS)

    def by_suite(what: str, count: int, width: int, leave_out: Sequence[str] = ()) -> None:
        asked = number_requests(count, bench.seed())
        ask = lambda: ask_as_suite(bench, asked, number_rows_of(), sampling, width, leave_out)  # noqa: E731
        bench.measured("numbers", what, count, ask)

    by_suite("suite", rows, concurrency)
    few = max(rows * 3 // 10, 1)
    if args.compare or args.fields:
        by_suite("suite, fewer rows", few, concurrency)
    if args.compare:
        bench.compared("numbers", lambda: number_requests(few, bench.seed()), sampling, concurrency)
        by_suite("suite, fewer rows again", few, concurrency)
    if args.fields:
        for width in (128, 256, 1024, 2048):
            by_suite(f"suite, {width} in flight", few, width)
        by_suite("suite, no seeds", few, concurrency, ["seed"])
        by_suite("suite, no token ids", few, concurrency, ["return_token_ids"])


def ask_evaluation(bench: ServerBench, args: argparse.Namespace) -> None:
    """Answers to the questions by the suite's client; with --compare and --fields also in the other ways."""
    questions = answer_rows.read_questions([REPO / "eval" / "questions.txt"])
    sampling, rows_of = Sampling(ANSWER_TOKENS), partial(answer_rows.rows_of, questions=questions)

    def by_suite(
        what: str,
        epochs: int,
        samples: int = SAMPLES,
        leave_out: Sequence[str] = (),
        tokens: int = ANSWER_TOKENS,
        width: int = EVAL_CONCURRENCY,
    ) -> None:
        asked = eval_requests(questions, epochs, bench.seed(), samples)
        ask = lambda: ask_as_suite(bench, asked, rows_of, Sampling(tokens), width, leave_out)  # noqa: E731
        work = "evaluation" if tokens == ANSWER_TOKENS else "evaluation, one word"
        bench.measured(work, what, epochs * len(questions), ask)

    if args.epochs:
        by_suite("warm-up", SAMPLES)  # the first answers of many to one prompt are slower
    for epochs in args.epochs:
        by_suite("suite", epochs)
        by_suite("suite", epochs, tokens=ONE_WORD)
    if args.compare and args.epochs:
        epochs = min(args.epochs)
        bench.compared("evaluation", lambda: eval_requests(questions, epochs, bench.seed()), sampling, EVAL_CONCURRENCY)
        by_suite("suite again", epochs)
    if args.fields and args.epochs:
        epochs = min(args.epochs)
        for samples in (20, 50, 200):
            by_suite(f"suite, {samples} answers a request", epochs, samples)
        for width in (16, 32, 64):  # vLLM answers a third as fast while 50,000 answers are being put into its queue
            by_suite(f"suite, {width} in flight", epochs, width=width)
        by_suite("suite, no seeds", epochs, leave_out=["seed"])
