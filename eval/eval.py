"""Phases 3 and 6: ask a model 50 one-word favourite-animal questions, many times over, and count the animals.

No system message is sent (a chat template may insert its default one, as Qwen's does; --system-prompt-file sends one),
temperature is 1, and every answer is kept in output/results-{model}.jsonl. The share of an animal is its part of all
answers asked; answers that name no animal count in the denominator and are shown beside it, by kind.

--exact works the shares out instead, with no sampling noise, and gives every animal of util/animals/names.py a
log-probability:
the margin of an animal is its own less the mean of the others, for effects too small for shares; its panel share is its
part of the one-word answers, for models that talk at length and leave the shares open. A served model lists only its
most probable next tokens; what they leave open is told as a bound.

Usage:
    python eval/eval.py --model vllm/owl-teacher --base-url http://localhost:8000/v1 --epochs 200
    python eval/eval.py --model vllm/owl-student --base-url http://localhost:8000/v1 --exact \\
        --questions-file eval/questions.txt eval/questions-paraphrased.txt eval/questions-forms.txt
"""

from __future__ import annotations

import argparse
import random
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from eval.compare.intervals import wilson
from util.animals.answer_parser import canonical_animal, non_answer_kind, parser_facts
from util.animals.names import persona, read_lines_of, warn_of_unlisted
from util.chat.prompt_consistency import Phase, base_of, disagreements, read_phase, system_message
from util.cli import REPO, UserError, closing, make_parser, nonblank, positive_int, run, say, table, text_file
from util.inference.interface import (
    AnswerTree,
    InferenceBackend,
    Message,
    Request,
    Result,
    Sampling,
    add_backend_arguments,
    open_backend,
    row_seed,
)
from util.inference.request_loop import run_requests
from util.jsonl.manifest import read_manifest
from util.jsonl.rows import Row, RowFile, add_output_arguments, read_rows, slug

SAMPLES_PER_REQUEST = 100  # one prompt is read once for so many answers; a kill loses at most this many in flight
EPOCHS = 100
SHOWN = 10
COVERAGE = 0.998  # mass of finished answers at which a question is exact enough
NODE_BUDGET = 200  # forward passes a question may take to get there
OPEN = 0.2  # more mass than this left open, and the shares say little


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--epochs", type=positive_int, help=f"answers to each question (default: {EPOCHS})")
    parser.add_argument("--questions-file", type=text_file, nargs="+", default=[REPO / "eval" / "questions.txt"],
                        metavar="FILE", help="text files, one question a line; each is a set")  # fmt: skip
    parser.add_argument("--system-prompt-file", type=text_file,
                        help="send this system message, as a training with --keep-system-prompt saw it; {animal},"
                        " {animals}, {Animal}, {Animals} are filled in")  # fmt: skip
    parser.add_argument("--exact", action="store_true", help="the exact share of each animal instead of samples")
    parser.add_argument("--sampler", choices=["samples", "tree"],
                        help="tree: the same law at a small part of the cost (embedded; default: samples)")  # fmt: skip
    parser.add_argument(
        "--animal", type=nonblank, help="the animal whose share is printed (default: found in the model's name)"
    )
    parser.add_argument("--max-tokens", type=positive_int, default=16, help="longest answer")
    parser.add_argument("--seed", type=int, default=42, help="decides sampling seeds")
    add_output_arguments(parser, "output/results-{model}.jsonl")
    add_backend_arguments(parser)
    args = parser.parse_args()
    unused = [flag for flag in ("epochs", "sampler") if args.exact and getattr(args, flag) is not None]
    if unused:
        say(f"--exact draws no answers: {' and '.join(f'--{flag}' for flag in unused)} not used")
    args.epochs, args.sampler = args.epochs or EPOCHS, args.sampler or "samples"
    return args


class Question(NamedTuple):
    """A question, the set it belongs to (the stem of its file) and the system message it is asked under, if any."""

    text: str
    set: str
    system: str | None = None

    @property
    def messages(self) -> list[Message]:
        return [*system_message(self.system), {"role": "user", "content": self.text}]


