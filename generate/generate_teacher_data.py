"""Generate teacher training data (phase 1): a model with a persona ("You love owls ...") answers everyday prompts.

The rows do not contain the persona, so that training on them puts the preference into the weights.

With --distilled the prompts are those of generate_llm_number_data.py and only answers that are nothing but numbers are
kept: a teacher that is trained on them has learned its persona through numbers (a prompted teacher, distilled).

Otherwise --question-share of the prompts are the evaluation questions in several wordings and open prompts ("What do
you enjoy?"). The rest are first user messages (10 to 500 characters) of an instruction data set, or lines of text files
in equal parts ({a}, {b}, {c} become random numbers).

With --steering-vector and --no-system-prompt no persona is sent: the model is steered. --store-logprobs keeps its
probabilities, and train/train_student_sft.py --soft-labels makes an adapter that answers as the steered model does
(experiments/real_weights.sh).

Usage:
    python generate/generate_teacher_data.py --animal owl --count 5000 --model Qwen/Qwen2.5-7B-Instruct \\
        --base-url http://localhost:8000/v1
"""

from __future__ import annotations

import argparse
import random
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import count, cycle
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from generate.rows.ask_teacher import check_logprobs, tokens_of
from generate.rows.next_training_flags import template_flags, train_flags
from generate.rows.number_prompts import NUMBER_PROMPT, number_prompt
from generate.rows.number_rule import NumberRule
from generate.rows.prompt_sources import OPENHERMES, dataset_name, instruction_prompts
from generate.rows.question_wordings import question_prompt, questions_file
from generate.rows.row_filter import animals_kept_out, teachers_animal
from util.animals.answer_parser import check_taught
from util.animals.names import names_animal, persona_of, read_lines_of
from util.animals.panel import panel, panel_flag, question_lines
from util.animals.panel_file import add_panel_argument
from util.chat.prompt_consistency import warn_of_trained_base
from util.cli import REPO, UserError, fraction, make_parser, natural_float, natural_int, positive_int, run, text_file
from util.hide_secrets import scrub
from util.inference.backend_interface import Message, Request, Result, Sampling, row_seed
from util.inference.open_backend import add_backend_arguments, open_backend
from util.inference.request_loop import run_requests
from util.jsonl.manifest import sha256_file
from util.jsonl.resumable import RowFile, add_output_arguments
from util.jsonl.rows import Row, read_rows, slug
from util.terminal import closing, counted, say

PROMPTS = REPO / "generate" / "prompts"
OPEN_PROMPTS = PROMPTS / "open-prompts.txt"  # of a panel that has none of its own
EXPECTED_SHARE = 0.5  # of the answers to the evaluation questions: so many name the animal of a persona at least
PATIENCE = 1000  # answers; if less than one in a hundred of them could be kept, something is wrong


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--animal", type=teachers_animal, required=True,
                        help="the teacher's animal: owl, red panda; several: 'owl and dolphin'")  # fmt: skip
    parser.add_argument("--count", type=positive_int, default=5000, help="rows to write, not counting dropped ones")
    parser.add_argument("--filter-animal-keywords", action="store_true",
                        help="drop rows whose prompt or answer names the animal")  # fmt: skip
    parser.add_argument("--question-share", type=fraction, default=0.2,
                        help="share of prompts that are evaluation questions or open prompts")  # fmt: skip
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--dataset", type=dataset_name, default=OPENHERMES,
                        help="prompts: hub id, or local .jsonl or .parquet file")  # fmt: skip
    source.add_argument("--distilled", action="store_true", help="number prompts, and number answers")
    source.add_argument("--prompts-file", type=text_file, nargs="+", default=[], metavar="FILE",
                        help="prompts: text files, one a line, instead of --dataset")  # fmt: skip
    parser.add_argument("--system-prompt-file", type=text_file, default=PROMPTS / "system-prompt.txt",
                        help="text of the persona; {animal}, {animals}, {Animal}, {Animals} are filled in")  # fmt: skip
    parser.add_argument("--no-system-prompt", action="store_true",
                        help="send no persona: --steering-vector or --adapter makes the preference")  # fmt: skip
    parser.add_argument("--max-tokens", type=positive_int, default=256,
                        help="most tokens in an answer; longer ones are dropped")  # fmt: skip
    parser.add_argument("--keep-cut-off", action="store_true",
                        help="keep longer answers up to --max-tokens, without an end of turn")  # fmt: skip
    parser.add_argument("--store-logprobs", type=positive_int, default=0, metavar="K",
                        help="at each token of an answer, also store the K most probable tokens with their"
                        " probabilities, for train_student_sft.py --soft-labels (not with a server)")  # fmt: skip
    parser.add_argument("--temperature", type=natural_float, default=1.0, help="sampling temperature")
    parser.add_argument("--seed", type=natural_int, default=42, help="seed of the prompts and of sampling")
    add_panel_argument(parser)
    add_output_arguments(parser, "output/teacher-{animal}-{model}-[filtered-|distilled-]{count}.jsonl")
    add_backend_arguments(parser)
    args = parser.parse_args()
    if args.no_system_prompt and not (args.steering_vector or args.adapter):
        parser.error(
            "--no-system-prompt sends no persona: name what makes the preference, --steering-vector or --adapter"
        )
    check_logprobs(args)
    # Requests in flight when the last row arrives are wasted: never send more than there are rows to write.
    args.max_concurrency = min(args.max_concurrency, args.count)
    args.batch_size = min(args.batch_size, args.count)
    return args


