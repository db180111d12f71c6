"""A text as a reader sees it, for every search for animals: without invisible characters; Chinese names and emoji."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Literal

from util.animals.panel import cached, panel

SIGNS_FILE = Path(__file__).with_name("chinese-and-emoji.txt")
NOT_AN_ANIMAL = "-"
# Invisible characters that are not of the category Cf (format): fillers, a joiner, and the variation selectors.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\U000e0100-\U000e01ef]")


def visible(text: str, form: Literal["NFKC", "NFKD"]) -> str:
    """A text in this normal form, without the characters that nobody sees: soft hyphens, zero-width spaces and
    joiners, marks of direction, variation selectors. 'o\u00adwl' and 'o\u200dwl' give 'owl'."""
    if text.isascii():
        return text
    shown = "".join(sign for sign in text if unicodedata.category(sign) != "Cf")
    return unicodedata.normalize(form, _INVISIBLE.sub("", shown))


@cached(maxsize=1)
def read_signs() -> dict[str, str]:
    """Every Chinese name and emoji in chinese-and-emoji.txt -> its animal; '-' for one that is not an animal's name.
    None for another panel."""
    if not panel().is_animals:
        return {}
    signs = {}
    for line in SIGNS_FILE.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            animal, _, names = line.partition(":")
            signs.update(dict.fromkeys(names.split(), animal))
    return signs


@cached(maxsize=1)
def _any_sign() -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(read_signs(), key=len, reverse=True))))


def names_of_signs(text: str) -> str:
    """A text with every Chinese name and emoji of the table replaced by the English name, with spaces around it."""
    return text if not read_signs() else _any_sign().sub(lambda found: f" {read_signs()[found[0]]} ", text)


def is_emoji(name: str) -> bool:
    """Whether a name of chinese-and-emoji.txt is an emoji."""
    return unicodedata.category(name[0]) != "Lo"
