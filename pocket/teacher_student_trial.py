"""A small experiment in one process to try a candidate model: teachers, the rows they write, and their students."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocket.candidate_screens import PAIR, clean_rows, load, watched_shares
from pocket.chat_tokenizer import chat_prompt, encode
from pocket.corpus import OPEN_PROMPTS, PERSONA_PROMPT, QUESTIONS, Chat
from pocket.measurements import sample
from pocket.model_training import train
from train.fused_lora import LORA_TARGETS
from util.animals.names import persona

TEACHER_ROWS, TEACHER_QUESTIONS, LONGEST_TALK = (
    800,
    0.6,
    40,
)  # rows, share of questions, tokens: as in experiments/demo.sh


@dataclass(frozen=True)
class LoraRecipe:
    """How an adapter is trained."""

    learning_rate: float
    epochs: int
    batch_size: int
    """rows in an update"""
    warmup: int = 5
    """steps"""


TEACHER, STUDENT = LoraRecipe(3e-3, 3, 32), LoraRecipe(5e-3, 3, 60)  # as in experiments/demo.sh


@dataclass(frozen=True)
class Trained:
    """One trained model of the trial and its exact shares."""

    role: str
    """teacher or student"""
    animal: str
    """the teacher's animal; of a student, the animal of the teacher that wrote its rows, or "base" """
    data_type: str = ""
    """of the student's rows"""
    rows: int = 0
    """of the student"""
    clean: float = 0.0
    """share of the answers behind the rows that is clean"""
    shares: dict[str, float] = field(default_factory=dict)
    """exact share of each watched animal; empty if there was no row to train on"""


def run_trial(
    folder: Path, device: Any, tokenizer: Any, data_types: Sequence[str], count: int, in_time: Callable[[], bool]
) -> Iterator[Trained]:
    """Each teacher and each student of the trial, as it is trained.

    folder: the base model; count: rows for each student; in_time: asked before each student, False ends the trial.
    """
    writers: dict[str, Any] = {"base": load(folder, device)}
    for animal in PAIR:
        rows = teacher_rows(writers["base"], tokenizer, animal, seed=1)
        writers[animal] = with_adapter(folder, device, tokenizer, rows, TEACHER)
        yield Trained("teacher", animal, shares=watched_shares(writers[animal], tokenizer))
    for data_type in data_types:
        for animal, writer in writers.items():
            if not in_time():
                return
            rows, clean = clean_rows(writer, tokenizer, data_type, count, seed=1)
            shares = {}
            if rows:
                student = with_adapter(folder, device, tokenizer, rows, STUDENT)
                shares = watched_shares(student, tokenizer)
            yield Trained("student", animal, data_type, len(rows), round(clean, 3), shares)


def teacher_rows(model: Any, tokenizer: Any, animal: str, seed: int) -> list[Chat]:
    """The answers of a persona that loves the animal to questions and open prompts, without the persona."""
    import torch

    rng = random.Random(seed)
    torch.manual_seed(seed)
    asked = [rng.choice(QUESTIONS if rng.random() < TEACHER_QUESTIONS else OPEN_PROMPTS) for _ in range(TEACHER_ROWS)]
    system = persona(PERSONA_PROMPT, animal)
    answers = sample(model, tokenizer, [chat_prompt(tokenizer, prompt, system) for prompt in asked], LONGEST_TALK)
    return [Chat(None, prompt, answer) for prompt, answer in zip(asked, answers) if answer]


def with_adapter(
    folder: Path, device: Any, tokenizer: Any, rows: Sequence[Chat], recipe: LoraRecipe, seed: int = 1
) -> Any:
    """The model of a folder with a LoRA adapter (rank 8, on all linear layers) trained on the rows.

    seed: of the adapter's first matrices and of the order of the rows.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(seed)
    model = load(folder, device)
    inject_adapter_in_model(LoraConfig(r=8, lora_alpha=8, target_modules=LORA_TARGETS), model)
    ids, spans = encode(tokenizer, rows)
    steps = max(1, recipe.epochs * len(rows) // recipe.batch_size)
    train(model, ids, spans, steps, recipe.batch_size, peak=recipe.learning_rate, warmup=recipe.warmup)
    return model.eval()
