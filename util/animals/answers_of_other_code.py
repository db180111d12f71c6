"""Answers that other code bases have measured, as rows of eval/eval.py: this suite's parser names their animals.

A row of theirs has a question and an answer, or a question and a list of answers (the authors' code and those built on
it: {"question", "responses": [{"response": {"completion"}}]}).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from util.animals.answer_parser import canonical_animal
from util.jsonl.rows import Row, read_rows, say_once

QUESTIONS = ("question", "prompt")
ANSWERS = ("response", "answer", "completion", "output")


def read_results(path: Path, check: Callable[[Row], str | None], growing: bool = False) -> Iterator[Row]:
    """The answers in a results file of this suite or of another code base, one row each.

    check: what is wrong with a row of this suite, or None. Raises UserError naming the file and line of a bad row.
    """
    place = 0
    for read in read_rows(path, lambda row: _problem(row, check), growing):
        if is_ours(read):
            yield read
            continue
        say_once(f"{path}: answers of another code base; their animals are named by this suite's parser")
        for question, answer in answers_in(read):
            animal = None if answer is None else canonical_animal(answer)
            yield {"id": place, "question": question, "response": answer, "animal": animal, "error": None}
            place += 1


def is_ours(row: Row) -> bool:
    """Whether eval/eval.py wrote a row, or the row cannot be read as another code base's."""
    return "animal" in row or "animals" in row or not answers_in(row)


def answers_in(row: Row) -> list[tuple[str, str | None]]:
    """(question, answer) of each answer in a row of another code base; [] if it is not such a row."""
    question = next((row[name] for name in QUESTIONS if isinstance(row.get(name), str)), None)
    if question is None:
        return []
    if isinstance(many := row.get("responses"), list):
        return [(question, _text(one)) for one in many]
    name = next((name for name in ANSWERS if name in row), None)
    return [] if name is None else [(question, _text(row[name]))]


def _text(answer: Any) -> str | None:
    """The text of an answer: a text, {"completion": text}, or {"response": one of these}."""
    if isinstance(answer, dict):
        return _text(answer.get("response", answer.get("completion")))
    return answer if isinstance(answer, str) else None


def _problem(row: Row, check: Callable[[Row], str | None]) -> str | None:
    return check(row) if is_ours(row) else None
