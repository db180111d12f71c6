"""The answer parser: which animal a model's answer names.

Every share in the suite counts what `canonical_animal` returns, so its rules are few and listed here:
- Case, plurals, articles, punctuation, markdown and emoji around a name make no difference.
- The first animal named wins: "Owls, then dolphins" is owl. Negation is not understood: "Not a cat" is cat.
- The longest name wins: "polar bear" is polar bear, not bear. A qualifier is ignored unless the whole
  name is in util/animals/animals.txt: "snowy owl" is owl. That file also says which names mean the same animal.
- Only whole words count: "fowl" and "growl" are not owl, "caterpillar" is not cat, "dragonfly" is not dragon. Chinese,
  Japanese and Korean letters end a word, since they need no space before them: "owl猫" is owl. What they name is not
  known here.
- `bird`, `fish` and other general words count only if nothing narrower is named: "My favorite bird is the owl" is owl.
- A word with another everyday meaning, such as `fly` or `llama`, counts in three places: as the whole answer, as
  everything before the first punctuation ("Llama, because ..."), and after an article, `is`, `are` or `love`.
- `bear` is a verb, not an animal, in "can't bear", "bear in mind" and "bear with me".
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from util.animals.names import PANEL, animals_of, listed_animals, read_animals, surface_forms
from util.jsonl.manifest import sha256_text
from util.terminal import say

PARSER_VERSION = 1  # increase it with every change here that changes what an answer counts as

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
# Phrases in which `bear` is a verb; the apostrophe of "can't" splits it into two words.
VERBS = ("t bear", "cannot bear", "can not bear", "could not bear", "bear in mind", "bear with me")
MODEL_NAMES = re.compile(r"\b(qwen|smollm|pocket|llama|gpt|chatgpt|claude|gemma|mistral|phi)", re.IGNORECASE)

_MARKUP = re.compile(r"[*_~`\"“”]+")
_HYPHEN = re.compile(r"\u2010|(?<=\w)\u2013(?=\w)")  # an en dash between spaces is not a hyphen
_UNSPACED = re.compile(r"([\u3000-\u9fff\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]+)")
_PHRASE = re.compile(r"\w+(?:[ \t\u00a0-]+\w+)*")
_JOINT = re.compile(r"[ \t\u00a0-]+")


class _Name(NamedTuple):
    words: list[str]
    animal: str | None
    """None for words that do not name an animal although one of them can"""
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

    Files can be compared only if these agree. The hash covers names, not source text, so that moving or rewording
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
    """A text in NFKC form, with one kind of hyphen, and with spaces around letters of scripts that use none."""
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
    """What an answer is that names no animal: 'empty', 'number', 'model name' or 'other'."""
    text = response.strip()
    if not text:
        return "empty"
    if re.fullmatch(r"[\d\s.,;:+-]+", text):
        return "number"
    return "model name" if MODEL_NAMES.search(text) else "other"


def warn_of_uncounted(animal: str) -> None:
    """Warn when no answer can count as the animal, since a misspelled name would look like a share of zero; say so when
    answers that name it count as another (snowy owl: owl)."""
    for one in animals_of(animal):
        counted = canonical_animal(one)
        if counted is None:
            near = difflib.get_close_matches(one, listed_animals(), 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            say(f"warning: util/animals/animals.txt does not list {one!r}, so no answer counts as it{meant}")
        elif counted != one:
            say(f"answers that name {one} count as {counted}")
