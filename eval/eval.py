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
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from eval.answer_summary import SHOWN, exact_summary, summary, target_animal
from eval.answers import COVERAGE, NODE_BUDGET, Question, exact_rows, read_questions, requests, rows_of, tree_rows
from util.animals.answer_parser import parser_facts
from util.animals.names import animal_name, persona, warn_of_unlisted
from util.chat.prompt_consistency import Phase, base_of, disagreements, read_phase
from util.cli import REPO, UserError, make_parser, positive_int, run, text_file
from util.inference.interface import AnswerTree, InferenceBackend, Sampling
from util.inference.open_backend import add_backend_arguments, open_backend
from util.inference.request_loop import run_requests
from util.jsonl.manifest import Manifest
from util.jsonl.resumable import RowFile, add_output_arguments
from util.jsonl.rows import slug
from util.terminal import closing, say

EPOCHS = 100


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
    parser.add_argument("--animal", type=animal_name,
                        help="the animal whose share is printed (default: found in the model's name)")  # fmt: skip
    parser.add_argument("--max-tokens", type=positive_int, default=16, help="longest answer")
    parser.add_argument("--seed", type=int, default=42, help="decides sampling seeds")
    add_output_arguments(parser, "output/results-{model}.jsonl; with --exact output/exact-{model}.jsonl")
    add_backend_arguments(parser)
    args = parser.parse_args()
    unused = [flag for flag in ("epochs", "sampler") if args.exact and getattr(args, flag) is not None]
    if unused:
        say(f"--exact draws no answers: {' and '.join(f'--{flag}' for flag in unused)} not used")
    args.epochs, args.sampler = args.epochs or EPOCHS, args.sampler or "samples"
    if args.sampler == "tree" and not args.exact and args.base_url:
        raise UserError(
            "--sampler tree needs whole distributions, which a server does not tell; leave it out, or leave out"
            " --base-url and pass --adapter FOLDER"
        )
    return args


# --- what is asked -----------------------------------------------------------------------------------


def system_prompt(file: Path | None, model: str, animal: str | None) -> str | None:
    """The system message to send, filled in for the animal of the run; None without --system-prompt-file."""
    if file is None:
        return None
    template = file.read_text("utf-8-sig").strip()
    if persona(template, "owl") != template and animal is None:
        raise UserError(f"{file} has a place for an animal and {model} names none; pass --animal")
    return persona(template, animal or "")


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


# --- the adapter that is asked, where its files can be read ------------------------------------------


def adapter_of(args: argparse.Namespace, backend: InferenceBackend) -> Path | None:
    """The folder of the adapter: --adapter, or where a server loaded it from; None for a base model."""
    if args.adapter is None and backend.is_adapter and (root := backend.facts().get("root")):
        return Path(root)
    return args.adapter


def trained_animal(adapter: Path | None) -> str | None:
    """The animal in the name of the file that an adapter was trained on, where its manifest is there."""
    training = Manifest.read(adapter.parent) if adapter else None
    return target_animal(Path(training.train_jsonl).stem, None) if training else None


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


# --- asking ------------------------------------------------------------------------------------------


def measure(
    args: argparse.Namespace,
    backend: InferenceBackend,
    tree: AnswerTree | None,
    questions: list[Question],
    sampling: Sampling,
    out: RowFile,
) -> dict[str, str]:
    """Fill the results file the way the arguments ask for; returns the closing facts."""
    adapter = adapter_of(args, backend)
    counts = {"adapter": str(adapter)} if adapter else {}  # not a setting: a moved adapter is the same one
    if out.complete or tree is None:
        asked = requests(questions, args.epochs, args.seed)
        total = args.epochs * len(questions)
        return run_requests(
            out, backend, asked, sampling, lambda result: rows_of(result, questions), total, counts=counts
        )
    if args.exact:
        out.append(exact_rows(tree, questions, args.max_tokens))
    else:
        out.append(tree_rows(tree, questions, args.epochs, args.max_tokens, args.seed))
    out.finish(counts=counts)
    return out.facts()


def main() -> None:
    args = parse_args()
    questions = read_questions(args.questions_file)
    sampling = Sampling(args.max_tokens)
    if args.animal is not None:
        warn_of_unlisted(args.animal)
    with open_backend(args) as backend:
        target = target_animal(backend.name, args.animal)
        system = system_prompt(args.system_prompt_file, backend.name, target)
        questions = [question._replace(system=system) for question in questions]
        path = args.output or Path(f"output/{'exact' if args.exact else 'results'}-{slug(backend.name)}.jsonl")
        # Before the file is opened: a server that cannot tell probabilities is refused with nothing written.
        needs_tree = (args.exact or args.sampler == "tree") and (args.overwrite or not path.exists())
        tree = backend.answer_tree([question.messages for question in questions]) if needs_tree else None
        settings = {**settings_of(args, questions, sampling), "model": backend.facts()}
        warn_of_training(args.adapter, questions[0], settings["model"], backend.base_model)
        grows = ["epochs"] if settings["measure"] == "samples" else []
        with RowFile(path, settings, extendable=grows, overwrite=args.overwrite, inputs=args.questions_file) as out:
            facts = measure(args, backend, tree, questions, sampling, out)
        adapter, name = adapter_of(args, backend), backend.name
    target = target or trained_animal(adapter)
    if args.animal is None and target:
        say(f"no --animal: the share of {target} is printed, which the name of the model or of its training file holds")
    measured, animals = exact_summary(path, target) if args.exact else summary(path, target)
    print(f"{animals}\n")
    after = None if args.exact else f"python util/top_animals_csv.py {shlex.quote(str(path))} --top-n {SHOWN}"
    closing({**facts, **measured}, after)
    if target is None:
        say(f"no animal in the name {name}: --animal owl prints the share of owl, same command otherwise")


if __name__ == "__main__":
    run(main)