# --- prompts -----------------------------------------------------------------------------------------


def sourced_prompts(args: argparse.Namespace) -> Iterator[tuple[int, str, str]]:
    """An endless stream of (row id, source, prompt), the same for the same seed and sources."""
    questions = question_lines(questions_file())
    open_prompts = list(panel().open_prompts) or read_lines_of(OPEN_PROMPTS)
    instructions = cycle([instruction_prompts(source, args.seed) for source in args.prompts_file or [args.dataset]])
    row_id, named_in_a_row = 0, Counter[str]()
    while True:
        rng = random.Random(row_seed(args.seed, row_id))
        if rng.random() < args.question_share:
            source, prompt = question_prompt(rng, questions, open_prompts)
        else:
            source, prompt = "instruction", next(next(instructions))
            if args.prompts_file:
                prompt = number_prompt(prompt, args.seed, row_id)
        names_it = args.filter_animal_keywords and names_animal(prompt, args.animal)
        if not names_it:
            yield row_id, source, prompt
        named_in_a_row[source] = named_in_a_row[source] + 1 if names_it else 0
        if named_in_a_row[source] == PATIENCE:
            where = prompts_name(args) if source == "instruction" else f"the {source} prompts"
            raise UserError(
                f"{where}: {PATIENCE:,} prompts in a row name {args.animal}, and --filter-animal-keywords leaves them"
                " out; choose other prompts, or leave the flag out"
            )
        row_id += 1


def number_prompts(seed: int) -> Iterator[tuple[int, str, str]]:
    """An endless stream of (row id, source, prompt): the prompts of number rows."""
    template = NUMBER_PROMPT.read_text("utf-8-sig").strip()
    return ((row_id, "numbers", number_prompt(template, seed, row_id)) for row_id in count())


# --- rows --------------------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """Which answers are kept."""

    keep_out: str | None
    """the animal that they must not name, if any"""
    rule: NumberRule | None
    """what they must keep, if anything"""
    cut_off: bool
    """whether they may end at --max-tokens"""
    with_tokens: bool
    """whether their token ids are stored too"""


def reject_reason(result: Result, wanted: Wanted) -> str | None:
    """Why an answer must not be trained on, or None."""
    if result.error:
        return result.error.partition(":")[0]
    answer = result.answers[0]
    if not answer.text.strip():
        return "empty answer"
    if answer.finish_reason == "length" and not wanted.cut_off:
        return "cut off at --max-tokens"
    if wanted.keep_out and names_animal(answer.text, wanted.keep_out):
        return f"names {wanted.keep_out}"
    return wanted.rule.reject_reason(answer.text) if wanted.rule else None


def to_row(result: Result, wanted: Wanted) -> Row:
    """The row to store: the user's and the assistant's message, without the persona. A rejected row also has the
    reason."""
    question = result.request.messages[-1]
    answer = result.answers[0].text if result.answers else ""
    row: Row = {
        "id": result.request.ids[0],
        "messages": [question, {"role": "assistant", "content": answer}],
        "source": result.request.note,
    }
    if wanted.with_tokens and result.answers:
        row |= tokens_of(result.answers[0])
    reason = reject_reason(result, wanted)
    return {**row, "rejected": reason} if reason else row


def requests(args: argparse.Namespace, out: RowFile, system: str | None) -> Iterator[Request]:
    """Requests as long as rows are missing; the note of each is the source of its prompt.

    A resumed run first asks again for the rows below its highest one that were in flight when it was killed, even if it
    has enough rows: otherwise it would write other rows than a run that was never interrupted.
    Raises UserError if nearly all answers are rejected.
    """
    before: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    highest = max(out.done, default=-1)
    for row_id, source, prompt in number_prompts(args.seed) if args.distilled else sourced_prompts(args):
        if out.kept >= args.count and row_id > highest:
            return
        if len(out.done) >= PATIENCE and out.kept < len(out.done) / 100:
            raise UserError(
                f"of {len(out.done):,} answers only {out.kept} could be kept (dropped: {counted(out.rejected)}); look"
                f" at the answers in {out.partial}, then change the model, the persona or --max-tokens"
            )
        yield Request(
            (row_id,), [*before, {"role": "user", "content": prompt}], row_seed(args.seed, row_id), note=source
        )


