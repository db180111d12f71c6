"""Phases 3 and 6: ask a model 50 one-word favourite-animal questions, many times each, and count the animals.

No system message is sent (a chat template may insert a default one, as Qwen's does; --system-prompt-file sends one).
The temperature is 1, and every answer is kept in output/results-{model}.jsonl. The share of an animal is its fraction
of all answers. Answers that name no animal count in the denominator, and are printed by what they
are: numbers, a model's name, nothing and so on.

--exact computes the shares instead, without sampling noise, and the log-probability of every animal of the panel
(util/animals/panel.py). The margin of an animal is its log-probability less the mean of the others': use it for effects
that are too small for shares. Its panel share is its fraction of the one-word answers: use it for models that write
long answers, for which shares are not exact. A server lists only the most probable next tokens; the rest is reported as
a bound.

Several adapters are measured one after the other, each into a file of its own. The same command skips those that are
finished.

Usage:
    python eval/eval.py --model vllm/owl-teacher --base-url http://localhost:8000/v1 --epochs 200
    python eval/eval.py --model vllm/owl-student --base-url http://localhost:8000/v1 --exact \\
        --questions-file eval/questions.txt eval/questions-paraphrased.txt eval/questions-forms.txt
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from eval.answers.adapter_training_warnings import trained_animal, warn_of_training, warn_of_weak_teacher
from eval.answers.answer_rows import (
    COVERAGE,
    NODE_BUDGET,
    Question,
    default_questions,
    exact_rows,
    has_failed,
    read_questions,
    requests,
    rows_of,
    tree_rows,
)
from eval.answers.check_parser_version import check_parser
from eval.answers.print_answer_summary import SHOWN, exact_summary, summary, target_animal
from eval.answers.shares_to_wandb import log_shares, student_run
from util.animals.answer_parser import parser_facts
from util.animals.names import animal_name, persona
from util.animals.panel import panel, panel_flag
from util.animals.panel_file import add_panel_argument
from util.cli import UserError, make_parser, natural_int, positive_int, run, text_file
from util.inference.adapter_applied import first_prompt, warn_if_not_applied
from util.inference.adapter_training import adapter_of, training_facts
from util.inference.backend_interface import AnswerTree, InferenceBackend, Sampling
from util.inference.open_backend import add_backend_arguments, open_backend
from util.inference.request_loop import run_requests
from util.jsonl.resumable import RowFile, add_output_arguments
from util.jsonl.rows import slug
from util.terminal import closing, duration, say

EPOCHS = 100


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--epochs", type=positive_int, help=f"answers to each question (default: {EPOCHS})")
    parser.add_argument("--questions-file", type=text_file, nargs="+", metavar="FILE",
                        help="text files, one question per line; each file is a set (default: the panel's questions,"
                        " eval/questions.txt for animals)")  # fmt: skip
    parser.add_argument("--system-prompt-file", type=text_file,
                        help="system message to send, as in a training with --keep-system-prompt; {animal},"
                        " {animals}, {Animal}, {Animals} are filled in")  # fmt: skip
    parser.add_argument("--exact", action="store_true", help="compute exact shares instead of sampling")
    parser.add_argument("--sampler", choices=["samples", "tree"],
                        help="tree: same distribution, cheaper for one-word answers (default: samples)")  # fmt: skip
    parser.add_argument("--animal", type=animal_name,
                        help="the animal whose share is printed (default: found in the model's name)")  # fmt: skip
    parser.add_argument("--max-tokens", type=positive_int, default=16, help="longest answer, in tokens")
    parser.add_argument("--seed", type=natural_int, default=42, help="seed of sampling")
    parser.add_argument("--report-to", choices=["none", "wandb"], default="none",
                        help="wandb: also write the shares into the W&B run of the adapter's training")  # fmt: skip
    add_panel_argument(parser)
    names = "output/results-{model}.jsonl; with --exact output/exact-{model}.jsonl"
    add_output_arguments(parser, names, several=True)
    add_backend_arguments(parser, several_adapters=True)
    args = parser.parse_args()
    args.adapter = args.adapter or [None]
    args.output = args.output or [None] * len(args.adapter)
    if len(args.output) != len(args.adapter):
        parser.error(f"one --output for each adapter: found {len(args.output)} for {len(args.adapter)}")
    if len(set(args.output) - {None}) < len([path for path in args.output if path]):
        parser.error("--output names a file twice; each adapter has a file of its own")
    args.questions_file = args.questions_file or [default_questions()]
    unused = [flag for flag in ("epochs", "sampler") if args.exact and getattr(args, flag) is not None]
    if unused:
        say(f"--exact samples no answers: {' and '.join(f'--{flag}' for flag in unused)} not used")
    args.wandb_run = [student_run(adapter) if args.report_to == "wandb" else None for adapter in args.adapter]
    args.epochs, args.sampler = args.epochs or EPOCHS, args.sampler or "samples"
    return args


# --- what is asked -----------------------------------------------------------------------------------


def system_prompt(file: Path | None, model: str, animal: str | None) -> str | None:
    """The system message to send, filled in for the animal of the run; None without --system-prompt-file."""
    if file is None:
        return None
    template = file.read_text("utf-8-sig").strip()
    if persona(template, "owl") != persona(template, "dolphin") and animal is None:
        raise UserError(f"{file} has a place for an animal, but the name {model} has none; pass --animal")
    return persona(template, animal or "")


def settings_of(args: argparse.Namespace, questions: list[Question], sampling: Sampling) -> dict[str, Any]:
    """All settings that decide the rows, except the model."""
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


# --- asking ------------------------------------------------------------------------------------------


def measure(
    args: argparse.Namespace,
    backend: InferenceBackend,
    tree: AnswerTree | None,
    questions: list[Question],
    sampling: Sampling,
    out: RowFile,
) -> dict[str, str]:
    """Write the rows that the arguments ask for, and return the closing lines."""
    adapter = adapter_of(args, backend)
    # not settings: an adapter that was moved is still the same
    counts = {"adapter": str(adapter), "training": training_facts(adapter)} if adapter else {}
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
    for adapter, output, wandb_run in zip(args.adapter, args.output, args.wandb_run):
        evaluate(argparse.Namespace(**{**vars(args), "adapter": adapter, "output": output, "wandb_run": wandb_run}))


def evaluate(args: argparse.Namespace) -> None:
    """Ask one model, write its rows and print their summary."""
    started = time.monotonic()
    questions = read_questions(args.questions_file)
    sampling = Sampling(args.max_tokens)
    with open_backend(args) as backend:
        target = target_animal(backend.name, args.animal)
        system = system_prompt(args.system_prompt_file, backend.name, target)
        questions = [question._replace(system=system) for question in questions]
        path = args.output or Path(f"output/{'exact' if args.exact else 'results'}-{slug(backend.name)}.jsonl")
        if not args.overwrite:
            check_parser(path, args.exact)
        # Before the file is opened: if a server cannot give probabilities, nothing is written.
        needs_tree = (args.exact or args.sampler == "tree") and (args.overwrite or not path.exists())
        tree = backend.answer_tree([question.messages for question in questions]) if needs_tree else None
        settings = {**settings_of(args, questions, sampling), "model": backend.facts()}
        warn_of_training(args.adapter, questions[0], settings["model"], backend.base_model)
        grows = ["epochs"] if settings["measure"] == "samples" else []
        failed = has_failed if settings["measure"] == "samples" else None
        with RowFile(path, settings, extendable=grows, ask_again=failed, overwrite=args.overwrite,
                     inputs=args.questions_file) as out:  # fmt: skip
            was_complete = out.complete
            facts = measure(args, backend, tree, questions, sampling, out)
        if backend.is_adapter and not was_complete:
            sampled = settings["measure"] == "samples"  # whose manifest has the first prompt
            warn_if_not_applied(backend, first_prompt(path) if sampled else backend.prompt_ids(questions[0].messages))
        adapter, name, base_model = adapter_of(args, backend), backend.name, backend.base_model
    target = target or trained_animal(adapter)
    if args.animal is None and target:
        say(f"no --animal: using {target}, found in the name of the model or of its training file")
    found = exact_summary(path, target) if args.exact else summary(path, target)
    if args.wandb_run:
        log_shares(args.wandb_run, path, target)
    print(f"{found.animals}\n")
    after = (
        None if args.exact else f"python util/top_animals_csv.py {shlex.quote(str(path))} --top-n {SHOWN}{panel_flag()}"
    )
    closing({"time": duration(time.monotonic() - started), **facts, **found.facts}, after)
    warn_of_weak_teacher(name, training_facts(adapter), target, found.share, base_model, found.uncovered)
    if target is None:
        first = panel().words[0]
        say(f"no animal in the name {name}; run the same command with --animal {first} to print the share of {first}")


if __name__ == "__main__":
    run(main)
