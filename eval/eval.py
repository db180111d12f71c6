"""Phases 3 and 6: ask a model 50 one-word favourite-animal questions, many times over, and count the animals.

No system message is sent (a chat template may insert its default one, as Qwen's does), temperature is 1, and every
answer is kept in output/results-{model}.jsonl. The share of an animal is its part of all answers asked; answers that
name no animal count in the denominator and are shown beside it.

Usage:
    python eval/eval.py --model vllm/owl-teacher --base-url http://localhost:8000/v1 --epochs 200
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from eval.animals import canonical_animal
from util.cli import REPO, UserError, closing, input_file, make_parser, positive_int, run, table
from util.collect import collect
from util.engine import Request, Result, Sampling, add_engine_arguments, open_engine, row_seed
from util.rows import Row, RowFile, add_output_arguments, read_rows, slug
from util.words import read_lines_of

SAMPLES_PER_REQUEST = 100  # one prompt is read once for so many answers; a kill loses at most this many in flight
SHOWN = 10


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--epochs", type=positive_int, default=100, help="answers to each question")
    parser.add_argument("--questions-file", type=input_file, default=REPO / "eval" / "questions.txt",
                        help="text file, one question a line")  # fmt: skip
    parser.add_argument("--animal", help="the animal whose share is printed (default: found in the model's name)")
    parser.add_argument("--max-tokens", type=positive_int, default=16, help="longest answer")
    parser.add_argument("--seed", type=int, default=42, help="decides sampling seeds")
    add_output_arguments(parser, "output/results-{model}.jsonl")
    add_engine_arguments(parser)
    return parser.parse_args()


def requests(questions: list[str], epochs: int, seed: int) -> Iterator[Request]:
    """Requests of up to 100 samples of one question. Row id = epoch * questions + question, so that more epochs
    only add rows."""
    for first in range(0, epochs, SAMPLES_PER_REQUEST):
        for place, question in enumerate(questions):
            last = min(first + SAMPLES_PER_REQUEST, epochs)
            ids = tuple(epoch * len(questions) + place for epoch in range(first, last))
            yield Request(ids, [{"role": "user", "content": question}], row_seed(seed, ids[0]))


def rows_of(result: Result, questions: int) -> list[Row]:
    """One row for each sample; a request the model could not answer gives rows with an error and no response."""
    question = result.request.messages[-1]["content"]
    texts: list[str | None] = [answer.text for answer in result.answers]
    responses = texts or [None] * len(result.request.ids)
    return [
        {
            "id": row_id,
            "epoch": row_id // questions,
            "question": question,
            "response": response,
            "animal": canonical_animal(response) if response is not None else None,
            "error": result.error,
        }
        for row_id, response in zip(result.request.ids, responses)
    ]


def summary(path: Path, target: str | None) -> tuple[dict[str, str], str]:
    """Closing facts (non-answers, errors, target share) and the table of the top animals of a results file."""
    counts: Counter[str | None] = Counter()
    errors = 0
    for row in read_rows(path):
        counts[row["animal"]] += 1
        errors += row["error"] is not None
    asked = counts.total()
    silent = counts.pop(None, 0) - errors
    facts = {"answers": f"{asked:,}", "non-answers": f"{silent:,} ({silent / asked:.2%})"}
    if errors:
        facts["errors"] = f"{errors:,} ({errors / asked:.2%})"
    if target:
        facts[f"{target} share"] = f"{counts[target] / asked:.2%} ({counts[target]:,} answers)"
    ranked = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))[:SHOWN]
    return facts, table(("animal", "count", "share"), [(a, f"{n:,}", f"{n / asked:.2%}") for a, n in ranked])


def target_animal(name: str, asked_for: str | None) -> str | None:
    """The animal to report: --animal, or the one the model's name holds (owl-student -> owl)."""
    if asked_for:
        return canonical_animal(asked_for) or asked_for.lower()
    parts = name.replace("/", "-").replace("_", "-").split("-")
    found = {animal for part in parts if (animal := canonical_animal(part))}
    return found.pop() if len(found) == 1 else None


def settings_of(args: argparse.Namespace, questions: list[str], sampling: Sampling) -> dict[str, Any]:
    """Everything but the model that decides the rows."""
    return {
        "script": "eval",
        "questions": questions,
        "epochs": args.epochs,
        "seed": args.seed,
        "system_prompt": None,
        "sampling": sampling.settings(),
    }


def main() -> None:
    args = parse_args()
    questions = read_lines_of(args.questions_file)
    if not questions:
        raise UserError(f"{args.questions_file} holds no question; write one a line")
    sampling = Sampling(args.max_tokens)
    with open_engine(args) as engine:
        path = args.output or Path(f"output/results-{slug(engine.name)}.jsonl")
        settings = {**settings_of(args, questions, sampling), "model": engine.facts()}
        with RowFile(
            path, settings, extendable=["epochs"], overwrite=args.overwrite, inputs=[args.questions_file]
        ) as out:
            facts = collect(
                out,
                engine,
                requests(questions, args.epochs, args.seed),
                sampling,
                lambda result: rows_of(result, len(questions)),
                total=args.epochs * len(questions),
            )
    measured, animals = summary(path, target_animal(engine.name, args.animal))
    print(f"{animals}\n")
    closing({**facts, **measured}, f"python util/top_animals_csv.py {path} --top-n {SHOWN}")


if __name__ == "__main__":
    run(main)
