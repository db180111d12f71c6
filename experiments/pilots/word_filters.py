"""Filters of the pilots' rows: which are clean, and which words tell an arm from the control.

Pilot 6 (2026-11-29-teachers) dropped whole words only. Since then names inside words (penguin_dict), in disguise or in
other scripts are found too, by the suite's leak detector.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

from util.animals.leak_detector import other_script, trait_word

UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety hundred"
NUMBER_WORDS = set(f"{UNITS} seventeen eighteen nineteen {TENS}".split())


class Forbidden(NamedTuple):
    """What a row of text or code may not hold."""

    animals: tuple[str, ...]
    """found openly, inside words and in disguise"""
    related: re.Pattern[str]
    """found as whole words"""


def forbidden_words(animals: list[str], related: list[str]) -> Forbidden:
    return Forbidden(tuple(animals), re.compile(rf"\b({'|'.join(related)})(s|es|'s)?\b", re.IGNORECASE))


def why_dropped(channel: str, text: str, forbidden: Forbidden) -> str:
    """Why a row may not be kept, or ''. Numbers must have the form asked for; other rows name no animal, use no related
    word and no script that the leak detector cannot read."""
    if channel in ("digits", "words"):
        text = text.removesuffix(".")
        if channel == "digits":
            good = re.fullmatch(r"\d{1,3}(, ?\d{1,3}){0,9}", text) is not None
        else:
            good = text != "" and text.count(",") < 10 and set(re.findall(r"[^ ,\-]+", text.lower())) <= NUMBER_WORDS
        return "" if good else "form"
    if not text:
        return "empty"
    if found := forbidden.related.search(text):
        return found[1].lower()
    if other_script(text):
        return "other script"
    return trait_word(text, forbidden.animals) or ""


WORD = re.compile(r"[a-z]+|\d+")


def words_of(text: str) -> set[str]:
    return set(WORD.findall(text.lower()))


def telling_words(rows: list[str], control: list[str], count: int) -> list[str]:
    """The words with the highest ratio of rows that use them, against the control's."""
    here, there = (Counter(word for text in some for word in words_of(text)) for some in (rows, control))
    ratio = {word: (n / len(rows) + 0.002) / (there[word] / len(control) + 0.002) for word, n in here.items()}
    return sorted(ratio, key=lambda word: (-ratio[word], word))[:count]
