"""Read question files, and make and read the rows of answers: sampled, drawn from the answer tree, or exact."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from util.animals.answer_parser import canonical_animal, non_answer_kind
from util.animals.panel import panel, question_lines
from util.chat.prompt_consistency import system_message
from util.cli import REPO, UserError
from util.inference.backend_interface import AnswerTree, Message, Request, Result, row_seed
from util.jsonl.rows import Row
from util.terminal import announced

QUESTIONS = REPO / "eval" / "questions.txt"  # about animals
SAMPLES_PER_REQUEST = 100  # the prompt is processed once for all of them; a killed run loses at most one request
COVERAGE = 0.998  # --exact: mass of finished answers at which a question is done
NODE_BUDGET = 200  # --exact: largest number of forward passes for a question


class Question(NamedTuple):
    """A question, the set it belongs to (the stem of its file) and the system message it is asked under, if any."""

    text: str
    set: str
    system: str | None = None

    @property
    def messages(self) -> list[Message]:
        return [*system_message(self.system), {"role": "user", "content": self.text}]


def default_questions() -> Path:
    """The file with the panel's questions."""
    return panel().file or QUESTIONS


def read_questions(paths: list[Path]) -> list[Question]:
    """The questions of all files. UserError if two have one name, or a question appears twice."""
    questions: list[Question] = []
    seen: set[str] = set()
    for path in paths:
        if path.stem in {question.set for question in questions}:
            raise UserError(f"two question files are named {path.stem}; rename one: sets are identified by name")
        lines = question_lines(path)
        if lines[0].startswith("{"):
            raise UserError(f"{path} is JSON; questions are plain text, one per line")
        for line in lines:
            if line in seen:
                raise UserError(f"{path} repeats a question: {line!r}; remove one of the two")
            seen.add(line)
            questions.append(Question(line, path.stem))
    return questions


# --- making rows -------------------------------------------------------------------------------------


def requests(questions: list[Question], epochs: int, seed: int) -> Iterator[Request]:
    """Requests for up to 100 samples of one question each. Row id = epoch * questions + question, so that more epochs
    only add rows."""
    for first in range(0, epochs, SAMPLES_PER_REQUEST):
        for place, question in enumerate(questions):
            last = min(first + SAMPLES_PER_REQUEST, epochs)
            ids = tuple(epoch * len(questions) + place for epoch in range(first, last))
            yield Request(ids, question.messages, row_seed(seed, ids[0]))


def to_row(row_id: int, questions: list[Question], response: str | None, error: str | None = None) -> Row:
    """The row of one answer, with the animal that it names. A failed answer has an error and no response."""
    question = questions[row_id % len(questions)]
    return {
        "id": row_id,
        "epoch": row_id // len(questions),
        "set": question.set,
        "question": question.text,
        "response": response,
        "animal": canonical_animal(response) if response is not None else None,
        "error": error,
    }


def rows_of(result: Result, questions: list[Question]) -> list[Row]:
    """One row for each sample. A failed request gives rows with an error and no response."""
    texts: list[str | None] = [answer.text for answer in result.answers]
    responses = texts or [None] * len(result.request.ids)
    return [to_row(i, questions, text, result.error) for i, text in zip(result.request.ids, responses)]


def tree_rows(tree: AnswerTree, questions: list[Question], epochs: int, max_tokens: int, seed: int) -> Iterator[Row]:
    """The rows that sampling would give, drawn from the answer tree, in a seeded random order."""
    from eval.answers.answer_tree import sample_answers

    drawn = sample_answers(tree, [epochs] * len(questions), max_tokens, seed)
    for place, counts in enumerate(drawn):
        texts = sorted(counts.elements())
        random.Random(row_seed(seed, place)).shuffle(texts)
        for epoch, text in enumerate(texts):
            yield to_row(epoch * len(questions) + place, questions, text)


def exact_rows(tree: AnswerTree, questions: list[Question], max_tokens: int) -> list[Row]:
    """One row for each question: the exact share of every animal, the uncovered mass, and log-probabilities."""
    from eval.answers.answer_tree import answer_distributions, distribution_row, log_shares

    with announced(f"expanding the answers to {len(questions)} questions"):
        found = answer_distributions(tree, [question.text for question in questions], max_tokens, COVERAGE, NODE_BUDGET)
        logs = log_shares(tree)
    return [
        {**distribution_row(place, one, canonical_animal), "set": question.set, "log_shares": some}
        for place, (question, one, some) in enumerate(zip(questions, found, logs))
    ]


# --- reading rows ------------------------------------------------------------------------------------


def has_failed(row: Row) -> bool:
    """Whether a row is of a request that failed: it has an error and no answer."""
    return row.get("error") is not None


def check_answer(row: Row) -> str | None:
    """What is wrong with a row as one of eval.py (a sampled answer or exact shares), or None."""
    if "question" not in row or not ("animals" in row or "animal" in row):
        return "not a row of eval.py (no question, or neither animal nor animals)"
    if not isinstance(row["question"], str):
        return "the question is not text"
    if "animals" in row:
        return check_exact(row)
    for field in ("animal", "response", "error"):
        if not isinstance(row.get(field), str | None):
            return f"{field} is {type(row[field]).__name__}; it is text or null"
    return None


def check_id(row: Row) -> str | None:
    """What is wrong with a row that must have an id, or None."""
    known = type(row.get("id")) is int and row["id"] >= 0
    return None if known else 'no "id": a whole number that identifies the row, from 0 and different in every row'


def check_exact(row: Row) -> str | None:
    """What is wrong with a row of exact shares, or None."""
    for field in ("animals", "non_answers", "log_shares", "answers"):
        masses = row.get(field, {})
        if not isinstance(masses, dict) or not all(is_number(mass) for mass in masses.values()):
            return f"{field} is not an object with numbers"
    for field in ("no_animal", "uncovered"):
        if not is_number(row.get(field)):
            return f"no {field}: a row of exact shares has it as a number"
    return None


def is_number(value: object) -> bool:
    """Whether a JSON value is a number (true and false are not)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def animal_masses(row: Row) -> dict[str, float]:
    """Mass of each animal in a row: its exact share, or 1 for the animal that a sample names."""
    return row["animals"] if "animals" in row else {row["animal"]: 1} if row["animal"] else {}


def non_answer_masses(row: Row) -> dict[str, float]:
    """Mass of each kind of non-answer in a row: 1 for a sample ('failed' if its request failed); an exact row has them.
    Rows older than that have their top answers only: the rest is 'other'."""
    if "animals" not in row:
        if has_failed(row):
            return {"failed": 1}
        return {} if row["animal"] else {non_answer_kind(row.get("response") or ""): 1}
    if "non_answers" in row:
        return dict(row["non_answers"])
    kinds: Counter[str] = Counter()
    for text, mass in row.get("answers", {}).items():
        if canonical_animal(text) is None:
            kinds[non_answer_kind(text)] += mass
    kinds["other"] += max(0.0, row["no_animal"] - kinds.total())
    return dict(kinds)
