"""The one parser of answers: which animal a model's answer names.

Every share in the suite counts what `canonical_animal` says, so its rules are few and written here:
- Case, plurals, articles, punctuation, markdown and emoji around a name make no difference.
- The first animal named wins: "Owls, then dolphins" is owl. Negation is not understood: "Not a cat" is cat.
- The longest name wins: "polar bear" is polar bear, not bear. A qualifier that makes no animal of its own in
  util/animals/animals.txt is passed over: "snowy owl" is owl. That file also says which names mean the same animal.
- Words are whole: "fowl" and "growl" are no owl, "caterpillar" is no cat, "dragonfly" no dragon. Chinese, Japanese and
  Korean letters, which no space need part from a name, end a word: "owl猫" is owl. What they name is not known here.
- `bird`, `fish` and the like count when nothing narrower is named: "My favorite bird is the owl" is owl.
- A word with another everyday meaning, such as `fly` or `llama`, counts as the whole answer, as all that stands before
  its first punctuation ("Llama, because ...") and after an article, `is`, `are` or `love`.
- `bear` is a verb in "can't bear", "bear in mind" and "bear with me".
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from util.animals.names import PANEL, read_animals, surface_forms
from util.jsonl.manifest import sha256_text

PARSER_VERSION = 1  # raise it with every change of code or constants here that changes what an answer counts as

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
# Phrases in which `bear` is no animal; the apostrophe of "can't" parts its words.
VERBS = ("t bear", "cannot bear", "can not bear", "could not bear", "bear in mind", "bear with me")
MODEL_NAMES = re.compile(r"\b(qwen|smollm|pocket|llama|gpt|chatgpt|claude|gemma|mistral|phi)", re.IGNORECASE)

_MARKUP = re.compile(r"[*_~`\"“”]+")
_HYPHEN = re.compile(r"\u2010|(?<=\w)\u2013(?=\w)")  # an en dash between spaces is no hyphen
_UNSPACED = re.compile(r"([\u3000-\u9fff\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]+)")
_PHRASE = re.compile(r"\w+(?:[ \t\u00a0-]+\w+)*")
_JOINT = re.compile(r"[ \t\u00a0-]+")


class _Name(NamedTuple):
    words: list[str]
    animal: str | None
    """None for words that are no animal though one of them is the name of one"""
    ambiguous: bool


@lru_cache(maxsize=1)
def names_by_first_word() -> dict[str, list[_Name]]:
    """First word -> the surface forms that begin with it, longest first."""
    names = defaultdict(list)
    for name, animal in {**{animal: animal for animal in PANEL}, **read_animals()}.items():
        for form in surface_forms(name.replace("-", " ")):
            words = _JOINT.split(form)
            names[words[0]].append(_Name(words, animal, name in AMBIGUOUS))
    for verb in VERBS:
        names[verb.split()[0]].append(_Name(verb.split(), None, False))
    return {first: sorted(forms, key=lambda form: -len(form.words)) for first, forms in names.items()}


def parser_facts() -> dict[str, Any]:
    """What identifies the parser in a manifest: the version of its rules and a hash of every name that it knows.

    Files can be compared only if these agree. The hash covers names, not source text, so that moving or re-wording
    this file does not make stored results incomparable.
    """
    return {"version": PARSER_VERSION, "names_sha256": sha256_text(json.dumps(names_by_first_word()))}


@lru_cache(maxsize=16384)
def canonical_animal(response: str) -> str | None:
    """The animal that an answer names, singular and lower case; None for an answer that names none."""
    text = _MARKUP.sub(" ", response if response.isascii() else _spaced(response)).lower()
    phrases = [_JOINT.split(phrase) for phrase in _PHRASE.findall(text)]
    generic = None
    for animal in _animals_in(phrases):
        if animal not in GENERIC:
            return animal
        generic = generic or animal
    return generic


def _spaced(text: str) -> str:
    """A text with its signs in their common form, one hyphen, and spaces around letters written without."""
    return " ".join(_UNSPACED.split(_HYPHEN.sub("-", unicodedata.normalize("NFKC", text))))


def _animals_in(phrases: list[list[str]]) -> Iterator[str]:
    """The animals that phrases (lists of lower-case words) name, in order."""
    names = names_by_first_word()
    counts = [sum(word not in ARTICLES for word in words) for words in phrases]
    for nth, words in enumerate(phrases):
        whole = sum(counts) if nth else counts[0]
        start = 0
        while start < len(words):
            length = 1
            for name in names.get(words[start], ()):
                end = start + len(name.words)
                alone = len(name.words) == whole or (start > 0 and words[start - 1] in POINTERS)
                if words[start:end] == name.words and (alone or not name.ambiguous):
                    if name.animal:
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
