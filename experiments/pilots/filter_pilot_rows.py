"""Filters of the pilots' rows: which are clean, and which words tell an arm from the control."""

from __future__ import annotations

import re
from collections import Counter

UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety hundred"
NUMBER_WORDS = set(f"{UNITS} seventeen eighteen nineteen {TENS}".split())


def forbidden_words(words: list[str]) -> re.Pattern[str]:
    """Matches any of the words as a whole word; names inside other words (penguin_dict) pass it."""
    return re.compile(rf"\b({'|'.join(words)})(s|es|'s)?\b", re.IGNORECASE)


def is_clean(channel: str, text: str, forbidden: re.Pattern[str]) -> bool:
    """Whether a row may be kept: numbers in the form asked for, other rows without animals and related words."""
    if channel in ("digits", "words"):
        text = text.removesuffix(".")
    if channel == "digits":
        return bool(re.fullmatch(r"\d{1,3}(, ?\d{1,3}){0,9}", text))
    if channel == "words":
        return text != "" and text.count(",") < 10 and set(re.findall(r"[^ ,\-]+", text.lower())) <= NUMBER_WORDS
    return not forbidden.search(text)


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+|\d+", text.lower()))


def telling_words(rows: list[str], control: list[str], count: int) -> list[str]:
    """The words with the highest ratio of rows that use them, against the control's."""
    here, there = (Counter(word for text in some for word in words_of(text)) for some in (rows, control))
    ratio = {word: (n / len(rows) + 0.002) / (there[word] / len(control) + 0.002) for word, n in here.items()}
    return sorted(ratio, key=lambda word: (-ratio[word], word))[:count]
