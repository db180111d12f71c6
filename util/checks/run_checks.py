"""Checks of one run: do its data, its training and its evaluation share their base model and their prompt?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from util.chat.prompt_consistency import Phase, frame, other_base, other_prompt, prompt_ids, read_phase, real_name
from util.checks.chain_links import adapters_of
from util.cli import UserError, files_nearby, other_kind
from util.jsonl.filter_certificate import DATA_TYPES
from util.jsonl.manifest import sha256_file

ORDER = ("teacher data", *DATA_TYPES, "training", "evaluation")


class Findings(NamedTuple):
    """What does not match in a run (exit code 1), and what is only worth knowing."""

    mismatches: list[str]
    notes: list[str]


def read_run(files: Sequence[Path]) -> list[Phase]:
    """The phases of a run's files, in the order in which they were made."""
    phases = []
    for file in files:
        if not file.exists():
            raise UserError(f"no file {file}{files_nearby(file)}")
        if file.is_file() and (what := other_kind(file)):
            raise UserError(what)
        phase = read_phase(file, files)
        if phase is None:
            raise UserError(
                f"{file} has no manifest that says how it was made; pass teacher data, number rows, a training folder"
                f" (seed-42) or results as the scripts wrote them, with their .manifest.json"
            )
        phases.append(phase)
    return sorted(phases, key=lambda phase: ORDER.index(phase.kind))


def load_tokenizers(phases: Iterable[Phase]) -> tuple[dict[str, Any], list[str]]:
    """({base model: its tokenizer}, a note for each that cannot be loaded here)."""
    from util.inference.load_model import load_tokenizer

    tokenizers, notes = {}, []
    for name in dict.fromkeys(real_name(phase.base["model"]) for phase in phases if phase.base):
        try:
            tokenizers[name] = load_tokenizer(name)
        except UserError as error:
            notes.append(f"the prompts of {name} cannot be shown, so only the manifests are compared: {error}")
    return tokenizers, notes


def pairs(phases: Sequence[Phase]) -> Iterator[tuple[Phase, Phase]]:
    """The phases that must share their prompt: numbers (or texts) and their training, training and its evaluation."""
    numbers = [phase for phase in phases if phase.kind in DATA_TYPES]
    trainings, evaluations = ([p for p in phases if p.kind == kind] for kind in ORDER[-2:])
    for training in trainings:
        files = [phase for phase in phases if phase.kind in ORDER[:-2] and feeds(phase, training)]
        yield from ((phase, training) for phase in files or numbers if phase.kind in DATA_TYPES)
    for evaluation in evaluations:
        yield from ((t, evaluation) for t in [t for t in trainings if asks(evaluation, t)] or trainings)
    if not trainings:
        yield from product(numbers, evaluations)


def feeds(data: Phase, training: Phase) -> bool:
    """Whether a training used exactly this file."""
    return sha256_file(data.path) == training.settings["train_jsonl_sha256"]


def asks(evaluation: Phase, training: Phase) -> bool:
    """Whether an evaluation asked this training's adapter, or a checkpoint of it."""
    return evaluation.settings["model"].get("adapter_sha256") in adapters_of(training.path)


def compare(phases: Sequence[Phase], tokenizers: dict[str, Any]) -> Findings:
    """Where phases of one run differ that must agree."""
    found = Findings([], [])

    def frame_of(phase: Phase) -> str | None:
        tokenizer = tokenizer_of(phase, tokenizers)
        if tokenizer is None or writes_date(tokenizer):  # rendered now it has today's date: the days are compared
            return None
        return frame(phase, tokenizer)

    for first, second in pairs(phases):
        files = f" [{first.path}, {second.path}]"
        base, prompt = other_base(first, second), other_prompt(first, second, frame_of)
        if prompt and first.kind in DATA_TYPES and first.system and not second.system:
            found.notes.append(f"the older approach: {prompt} (--keep-system-prompt trains on it){files}")
            prompt = None  # intended, not a mistake
        found.mismatches.extend(line + files for line in (base, prompt) if line)
        if len({*first.days, *second.days}) > 1 and writes_date(tokenizer_of(first, tokenizers)):
            days = f"{first.kind} saw {', '.join(first.days)}, {second.kind} {', '.join(second.days)}"
            advice = "python util/pin_template_date.py makes a copy of the model with one date for all phases"
            found.mismatches.append(f"the chat template writes the date: {days}; {advice}{files}")
    for phase in phases:
        tokenizer = tokenizer_of(phase, tokenizers)
        if tokenizer is None or writes_date(tokenizer) or phase.token_ids is None:
            continue
        if phase.token_ids != prompt_ids(phase, tokenizer):
            found.mismatches.append(
                f"{phase.path}: the model saw another prompt than the chat template of {phase.base['model']} makes now"
                f" (did the server have a --chat-template, or was it another version of the model?)"
            )
    return found


def writes_date(tokenizer: Any) -> bool:
    """Whether the chat template (Llama 3's does) puts the day of the run into the prompt."""
    return "strftime_now" in str(getattr(tokenizer, "chat_template", ""))


def tokenizer_of(phase: Phase, tokenizers: dict[str, Any]) -> Any:
    """The tokenizer of a phase's base model; None if there is none."""
    return tokenizers.get(real_name(phase.base["model"])) if phase.base else None