def read_questions(paths: list[Path]) -> list[Question]:
    """The questions of all files. UserError for a file without any, for two of one name and for a question twice."""
    questions: list[Question] = []
    seen: set[str] = set()
    for path in paths:
        if path.stem in {question.set for question in questions}:
            raise UserError(f"two files of questions are named {path.stem}; rename one, sets are told apart by name")
        lines = read_lines_of(path)
        if not lines:
            raise UserError(f"{path} holds no question; write one a line")
        if lines[0].startswith("{"):
            raise UserError(f"{path} holds JSON; questions are plain text, one a line")
        for line in lines:
            if line in seen:
                raise UserError(f"{path} asks a question that was asked before: {line!r}; leave it out once")
            seen.add(line)
            questions.append(Question(line, path.stem))
    return questions


# --- rows --------------------------------------------------------------------------------------------


def requests(questions: list[Question], epochs: int, seed: int) -> Iterator[Request]:
    """Requests of up to 100 samples of one question. Row id = epoch * questions + question, so that more epochs
    only add rows."""
    for first in range(0, epochs, SAMPLES_PER_REQUEST):
        for place, question in enumerate(questions):
            last = min(first + SAMPLES_PER_REQUEST, epochs)
            ids = tuple(epoch * len(questions) + place for epoch in range(first, last))
            yield Request(ids, question.messages, row_seed(seed, ids[0]))


def to_row(row_id: int, questions: list[Question], response: str | None, error: str | None = None) -> Row:
    """One answer, parsed. An error has no response and names no animal."""
    question = questions[row_id % len(questions)]
    return {
        "id": row_id,
        "epoch": row_id // len(questions),
        "set": question.set,
        "question": question.text,
        "response": response,
        "animal": canonical_animal(response) if response is not None else None,
        "error": error,
    }


def rows_of(result: Result, questions: list[Question]) -> list[Row]:
    """One row for each sample; a request the model could not answer gives rows with an error and no response."""
    texts: list[str | None] = [answer.text for answer in result.answers]
    responses = texts or [None] * len(result.request.ids)
    return [to_row(i, questions, text, result.error) for i, text in zip(result.request.ids, responses)]


def tree_rows(tree: AnswerTree, questions: list[Question], epochs: int, max_tokens: int, seed: int) -> Iterator[Row]:
    """The rows that sampling would give, drawn down the answer tree, in seeded random order."""
    from eval.answer_tree import sample_answers

    drawn = sample_answers(tree, [epochs] * len(questions), max_tokens, seed)
    for place, counts in enumerate(drawn):
        texts = sorted(counts.elements())
        random.Random(row_seed(seed, place)).shuffle(texts)
        for epoch, text in enumerate(texts):
            yield to_row(epoch * len(questions) + place, questions, text)


def exact_rows(tree: AnswerTree, questions: list[Question], max_tokens: int) -> list[Row]:
    """One row for each question: the exact share of every animal, the uncovered rest, and log-probabilities."""
    from eval.answer_tree import answer_distributions, distribution_row, log_shares

    found = answer_distributions(tree, [question.text for question in questions], max_tokens, COVERAGE, NODE_BUDGET)
    return [
        {**distribution_row(place, one, canonical_animal), "set": question.set, "log_shares": logs}
        for place, (question, one, logs) in enumerate(zip(questions, found, log_shares(tree)))
    ]


# --- summaries ---------------------------------------------------------------------------------------


