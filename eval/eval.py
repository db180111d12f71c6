"""Phases 3 and 6: ask a model 50 one-word favourite-animal questions, many times over, and count the animals.

No system message is sent (a chat template may insert its default one, as Qwen's does; --system-prompt-file sends one),
temperature is 1, and every answer is kept in output/results-{model}.jsonl. The share of an animal is its part of all
answers asked; answers that name no animal count in the denominator and are shown beside it.

Usage:
    python eval/eval.py --model vllm/owl-teacher --base-url http://localhost:8000/v1 --epochs 200
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from eval.animals import canonical_animal
from util.cli import REPO, UserError, closing, make_parser, positive_int, run, say, table, text_file
from util.collect import collect
from util.engine import Engine, Message, Request, Result, Sampling, add_engine_arguments, open_engine, row_seed
from util.prompts import Phase, base_of, disagreements, read_phase, system_message
from util.provenance import sha256_text
from util.rows import Row, RowFile, add_output_arguments, read_rows, slug
from util.words import persona, read_lines_of

SAMPLES_PER_REQUEST = 100  # one prompt is read once for so many answers; a kill loses at most this many in flight
SHOWN = 10
PARSER = (REPO / "eval" / "animals.py", REPO / "eval" / "animals.txt")
COVERAGE = 0.998  # mass of finished answers at which a question is exact enough
NODE_BUDGET = 200  # forward passes a question may take to get there


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--epochs", type=positive_int, default=100, help="answers to each question")
    parser.add_argument("--questions-file", type=text_file, default=REPO / "eval" / "questions.txt",
                        help="text file, one question a line")  # fmt: skip
    parser.add_argument("--system-prompt-file", type=text_file,
                        help="send this system message, as a training with --keep-system-prompt saw it; {animal},"
                        " {animals}, {Animal}, {Animals} are filled in")  # fmt: skip
    parser.add_argument("--exact", action="store_true",
                        help="the exact share of each animal instead of samples (embedded engine)")  # fmt: skip
    parser.add_argument("--sampler", choices=["samples", "tree"], default="samples",
                        help="tree: the same law at a small part of the cost (embedded engine)")  # fmt: skip
    parser.add_argument("--animal", help="the animal whose share is printed (default: found in the model's name)")
    parser.add_argument("--max-tokens", type=positive_int, default=16, help="longest answer")
    parser.add_argument("--seed", type=int, default=42, help="decides sampling seeds")
    add_output_arguments(parser, "output/results-{model}.jsonl")
    add_engine_arguments(parser)
    return parser.parse_args()


def messages_of(question: str, system: str | None) -> list[Message]:
    """What is sent for a question."""
    return [*system_message(system), {"role": "user", "content": question}]


def requests(questions: list[str], epochs: int, seed: int, system: str | None) -> Iterator[Request]:
    """Requests of up to 100 samples of one question. Row id = epoch * questions + question, so that more epochs
    only add rows."""
    for first in range(0, epochs, SAMPLES_PER_REQUEST):
        for place, question in enumerate(questions):
            last = min(first + SAMPLES_PER_REQUEST, epochs)
            ids = tuple(epoch * len(questions) + place for epoch in range(first, last))
            yield Request(ids, messages_of(question, system), row_seed(seed, ids[0]))


def to_row(row_id: int, questions: list[str], response: str | None, error: str | None = None) -> Row:
    """One answer, parsed. An error has no response and names no animal."""
    return {
        "id": row_id,
        "epoch": row_id // len(questions),
        "question": questions[row_id % len(questions)],
        "response": response,
        "animal": canonical_animal(response) if response is not None else None,
        "error": error,
    }


def rows_of(result: Result, questions: list[str]) -> list[Row]:
    """One row for each sample; a request the model could not answer gives rows with an error and no response."""
    texts: list[str | None] = [answer.text for answer in result.answers]
    responses = texts or [None] * len(result.request.ids)
    return [to_row(i, questions, text, result.error) for i, text in zip(result.request.ids, responses)]


def tree_rows(
    engine: Engine, questions: list[str], epochs: int, max_tokens: int, seed: int, system: str | None
) -> Iterator[Row]:
    """The rows that sampling would give, drawn down the answer tree, in seeded random order."""
    from eval.exact import sample_answers

    tree = engine.answer_tree([messages_of(question, system) for question in questions])
    drawn = sample_answers(tree, [epochs] * len(questions), max_tokens, seed)
    for place, counts in enumerate(drawn):
        texts = sorted(counts.elements())
        random.Random(row_seed(seed, place)).shuffle(texts)
        for epoch, text in enumerate(texts):
            yield to_row(epoch * len(questions) + place, questions, text)


def exact_rows(engine: Engine, questions: list[str], max_tokens: int, system: str | None) -> list[Row]:
    """One row for each question: the exact share of every animal, with the uncovered rest."""
    from eval.exact import answer_distributions, distribution_row

    tree = engine.answer_tree([messages_of(question, system) for question in questions])
    found = answer_distributions(tree, questions, max_tokens, COVERAGE, NODE_BUDGET)
    return [distribution_row(place, question, canonical_animal) for place, question in enumerate(found)]


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


def exact_summary(path: Path, target: str | None) -> tuple[dict[str, str], str]:
    """Closing facts and the table of the top animals of an exact results file."""
    from eval.exact import mean_shares

    shares, none, uncovered = mean_shares(list(read_rows(path)))
    facts = {"non-answers": f"{none:.2%}", "uncovered": f"{uncovered:.3%} (each share is at most so much higher)"}
    if target:
        facts[f"{target} share"] = f"{shares.get(target, 0.0):.3%} (exact)"
    ranked = list(shares.items())[:SHOWN]
    return facts, table(("animal", "exact share"), [(animal, f"{share:.3%}") for animal, share in ranked])


def target_animal(name: str, asked_for: str | None) -> str | None:
    """The animal to report: --animal, or the one the model's name holds (red-panda-student -> red panda)."""
    if asked_for:
        return canonical_animal(asked_for) or asked_for.lower()
    return canonical_animal(re.sub(r"[-_/]+", " ", name))