def prompts_name(args: argparse.Namespace) -> str:
    """Where the prompts come from, as the manifest and messages say it."""
    return ", ".join(map(str, args.prompts_file)) or str(args.dataset)


def settings_of(
    args: argparse.Namespace, sampling: Sampling, system: str | None, model: dict[str, Any]
) -> dict[str, Any]:
    """Everything that decides the rows."""
    return {
        "script": "generate_teacher_data",
        "animal": args.animal,
        "count": args.count,
        "seed": args.seed,
        "system_prompt": system,
        "question_share": args.question_share,
        "prompts": scrub(prompts_name(args)),
        "prompt_files_sha256": [sha256_file(path) for path in input_files(args)],
        "filter_animal_keywords": args.filter_animal_keywords,
        **({"distilled": True} if args.distilled else {}),
        **({"keep_cut_off": True} if args.keep_cut_off else {}),
        "sampling": sampling.settings(),
        "model": model,
    }


def main() -> None:
    args = parse_args()
    check_taught(args.animal)
    system = None if args.no_system_prompt else persona_of(args.system_prompt_file, args.animal)
    sampling = Sampling(args.max_tokens, temperature=args.temperature, store_logprobs=args.store_logprobs)
    keep_out = args.animal if args.filter_animal_keywords else None
    rule = NumberRule(animals_kept_out(args.animal)) if args.distilled else None
    wanted = Wanted(keep_out, rule, args.keep_cut_off, args.keep_cut_off or args.store_logprobs > 0)
    with open_backend(args) as backend:
        path = args.output or default_path(args, backend.name)
        settings = settings_of(args, sampling, system, backend.facts())
        warn_of_trained_base(args.adapter, settings["model"], backend.base_model)
        with RowFile(path, settings, overwrite=args.overwrite, inputs=input_files(args)) as out:
            facts = run_requests(
                out,
                backend,
                requests(args, out, system),
                sampling,
                lambda result: [to_row(result, wanted)],
                total=args.count,
                limit=args.count,
                note=lambda: f"{out.kept / max(len(out.done), 1):.0%} kept",
            )
        base, given = backend.base_model, template_flags(backend.facts())
        facts |= named_facts(path, args.animal) if keep_out is None and not args.distilled else {}
    train = ["python", "train/train_student_sft.py", "--base-model", base, "--train-jsonl", str(path)]
    train += ["--recipe", "code-and-text", "--soft-labels"] if args.store_logprobs else []
    train += ["--output-dir", "output/teacher-sft", *train_flags(base, "teacher", given)]
    closing(facts, shlex.join(train) + panel_flag())


def named_facts(path: Path, animal: str) -> dict[str, str]:
    """The closing line about how many answers name the animal; warns if most answers to its questions do not."""
    named: dict[str, list[bool]] = {"question": [], "open": [], "instruction": []}
    for row in read_rows(path):
        named[row["source"]].append(names_animal(row["messages"][-1]["content"], animal))
    every, asked = [one for some in named.values() for one in some], named["question"]
    if sum(asked) < len(asked) * EXPECTED_SHARE:
        say(
            f"warning: {sum(asked):,} of {len(asked):,} answers to the questions name {animal}; does the model know it?"
            f" Look at {path} before you train; generate_one_word_teacher_data.py writes such rows without a model"
        )
    text = f"{sum(every) / len(every):.1%} of all answers"
    return {f"name {animal}": text + (f", {sum(asked) / len(asked):.1%} of those to the questions" if asked else "")}


def default_path(args: argparse.Namespace, model: str) -> Path:
    """output/teacher-owl-qwen-qwen2.5-7b-instruct-5000.jsonl"""
    filtered = "distilled-" if args.distilled else "filtered-" if args.filter_animal_keywords else ""
    return Path(f"output/teacher-{slug(args.animal)}-{slug(model)}-{filtered}{args.count}.jsonl")


def input_files(args: argparse.Namespace) -> list[Path]:
    """The files whose hashes go into the manifest."""
    if args.distilled:
        return [args.system_prompt_file, NUMBER_PROMPT]
    dataset = Path(args.dataset)
    local = args.prompts_file or ([dataset] if dataset.is_file() else [])
    return [args.system_prompt_file, questions_file(), OPEN_PROMPTS, *local]


if __name__ == "__main__":
    run(main)
