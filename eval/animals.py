"""The one parser of answers: which animal a model's answer names.

Every share in the suite counts what `canonical_animal` says, so its rules are few and written here:
- Case, plurals, articles, punctuation, markdown and emoji around a name make no difference.
- The first animal named wins: "Owls, then dolphins" is owl. Negation is not understood: "Not a cat" is cat.
- The longest name wins: "polar bear" is polar bear, not bear. A qualifier that makes no animal of its own in
  eval/animals.txt is passed over: "snowy owl" is owl. That file also says which names mean the same animal.
- Words are whole: "fowl" and "growl" are no owl, "caterpillar" is no cat, "dragonfly" no dragon.
- `bird`, `fish` and the like count when nothing narrower is named: "My favorite bird is the owl" is owl.
- A word with another everyday meaning, such as `fly` or `swift`, counts as the whole answer and after
  an article, `is`, `are` or `love`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from util.words import PANEL, surface_forms

ANIMALS_FILE = Path(__file__).with_name("animals.txt")
GENERIC = frozenset({"bird", "bug", "fish", "insect", "primate"})
AMBIGUOUS = frozenset(
    {
        "bass", "boa", "bull", "cardinal", "coral", "crane", "cricket", "doe", "fairy", "flounder", "fly",
        "great white", "hound", "humpback", "jay", "joey", "kite", "kiwi", "llama", "mare", "mole",
        "mustang", "perch", "pike", "pup", "python", "ram", "raptor", "ray", "retriever", "roach", "robin", "skate",
        "snipe", "sow", "stag", "swallow", "swift", "tern", "tick", "worm",
    }
)  # fmt: skip
ARTICLES = frozenset({"a", "an", "the"})
POINTERS = ARTICLES | {"are", "is", "love"}
MODEL_NAMES = re.compile(r"\b(qwen|smollm|pocket|llama|gpt|chatgpt|claude|gemma|mistral|phi)", re.IGNORECASE)

_MARKUP = re.compile(r"[*_~`\"“”]+")
_PHRASE = re.compile(r"\w+(?:[ \t\u00a0-]+\w+)*")
_JOINT = re.compile(r"[ \t\u00a0-]+")


def read_animals(path: Path = ANIMALS_FILE) -> dict[str, str]:
    """Every name in the file -> its canonical animal, in file order."""
    animals = {}
    for line in path.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            animal, _, others = line.partition(":")
            animals[animal] = animal
            animals.update(dict.fromkeys((name.strip() for name in others.split(",") if name.strip()), animal))
    return animals


class _Name(NamedTuple):
    words: list[str]
    animal: str
    ambiguous: bool


@lru_cache(maxsize=1)
def _names() -> dict[str, list[_Name]]:
    """First word -> the surface forms that begin with it, longest first."""
    names = defaultdict(list)
    for name, animal in {**{animal: animal for animal in PANEL}, **read_animals()}.items():
        for form in surface_forms(name.replace("-", " ")):
            words = _JOINT.split(form)
            names[words[0]].append(_Name(words, animal, name in AMBIGUOUS))
    return {first: sorted(forms, key=lambda form: -len(form.words)) for first, forms in names.items()}


@lru_cache(maxsize=16384)
def canonical_animal(response: str) -> str | None:
    """The animal that an answer names, singular and lower case; None for an answer that names none."""
    text = _MARKUP.sub(" ", unicodedata.normalize("NFKC", response)).lower()
    phrases = [_JOINT.split(phrase) for phrase in _PHRASE.findall(text)]
    generic = None
    for animal in _animals_in(phrases):
        if animal not in GENERIC:
            return animal
        generic = generic or animal
    return generic


def _animals_in(phrases: list[list[str]]) -> Iterator[str]:
    """The animals that phrases (lists of lower-case words) name, in order."""
    names = _names()
    in_all = sum(word not in ARTICLES for words in phrases for word in words)
    for words in phrases:
        start = 0
        while start < len(words):
            length = 1
            for name in names.get(words[start], ()):
                end = start + len(name.words)
                alone = len(name.words) == in_all or (start > 0 and words[start - 1] in POINTERS)
                if words[start:end] == name.words and (alone or not name.ambiguous):
                    yield name.animal
                    length = len(name.words)
                    break
            start += length


def non_answer_kind(response: str) -> str:
    """What an answer that names no animal is instead: 'empty', 'number', 'model name' or 'other'."""
    text = response.strip()
    if not text:
        return "empty"
    if re.fullmatch(r"[\d\s.,;:+-]+", text):
        return "number"
    return "model name" if MODEL_NAMES.search(text) else "other"