def system_prompt(args: argparse.Namespace, model: str) -> str | None:
    """The system message to send, filled in for the animal of the run; None without --system-prompt-file."""
    if args.system_prompt_file is None:
        return None
    template = args.system_prompt_file.read_text("utf-8").strip()
    animal = target_animal(model, args.animal)
    if persona(template, "owl") != template and animal is None:
        raise UserError(f"{args.system_prompt_file} has a place for an animal and {model} names none; pass --animal")
    return persona(template, animal or "")


def warn_of_training(adapter: Path | None, settings: dict[str, Any], base_model: str) -> None:
    """Say so when the adapter was trained on another base model or under another system message than is asked now."""
    folder = adapter or settings["model"].get("root")
    training = read_phase(Path(folder)) if folder and Path(folder).is_dir() else None
    if training is None or training.kind != "training":
        return
    messages = messages_of(settings["questions"][0], settings["system_prompt"])
    asked = Phase("evaluation", training.path, base_of(settings["model"], base_model), messages)
    if found := disagreements(training, asked):
        say(f"warning: {'; '.join(found)}: an effect may be missed (--system-prompt-file sends a system message)")


def settings_of(
    args: argparse.Namespace, questions: list[str], sampling: Sampling, system: str | None
) -> dict[str, Any]:
    """Everything but the model that decides the rows."""
    how = (
        {"coverage": COVERAGE, "node_budget": NODE_BUDGET} if args.exact else {"epochs": args.epochs, "seed": args.seed}
    )
    return {
        "script": "eval",
        "measure": "exact" if args.exact else args.sampler,
        "parser_sha256": sha256_text("".join(path.read_text("utf-8") for path in PARSER)),
        "questions": questions,
        **how,
        "system_prompt": system,
        "sampling": sampling.settings(),
    }


def main() -> None:
    args = parse_args()
    questions = read_lines_of(args.questions_file)
    if not questions:
        raise UserError(f"{args.questions_file} holds no question; write one a line")
    sampling = Sampling(args.max_tokens)
    with open_engine(args) as engine:
        system = system_prompt(args, engine.name)
        path = args.output or Path(f"output/{'exact' if args.exact else 'results'}-{slug(engine.name)}.jsonl")
        settings = {**settings_of(args, questions, sampling, system), "model": engine.facts()}
        warn_of_training(args.adapter, settings, engine.base_model)
        grows = ["epochs"] if settings["measure"] == "samples" else []
        with RowFile(path, settings, extendable=grows, overwrite=args.overwrite, inputs=[args.questions_file]) as out:
            facts = measure(args, engine, questions, sampling, out, system)
    target = target_animal(engine.name, args.animal)
    measured, animals = exact_summary(path, target) if args.exact else summary(path, target)
    print(f"{animals}\n")
    after = None if args.exact else f"python util/top_animals_csv.py {path} --top-n {SHOWN}"
    closing({**facts, **measured}, after)


def measure(
    args: argparse.Namespace, engine: Engine, questions: list[str], sampling: Sampling, out: RowFile, system: str | None
) -> dict[str, str]:
    """Fill the results file the way the arguments ask for; returns the closing facts."""
    if not args.exact and args.sampler == "samples":
        asked = requests(questions, args.epochs, args.seed, system)
        total = args.epochs * len(questions)
        return collect(out, engine, asked, sampling, lambda result: rows_of(result, questions), total)
    if not out.complete:
        if args.exact:
            out.append(exact_rows(engine, questions, args.max_tokens, system))
        else:
            out.append(tree_rows(engine, questions, args.epochs, args.max_tokens, args.seed, system))
        out.finish()
    return out.facts()


if __name__ == "__main__":
    run(main)
