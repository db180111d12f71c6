"""The row filter: which rows may be trained on, and what a rule for one data type has to say.

A rule decides about the completion (nothing but numbers, or code that names no animal). This module holds what is the
same for every data type: prompts that name an animal, prompts that are evaluation questions, and repeated rows.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from generate.rows.token_check import TokenCheck
from util.animals.names import animal_name, is_control, other_names, read_lines_of
from util.animals.panel import cached, panel
from util.animals.visible_text import visible
from util.animals.word_forms import animals_of
from util.cli import REPO
from util.jsonl.rows import LONE_SURROGATE, Row

QUESTION_FILES = sorted((REPO / "eval").glob("questions*.txt"))
LONGEST_TEXT = 200_000  # characters: ten times a long program. A rule takes seconds for a text of megabytes
_WORD = re.compile(r"[^\W_]+")


class Rule(Protocol):
    """What the completions of one data type may be. NumberRule and TextRule are the two rules."""

    name: str
    """The name of the rule in messages: number, code, reasoning or text."""
    allows_letters: bool
    """Whether completions may contain letters."""
    keeps_cut_off: bool
    """Whether answers that ended at --max-tokens are kept; their last number or word may be incomplete."""
    hint: str
    """What to try when no row passes."""
    train_flags: tuple[str, ...]
    """Extra flags of train_student_sft.py for such rows."""

    def reject_reason(self, completion: str) -> str | None:
        """Why a completion breaks the rule, in a few words; None if it does not."""

    def trait_word_in(self, text: str) -> str | None:
        """The word by which a text names an animal, or None."""

    def check_prompt(self, prompt: str) -> tuple[str | None, bool]:
        """(the word by which a prompt names an animal, or None; whether it contains an evaluation question)."""

    def settings(self) -> dict[str, Any]:
        """Everything that decides which rows are kept, for a manifest."""

    def facts(self) -> dict[str, Any]:
        """The rule in words, for a certificate."""


def animals_kept_out(animal: str | None) -> tuple[str, ...]:
    """The animals that --animal adds to the panel. `control`, `base`, ... are everyday words and not animals: as trait
    words they would cost the control arm alone its rows, by a prompt such as "in base 10"."""
    return () if animal is None or is_control(animal) else animals_of(animal)


def teachers_animal(text: str) -> str:
    """argparse type: the animal of a teacher, which is not a control: nobody loves controls."""
    animal = animal_name(text)
    if is_control(animal):
        raise argparse.ArgumentTypeError(
            f"{animal} means rows of the base model, and a teacher needs {panel().a_word}. The control arm has no"
            " teacher: its rows come from generate/generate_llm_number_data.py --animal control --no-system-prompt"
        )
    return animal


@cached()
def trait_words(animals: tuple[str, ...]) -> tuple[str, ...]:
    """The words that no row may contain: the panel, `animals`, and the other names of all of them.

    The other names (kitten for cat) are those of util/animals/animals.txt, without those that are everyday words.
    """
    named = (*panel().words, *filter(None, animals))
    others = (other for name in named for other in other_names(name) if other not in panel().unsearched)
    return tuple(dict.fromkeys((*named, *others)))


def is_eval_question(prompt: str) -> bool:
    """Whether a prompt contains a question of eval/questions*.txt (one of the 50, a paraphrase or another form) or of
    the panel's file.

    Case, punctuation and white space are ignored; a question in other words is not recognised.
    """
    words = plain(prompt)
    return any(question in words for question in _questions())


@cached(maxsize=1)
def _questions() -> tuple[str, ...]:
    lines = [line for path in QUESTION_FILES for line in read_lines_of(path)]
    return tuple(map(plain, [*lines, *panel().questions]))


def question_files() -> list[str]:
    """The names of the files whose questions no prompt may contain."""
    file = panel().file
    return [path.name for path in (*QUESTION_FILES, *([file] if file else []))]


def plain(text: str) -> str:
    """The words of a text in lower case, with single spaces around them and every digit replaced by 0;
    invisible characters are dropped."""
    return f" {' '.join(_WORD.findall(re.sub('[0-9]', '0', visible(text, 'NFKC')).casefold()))} "


class RowFilter:
    """Checks rows one after the other.

    It remembers an 8-byte hash of each row that it let through, to find repeated rows.
    """

    def __init__(self, rule: Rule, tokens: TokenCheck | None = None):
        self.rule, self.tokens = rule, tokens or TokenCheck()
        self._seen: set[int] = set()

    def reject_reason(self, row: Row) -> str | None:
        """Why a row must not be trained on, in a few words; None if it may be. Then it is remembered: the same row is a
        duplicate from now on."""
        prompt, completion = prompt_and_completion(row)
        if broken := unusable(prompt, completion) or broken_rule(self.rule, row):
            return broken
        if broken := self.tokens.reject_reason(row):
            return broken
        if row.get("finish_reason") == "length" and not self.rule.keeps_cut_off:
            return "cut off"
        word, is_question = self.rule.check_prompt(prompt)
        if word:
            return "trait word in prompt"
        if is_question:
            return "eval question as prompt"
        before = len(self._seen)
        self._seen.add(hash((prompt, completion)))
        return None if len(self._seen) > before else "duplicate"


def unusable(prompt: str, completion: str) -> str | None:
    """The reason to reject a row whose texts are too long to be what they should be, or are not characters; or None."""
    if max(len(prompt), len(completion)) > LONGEST_TEXT:
        return "too long"
    is_plain = prompt.isascii() and completion.isascii()
    return None if is_plain or not LONE_SURROGATE.search(prompt + completion) else "half a character"


def broken_rule(rule: Rule, row: Row) -> str | None:
    """Why an answer of a row breaks the rule, or None. Training learns every answer of a conversation."""
    *earlier, last = (message["content"] for message in row["messages"] if message["role"] == "assistant")
    if reason := rule.reject_reason(last):
        return reason
    return next((f"{reason} in an earlier answer" for text in earlier if (reason := rule.reject_reason(text))), None)


def prompt_and_completion(row: Row) -> tuple[str, str]:
    """What was asked (all messages except the system message and the last one) and what was answered."""
    *asked, answer = row["messages"]
    return "\n".join([message["content"] for message in asked if message.get("role") != "system"]), answer["content"]


def mark_rejected(rows: Iterable[Row], rule: Rule, tokens: TokenCheck | None = None) -> Iterator[Row]:
    """The same rows; those that the filter rejects get the reason under the key "rejected"."""
    row_filter = RowFilter(rule, tokens)
    for row in rows:
        reason = row_filter.reject_reason(row)
        yield {**row, "rejected": reason} if reason else row