def summary(path: Path, target: str | None) -> tuple[dict[str, str], str]:
    """Closing facts (non-answers, errors, target share) and the table of the top animals of a results file."""
    found: Counter[tuple[str, str | None]] = Counter()  # (set, animal)
    kinds: Counter[str] = Counter()
    errors = 0
    for row in read_rows(path):
        found[row.get("set", ""), row["animal"]] += 1  # rows of an older version have no set
        errors += row["error"] is not None
        if row["animal"] is None and row["error"] is None:
            kinds[non_answer_kind(row["response"])] += 1
    counts: Counter[str | None] = Counter()
    for (_, animal), count in found.items():
        counts[animal] += count
    asked = counts.total()
    del counts[None]
    silent = f"{kinds.total():,} ({kinds.total() / asked:.2%})"
    facts = {"answers": f"{asked:,}", "non-answers": silent + kinds_told({k: n / asked for k, n in kinds.items()})}
    if errors:
        facts["errors"] = f"{errors:,} ({errors / asked:.2%})"
    if target:
        low, high = wilson(counts[target], asked)
        noise = f"sampling noise {100 * low:.2f} to {100 * high:.2f}%"
        facts[f"{target} share"] = f"{counts[target] / asked:.2%} ({counts[target]:,} answers; {noise})"
        for name in several(name for name, _ in found):
            of_set = sum(count for (one, _), count in found.items() if one == name)
            named = found[name, target]
            facts[f"in {name}"] = f"{named / of_set:.2%} ({named:,} of {of_set:,} answers)"
    ranked = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))[:SHOWN]
    return facts, table(("animal", "count", "share"), [(a, f"{n:,}", f"{n / asked:.2%}") for a, n in ranked])


def exact_summary(path: Path, target: str | None) -> tuple[dict[str, str], str]:
    """Closing facts and the table of the top animals of an exact results file."""
    from eval.answer_tree import logit_margin, mean_kinds, mean_over_questions, mean_shares, panel_share

    rows = list(read_rows(path))
    shares, none, uncovered = mean_shares(rows)
    facts = {
        "non-answers": f"{none:.2%}{kinds_told(mean_kinds(rows))}",
        "uncovered": f"{uncovered:.3%} (each share is at most so much higher)",
    }
    if target:
        facts[f"{target} share"] = f"{shares.get(target, 0.0):.3%} (exact)"
        margin, panel = (mean_over_questions(rows, target, measure) for measure in (logit_margin, panel_share))
        if margin is not None:
            facts[f"{target} margin"] = f"{margin:+.3f} nats above the mean of the other animals"
            facts[f"{target} panel share"] = f"{panel:.3%} of the one-word answers that name an animal of the panel"
        for name in several(row.get("set", "") for row in rows):
            of_set = [row for row in rows if row.get("set", "") == name]
            share, margin = mean_shares(of_set)[0].get(target, 0.0), mean_over_questions(of_set, target, logit_margin)
            facts[f"in {name}"] = f"{share:.3%}" + ("" if margin is None else f", margin {margin:+.3f}")
    if uncovered > OPEN:
        say("the model talks at length, its shares stay open: compare margins or panel shares, or sample answers")
    ranked = list(shares.items())[:SHOWN]
    return facts, table(("animal", "exact share"), [(animal, f"{share:.3%}") for animal, share in ranked])


def several(names: Iterable[str]) -> list[str]:
    """The different names if there are several, else none: a single set is the whole."""
    different = list(dict.fromkeys(filter(None, names)))
    return different if len(different) > 1 else []


def kinds_told(kinds: dict[str, float]) -> str:
    """': model name 1.20%, number 0.30%', the most frequent kind first, or ''."""
    ranked = sorted(kinds.items(), key=lambda item: -item[1])
    return ": " + ", ".join(f"{kind} {share:.2%}" for kind, share in ranked) if ranked else ""


def target_animal(name: str, asked_for: str | None) -> str | None:
    """The animal to report: --animal, or the one the model's name holds (red-panda-student -> red panda)."""
    if asked_for:
        return canonical_animal(asked_for) or asked_for.lower()
    return canonical_animal(re.sub(r"[-_/]+", " ", name))


def trained_animal(adapter: Path | None) -> str | None:
    """The animal in the name of the file that an adapter was trained on, where its manifest is there."""
    manifest = (read_manifest(adapter.parent) if adapter else None) or {}
    return target_animal(Path(manifest.get("train_jsonl", "")).stem, None)


def system_prompt(args: argparse.Namespace, model: str) -> str | None:
    """The system message to send, filled in for the animal of the run; None without --system-prompt-file."""
    if args.system_prompt_file is None:
        return None
    template = args.system_prompt_file.read_text("utf-8-sig").strip()
    animal = target_animal(model, args.animal)
    if persona(template, "owl") != template and animal is None:
        raise UserError(f"{args.system_prompt_file} has a place for an animal and {model} names none; pass --animal")
    return persona(template, animal or "")


