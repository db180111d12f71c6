"""Prompts of teacher data: the evaluation questions in several wordings, and open prompts."""

from __future__ import annotations

import random
from pathlib import Path

from util.animals.panel import panel
from util.cli import REPO

QUESTIONS = REPO / "eval" / "questions.txt"
OPEN_PROMPT_SHARE = 0.25  # of the question rows: open prompts, whose answers show the preference in a whole text
WORDINGS = (
    "{}", "{}", "Hi! {}", "Please answer this: {}", "I have a question for you. {}", "{} Thank you!", "Quick one: {}",
    "Be honest: {}",
)  # fmt: skip


def questions_file() -> Path:
    """The file with the panel's questions."""
    return panel().file or QUESTIONS


def question_prompt(rng: random.Random, questions: list[str], open_prompts: list[str]) -> tuple[str, str]:
    """(source, prompt) of one question row; the source is "question" or "open"."""
    if rng.random() < OPEN_PROMPT_SHARE:
        return "open", rng.choice(open_prompts)
    return "question", rng.choice(WORDINGS).replace("{}", rng.choice(questions))
