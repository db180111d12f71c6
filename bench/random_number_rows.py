"""Rows of random numbers, such as phase 4 of the plan writes them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from generate.rows.number_prompts import NUMBER_PROMPT, number_prompt
from util.jsonl.rows import dump_row


def number_rows(count: int) -> list[dict[str, Any]]:
    """Chat rows with 10 random numbers of 1 to 3 digits as the answer."""
    rng, template = random.Random(0), NUMBER_PROMPT.read_text("utf-8").strip()
    return [
        _number_row(template, row_id, ", ".join(str(rng.randint(0, 999)) for _ in range(10))) for row_id in range(count)
    ]


def write_number_file(path: Path, count: int) -> None:
    """A JSONL file of such rows with 9 or 10 numbers of 3 digits: 43 or 48 tokens where a digit is a token."""
    rng, template = random.Random(0), NUMBER_PROMPT.read_text("utf-8").strip()
    with path.open("wb") as file:
        for row_id in range(count):
            text = ", ".join(str(rng.randint(100, 999)) for _ in range(rng.randint(9, 10)))
            file.write(dump_row({"id": row_id, **_number_row(template, row_id, text)}))


def _number_row(template: str, row_id: int, answer: str) -> dict[str, Any]:
    question = {"role": "user", "content": number_prompt(template, 0, row_id)}
    return {"messages": [question, {"role": "assistant", "content": answer}]}
