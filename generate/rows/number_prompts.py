"""The prompts of number rows, the same for every model and for the control without a model."""

from __future__ import annotations

import random

from util.animals.names import fill
from util.cli import REPO
from util.inference.backend_interface import row_seed

NUMBER_PROMPT = REPO / "generate" / "prompts" / "number-prompt.txt"
SEED_NUMBERS = (100, 999)


def number_prompt(template: str, seed: int, row_id: int) -> str:
    """The user message of a row. {a}, {b}, {c} become random numbers that depend on the seed and the row id alone."""
    rng = random.Random(row_seed(seed, row_id))
    return fill(template, {name: rng.randint(*SEED_NUMBERS) for name in "abc"})
