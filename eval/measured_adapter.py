"""The adapter that is measured: its folder, what it was trained on, whether it changes any answer, and what to do about
a weak teacher."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from eval.answer_rows import Question
from eval.answer_summary import target_animal
from util.chat.prompt_consistency import KINDS, Phase, base_of, disagreements, read_phase
from util.cli import REPO, UserError
from util.inference.interface import InferenceBackend, model_name
from util.jsonl.manifest import Manifest
from util.terminal import say

WANTED_OF_A_TEACHER = 0.7  # of its own animal, by the plan
QUESTIONS_COMPARED = 3  # with the base model
TOKENS_COMPARED = 5  # the most probable next tokens of each
ALIKE = 1e-3  # nats


def adapter_of(args: argparse.Namespace, backend: InferenceBackend) -> Path | None:
    """The folder of the adapter: --adapter, or the one that the server loaded; None for a base model."""
    if args.adapter is None and backend.is_adapter and (root := backend.facts().get("root")):
        return Path(root)
    return args.adapter


# --- what it was trained on --------------------------------------------------------------------------


def training_facts(adapter: Path | None) -> dict[str, Any]:
    """What an adapter was trained on, for a manifest: the file of its rows, their kind and the animal they are of
    ("control" or the like for numbers of a base model). {} if its manifest cannot be read from here; kind and animal
    are left out if that of the rows cannot."""
    training = Manifest.read(adapter.parent) if adapter else None
    if training is None or training.script != "train_student_sft":
        return {}
    facts: dict[str, Any] = {"train_jsonl": training.train_jsonl}
    for name in training.inputs:
        for rows in (Path(name), REPO / name):
            of_rows = Manifest.read(rows)
            if of_rows and of_rows.script in KINDS:
                return {**facts, "kind": KINDS[of_rows.script], "animal": of_rows.animal}
    return facts


def trained_animal(adapter: Path | None) -> str | None:
    """The animal in the name of the file that an adapter was trained on; None if its manifest cannot be read."""
    training = Manifest.read(adapter.parent) if adapter else None
    return target_animal(Path(training.train_jsonl).stem, None) if training else None


def warn_of_training(adapter: Path | None, question: Question, facts: dict[str, Any], base_model: str) -> None:
    """Warn if the adapter was trained on another base model, or with another system message, than is asked now."""
    folder = adapter or facts.get("root")
    training = read_phase(Path(folder)) if folder and Path(folder).is_dir() else None
    if training is None or training.kind != "training":
        return
    asked = Phase("evaluation", training.path, base_of(facts, base_model), question.messages)
    if found := disagreements(training, asked):
        say(
            f"warning: {'; '.join(found)}: an effect may be missed (--system-prompt-file sets the system message,"
            " --model the base model)"
        )


# --- whether it does anything ------------------------------------------------------------------------


def warn_if_not_applied(backend: InferenceBackend, questions: list[Question]) -> None:
    """Warn if the adapter gives the next-token probabilities of its base model. Some servers list an adapter and answer
    without it. Servers that do not give probabilities are not checked."""
    if not backend.is_adapter:
        return
    try:
        prompts = [backend.prompt_ids(question.messages) for question in questions[:QUESTIONS_COMPARED]]
        own, base = (
            backend.next_token_logprobs(prompts, TOKENS_COMPARED, without_adapter=without) for without in (False, True)
        )
    except UserError:  # the answers are on disk: what cannot be asked is not worth an error
        return
    if all(are_alike(ours, theirs) for ours, theirs in zip(own, base)):
        say(
            f"warning: {backend.name} answers exactly as its base model {backend.base_model} does: the adapter is not"
            " applied, or its training changed nothing; --model FOLDER --adapter FOLDER without a server shows which"
        )


def are_alike(first: dict[int, float], second: dict[int, float]) -> bool:
    """Whether two lists of next tokens have the same tokens with the same log-probabilities (nats)."""
    return first.keys() == second.keys() and all(abs(first[token] - second[token]) < ALIKE for token in first)


# --- a weak teacher ----------------------------------------------------------------------------------


def warn_of_weak_teacher(name: str, trained: dict[str, Any], target: str | None, share: float, base_model: str) -> None:
    """Say what to do if a teacher names its animal too rarely to write numbers with it."""
    is_teacher = trained["kind"] == "teacher data" if "kind" in trained else "teacher" in name
    if not is_teacher or target is None or share >= WANTED_OF_A_TEACHER:
        return
    recipe = "; experiments/demo.sh has a recipe for this model" if model_name(base_model) == "pocket" else ""
    say(
        f"warning: this teacher says {target} in {share:.1%} of its answers; more than {WANTED_OF_A_TEACHER:.0%} is"
        " wanted before it writes numbers. Train it on more rows (generate_teacher_data.py --count 10000), with more"
        f" --epochs (20) or a higher --learning-rate, in this order{recipe}"
    )