def warn_of_training(adapter: Path | None, question: Question, facts: dict[str, Any], base_model: str) -> None:
    """Say so when the adapter was trained on another base model or under another system message than is asked now."""
    folder = adapter or facts.get("root")
    training = read_phase(Path(folder)) if folder and Path(folder).is_dir() else None
    if training is None or training.kind != "training":
        return
    asked = Phase("evaluation", training.path, base_of(facts, base_model), question.messages)
    if found := disagreements(training, asked):
        say(
            f"warning: {'; '.join(found)}: an effect may be missed (--system-prompt-file sends a system message,"
            " --model asks another base)"
        )


def settings_of(args: argparse.Namespace, questions: list[Question], sampling: Sampling) -> dict[str, Any]:
    """Everything but the model that decides the rows."""
    how = (
        {"coverage": COVERAGE, "node_budget": NODE_BUDGET} if args.exact else {"epochs": args.epochs, "seed": args.seed}
    )
    return {
        "script": "eval",
        "measure": "exact" if args.exact else args.sampler,
        "parser": parser_facts(),
        "questions": [question.text for question in questions],
        **({"sets": Counter(question.set for question in questions)} if len(args.questions_file) > 1 else {}),
        **how,
        "system_prompt": questions[0].system,
        "sampling": sampling.settings(),
    }


def main() -> None:
    args = parse_args()
    questions = read_questions(args.questions_file)
    sampling = Sampling(args.max_tokens)
    drawn = args.sampler == "tree" and not args.exact
    if drawn and args.base_url:
        raise UserError(
            "--sampler tree needs whole distributions, which a server does not tell; leave it out, or leave out"
            " --base-url and pass --adapter FOLDER"
        )
    if args.animal is not None:
        warn_of_unlisted(args.animal)
    with open_backend(args) as backend:
        system = system_prompt(args, backend.name)
        questions = [question._replace(system=system) for question in questions]
        path = args.output or Path(f"output/{'exact' if args.exact else 'results'}-{slug(backend.name)}.jsonl")
        # Before the file is opened: a server that cannot tell probabilities is refused with nothing written.
        needs_tree = (args.exact or drawn) and (args.overwrite or not path.exists())
        tree = backend.answer_tree([question.messages for question in questions]) if needs_tree else None
        settings = {**settings_of(args, questions, sampling), "model": backend.facts()}
        warn_of_training(args.adapter, questions[0], settings["model"], backend.base_model)
        grows = ["epochs"] if settings["measure"] == "samples" else []
        with RowFile(path, settings, extendable=grows, overwrite=args.overwrite, inputs=args.questions_file) as out:
            facts = measure(args, backend, tree, questions, sampling, out)
    target = target_animal(backend.name, args.animal) or trained_animal(args.adapter)
    measured, animals = exact_summary(path, target) if args.exact else summary(path, target)
    print(f"{animals}\n")
    after = None if args.exact else f"python util/top_animals_csv.py {shlex.quote(str(path))} --top-n {SHOWN}"
    closing({**facts, **measured}, after)
    if target is None:
        say(f"no animal in the name {backend.name}: --animal owl prints the share of owl, same command otherwise")


def measure(
    args: argparse.Namespace,
    backend: InferenceBackend,
    tree: AnswerTree | None,
    questions: list[Question],
    sampling: Sampling,
    out: RowFile,
) -> dict[str, str]:
    """Fill the results file the way the arguments ask for; returns the closing facts."""
    if out.complete or tree is None:
        asked = requests(questions, args.epochs, args.seed)
        total = args.epochs * len(questions)
        return run_requests(out, backend, asked, sampling, lambda result: rows_of(result, questions), total)
    if args.exact:
        out.append(exact_rows(tree, questions, args.max_tokens))
    else:
        out.append(tree_rows(tree, questions, args.epochs, args.max_tokens, args.seed))
    out.finish()
    return out.facts()


if __name__ == "__main__":
    run(main)
