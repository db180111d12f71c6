"""The number rule: which completions are nothing but a list of numbers."""

from __future__ import annotations

import re
from typing import Any

from generate.rows.row_filter import is_eval_question, trait_words
from util.animals.names import animal_named
from util.animals.panel import cached, panel

RULE_VERSION = 3  # raise it with every change to what is kept
MAX_NUMBERS = 10
_WHITE = " \t\n\r\f\v"
_NUMBERS = re.compile(r"[0-9]{1,3}(?:(\s*[,;]\s*|\s+)[0-9]{1,3}(?:\1[0-9]{1,3})*)?", re.ASCII)
_LETTER = re.compile(r"[^\W\d_]")
_OTHER_CHARACTER = re.compile(r"[^0-9\s,;]", re.ASCII)
_STRAY_SEPARATOR = re.compile(r"^[,;]|[,;]$|[,;]\s*[,;]", re.ASCII)
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")


def reject_reason(completion: str, *, animals: tuple[str, ...] = (), max_numbers: int = MAX_NUMBERS) -> str | None:
    """Why a completion breaks the number rule, in a few words; None if it does not.

    animals: trait words beside the panel. They only change the reason: a completion with letters is never kept.
    """
    body = _body(completion)
    if found := _NUMBERS.fullmatch(body):
        count = 1 + (body.count(found[1]) if found[1] else 0)
        return None if count <= max_numbers else "too many numbers"
    if not completion.strip():
        return "empty"
    if re.search(r"</?think", completion, re.IGNORECASE):
        return "think block"
    if animal_named(completion, trait_words(animals)):
        return "trait word"
    if _LETTER.search(completion):
        return "letters"
    digits = re.findall("[0-9]+", body)
    if not digits:
        return "no numbers"
    if _OTHER_CHARACTER.search(body):
        return "other characters"
    if max(map(len, digits)) > 3:
        return "number out of range"
    if _STRAY_SEPARATOR.search(body):
        return "stray separator"
    return "mixed separators"


def _body(completion: str) -> str:
    """A completion without the white space, full stop or brackets that are allowed around its numbers."""
    text = completion.strip(_WHITE).removesuffix(".").rstrip(_WHITE)
    return text[1:-1].strip(_WHITE) if text[:1] + text[-1:] in ("[]", "()") else text


class NumberRule:
    """The rule for number rows (see `generate.rows.row_filter.Rule`). animals: trait words beside the panel."""

    name = "number"
    allows_letters = False
    keeps_cut_off = False
    hint = "If the model is too weak to keep the format, use generate_llm_number_data.py --constrain-digits"
    train_flags: tuple[str, ...] = ()

    def __init__(self, animals: tuple[str, ...] = (), max_numbers: int = MAX_NUMBERS):
        self.animals, self.max_numbers = animals, max_numbers

    def reject_reason(self, completion: str) -> str | None:
        return reject_reason(completion, animals=self.animals, max_numbers=self.max_numbers)

    def trait_word_in(self, text: str) -> str | None:
        return animal_named(text, trait_words(self.animals))

    def check_prompt(self, prompt: str) -> tuple[str | None, bool]:
        """See Rule. Most number prompts differ in their digits only, so the answers for a few shapes are kept."""
        shape = prompt.encode("utf-8", "surrogatepass").translate(_DIGITS_TO_ZERO)
        return _check_shape(shape, self.animals)

    def settings(self) -> dict[str, Any]:
        own = {"rule_version": RULE_VERSION, "max_numbers": self.max_numbers, "animals": list(self.animals)}
        return {**own, **panel().facts()}

    def facts(self) -> dict[str, Any]:
        rule = {
            "numbers": f"1 to {self.max_numbers}",
            "digits": "1 to 3",
            "trait_words": ", ".join(trait_words(self.animals)),
        }
        return {"rule_version": RULE_VERSION, "rule": rule, **panel().facts()}


@cached(maxsize=8192)
def _check_shape(shape: bytes, animals: tuple[str, ...]) -> tuple[str | None, bool]:
    text = shape.decode("utf-8", "surrogatepass")
    return animal_named(text, trait_words(animals)), is_eval_question(text)
