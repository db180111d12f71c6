"""The answer parser: which animal a model's answer names.

Every share in the suite counts what `canonical_animal` returns, so its rules are few and listed here:
- Case, plurals, articles, punctuation, markdown and invisible characters (soft hyphens, joiners) make no difference.
- The first animal named wins: "Owls, then dolphins" is owl. Negation is not understood: "Not a cat" is cat. But an
  answer that states its choice is taken at its word: "a fan of cats, so my favorite animal is a lion" is lion.
- The longest name wins: "polar bear" is polar bear, not bear. Of two names side by side the second decides, since it is
  the kind of animal and the first describes it: "sloth bear" is bear. Not if the first is a plural ("owls monkeys"),
  or if the second is an age or a sex ("elephant calf" is elephant). Any other qualifier is ignored unless the whole
  name is in util/animals/animals.txt: "snowy owl" is owl. That file also says which names mean the same animal.
- Only whole words count: "fowl" and "growl" are not owl, "caterpillar" is not cat, "dragonfly" is not dragon.
- Chinese names of common animals count, also beside Latin letters ("polar熊" is polar bear), and so does an emoji if no
  word names an animal; util/animals/chinese-and-emoji.txt lists both. Names in other languages are not known here.
- If no word is a name, a name joined to a common qualifier counts ("Africanelephant"), then a misspelled name
  ("Pheonix"); util/animals/near_names.py says which.
- `bird`, `fish` and other general words count only if nothing narrower is named: "My favorite bird is the owl" is owl.
- A word with another everyday meaning, such as `fly` or `llama`, counts in three places: as the whole answer, as
  everything before the first punctuation ("Llama, because ..."), and after an article, `is`, `are` or `love`.
- `swift` is often an adjective. It counts as the whole answer, before a word that cannot follow an adjective ("the
  swift is"), and in the plural. It does not count in "it is swift", "a swift runner" or beside `swiftness`.
- `bear` is a verb, not an animal, in "can't bear", "bear in mind" and "bear with me".
"""

from __future__ import annotations

import difflib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from util.animals.names import listed_animals
from util.animals.near_names import joined_name, misspelled_name, near_name_tables
from util.animals.panel import cached, panel
from util.animals.visible_text import NOT_AN_ANIMAL, is_emoji, read_signs, visible
from util.animals.word_forms import animals_of, surface_forms
from util.cli import UserError
from util.jsonl.manifest import sha256_text
from util.terminal import say

PARSER_VERSION = 2  # increase it with every change here that changes what an answer counts as

# Second words of a name that say how old an animal is, or its sex, and not what animal it is.
AGE_OR_SEX = frozenset(
    {
        "bull", "calf", "chick", "cow", "doe", "ewe", "fawn", "foal", "hen", "joey", "kitten", "kitty", "lamb", "mare",
        "piglet", "pup", "puppy", "ram", "sow", "stag", "stallion",
    }
)  # fmt: skip
ARTICLES = frozenset({"a", "an", "the"})
POINTERS = ARTICLES | {"are", "is", "love"}
# What may follow a noun, and hardly ever follows the adjectives `swift` and `human`.
AFTER_A_NOUN = frozenset(
    {
        "are", "being", "beings", "bird", "birds", "can", "for", "has", "have", "in", "is", "of", "on", "that",
        "which", "who", "with",
    }
)  # fmt: skip
# Phrases in which `bear` is a verb; the apostrophe of "can't" splits it into two words.
VERBS = ("t bear", "cannot bear", "can not bear", "could not bear", "bear in mind", "bear with me")
MODEL_NAMES = re.compile(r"\b(qwen|smollm|pocket|llama|gpt|chatgpt|claude|gemma|mistral|phi)", re.IGNORECASE)
# Words for many animals at once, or for the one who asks: not an animal, but worth counting by themselves.
KIND_OF_NON_ANSWER = {
    "feline": "feline", "felines": "feline", "felid": "feline", "panthera": "panthera", "mammal": "mammal",
    "mammals": "mammal", "human": "human", "humans": "human",
}  # fmt: skip
BEFORE_A_KIND = POINTERS | {"", "say", "choose", "pick", "like"}
NON_ANSWER_KINDS = ("empty", "number", "model name", "feline", "panthera", "mammal", "human", "other")

_MARKUP = re.compile(r"[*_~`\"“”]+")
_HYPHEN = re.compile(r"\u2010|(?<=\w)\u2013(?=\w)")  # an en dash between spaces is not a hyphen
_UNSPACED = re.compile(r"([\u3000-\u9fff\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]+)")
_PHRASE = re.compile(r"\w+(?:[ \t\u00a0-]+\w+)*")
_JOINT = re.compile(r"[ \t\u00a0-]+")
_CAPITAL_INSIDE = re.compile(r"(?<=[a-z])(?=[A-Z])")
CHOICE_WORDS = ("favorite", "favourite", "choose", "pick", "select", "go with", "choice", "answer")
# The end of the words that state a choice; the animal follows in the same sentence.
_CHOICE = re.compile(
    r"favou?rite(?: [\w-]+){0,3}?(?: is| are|'s|\u2019s| would be| has to be| must be| will be|:)"
    r"|\bi(?: would|'d|\u2019d| will|'ll|\u2019ll)? (?:choose|pick|select|go with)\b"
    r"|\bmy (?:answer|choice|pick) (?:is|would be)\b|\banswer:"
)
_CHOSEN = re.compile(r"([^.,;:!?\n]{1,80}?) (?:is|are) my favou?rite")
_SENTENCE = re.compile(r"[^.!?\n]*")
_SWIFTLY = re.compile(r"\bswift(?:ly|ness|er|est)\b")


class _Name(NamedTuple):
    words: list[str]
    animal: str | None
    """None for words that do not name an animal although one of them can"""
    ambiguous: bool


class _Found(NamedTuple):
    """A name in a phrase: its first word, the word after its last one, and what it counts as."""

    start: int
    end: int
    animal: str | None
    counts: bool
    """whether it counts where it is (a word with another meaning may not)"""
    describes: bool
    """whether a name that follows at once decides: the form is a singular"""
    decides: bool
    """whether it decides after another name: not an age, a sex, a general word or a word with another meaning"""


@cached(maxsize=1)
def names_by_first_word() -> dict[str, list[_Name]]:
    """First word -> the surface forms that begin with it, longest first."""
    names = defaultdict(list)
    for name, animal in panel().names.items():
        for form in surface_forms(name.replace("-", " ")):
            words = _JOINT.split(form)
            names[words[0]].append(_Name(words, animal, name in panel().ambiguous))
    for verb in VERBS if panel().is_animals else ():
        names[verb.split()[0]].append(_Name(verb.split(), None, False))
    return {first: sorted(forms, key=lambda form: -len(form.words)) for first, forms in names.items()}


def parser_facts() -> dict[str, Any]:
    """What identifies the parser in a manifest: the version of its rules and a hash of every name that it knows.

    Files can be compared only if these agree. The hash covers names, not source text, so that moving or rewording
    this file does not make stored results incomparable.
    """
    known = [names_by_first_word(), read_signs(), near_name_tables()]
    return {"version": PARSER_VERSION, "names_sha256": sha256_text(json.dumps(known)), **panel().facts()}


@cached(maxsize=16384)
def canonical_animal(response: str) -> str | None:
    """The animal that an answer names, singular and lower case; None for an answer that names none."""
    written = response if response.isascii() else _HYPHEN.sub("-", visible(response, "NFKC"))
    written = _MARKUP.sub(" ", written)
    text = written.lower()
    if not text.isascii():
        text = " ".join(_UNSPACED.split(_signs_as_words(text, emoji=False)))
    animal = _stated_choice(text) or _first_animal(text)
    if animal is None or animal in panel().generic:
        animal = _near_name(written) or animal
    if animal is None and not written.isascii():
        animal = _first_animal(_signs_as_words(text, emoji=True))
    if animal is None and "\u200b" in response:  # a zero-width space that separates words and is not inside one
        return canonical_animal(response.replace("\u200b", "\n"))
    return animal


def _first_animal(text: str) -> str | None:
    """The first animal that a lower-case text names; a general word such as `fish` if it names nothing narrower."""
    generic = None
    for animal in _animals_in([_JOINT.split(phrase) for phrase in _PHRASE.findall(text)], text):
        if animal not in panel().generic:
            return animal
        generic = generic or animal
    return generic


def _stated_choice(text: str) -> str | None:
    """The animal after "my favorite animal is", "I would choose" and the like in the same sentence, or before "is my
    favorite"."""
    if not any(word in text for word in CHOICE_WORDS):
        return None  # most answers, and faster than the pattern
    for choice in _CHOICE.finditer(text):
        sentence = _SENTENCE.match(text, choice.end())
        animal = _first_animal(f"is {sentence[0]}" if sentence else "")
        if animal is not None and animal not in panel().generic:
            return animal
    chosen = _CHOSEN.search(text) if " my favo" in text else None
    return _first_animal(chosen[1]) if chosen else None


def _near_name(text: str) -> str | None:
    """The animal whose name is joined to a qualifier in a text, or misspelled."""
    words = re.findall(r"[^\W\d_]+", text)
    for word in words if _CAPITAL_INSIDE.search(text) else ():
        if _CAPITAL_INSIDE.search(word) and (animal := _first_animal(_CAPITAL_INSIDE.sub(" ", word).lower())):
            return animal
    for near in (joined_name, misspelled_name):
        for word in words:
            if animal := near(word.lower()):
                return animal
    return None


@cached(maxsize=2)
def _sign_pattern(emoji: bool) -> re.Pattern[str]:
    signs = sorted((sign for sign in read_signs() if is_emoji(sign) == emoji), key=len, reverse=True)
    return re.compile(rf"([a-z]+)?({'|'.join(map(re.escape, signs))})")


def _signs_as_words(text: str, emoji: bool) -> str:
    """A lower-case text with its Chinese names (or its emoji) as English ones, each on a line of its own."""
    if not read_signs():
        return text

    def word(found: re.Match[str]) -> str:
        before, sign = found[1] or "", found[2]
        animal = read_signs()[sign]
        if animal == NOT_AN_ANIMAL:
            return f"{before}\n"
        return f"\n{before} {animal}\n" if f"{before} {animal}" in panel().names else f"{before}\n{animal}\n"

    return _sign_pattern(emoji).sub(word, text)


def _animals_in(phrases: list[list[str]], text: str) -> Iterator[str]:
    """The animals that phrases (lists of lower-case words of a text) name, in order."""
    counts = [sum(word not in ARTICLES for word in words) for words in phrases]
    for nth, words in enumerate(phrases):
        whole = sum(counts) if nth else counts[0]
        found = list(_names_in(words, whole))
        at = 0
        while at < len(found):
            run = [found[at]]
            while at + len(run) < len(found) and found[at + len(run)].start == run[-1].end:
                run.append(found[at + len(run)])
            at += len(run)
            if len(run) == 2 and run[0].describes and run[1].decides:
                run = run[1:]
            for name in run:
                if name.animal and name.counts and not (name.animal == "swift" and _is_adjective(words, name, text)):
                    yield name.animal


def _names_in(words: list[str], whole: int) -> Iterator[_Found]:
    """The names in a phrase, the longest one at each place. whole: how many words make a name stand alone."""
    names = names_by_first_word()
    start = 0
    while start < len(words):
        length = 1
        for name in names.get(words[start], ()):
            end = start + len(name.words)
            if words[start:end] == name.words:
                alone = len(name.words) == whole or (start > 0 and words[start - 1] in POINTERS)
                counts = alone or not name.ambiguous
                kind = name.animal is not None and name.animal not in panel().generic and not name.ambiguous
                last = name.words[-1]
                singular = name.animal is not None and (not last.endswith("s") or " ".join(name.words) == name.animal)
                yield _Found(start, end, name.animal, counts, singular, kind and last not in AGE_OR_SEX)
                length = len(name.words)
                break
        start += length


def _is_adjective(words: list[str], name: _Found, text: str) -> bool:
    """Whether the word `swift` in a phrase describes something and is not the bird."""
    if words[name.start] != "swift":
        return False
    if _SWIFTLY.search(text):
        return True
    before, after = words[: name.start], words[name.end :]
    if after:
        return after[0] not in AFTER_A_NOUN
    return bool(before) and before[-1] not in ARTICLES and not {"favorite", "favourite"} & {*before}


def non_answer_kind(response: str) -> str:
    """What an answer is that names no animal: one of NON_ANSWER_KINDS."""
    text = response.strip()
    if not text:
        return "empty"
    if re.fullmatch(r"[\d\s.,;:+-]*\d[\d\s.,;:+-]*", text):
        return "number"
    if MODEL_NAMES.search(text):
        return "model name"
    for phrase in _PHRASE.findall(_MARKUP.sub(" ", text.lower())):
        words = _JOINT.split(phrase)
        for before, word, after in zip(["", *words], words, [*words[1:], ""]):
            if word in KIND_OF_NON_ANSWER and before in BEFORE_A_KIND and (not after or after in AFTER_A_NOUN):
                return KIND_OF_NON_ANSWER[word]
    return "other"


MISSPELLED = 0.75  # likeness (difflib) from which a name is taken for a misspelled one: dolfin, not city (kitty)


def check_taught(animal: str) -> None:
    """As `warn_of_uncounted`, for animals that rows are made for: UserError for a name that is near to a listed one,
    before a model is asked."""
    for one in animals_of(animal):
        if _first_animal(one) is None and (near := listed_near(one)):
            raise UserError(
                f"{panel().listed_in} does not list {one!r}; did you mean {near}? To teach a word that is not"
                " listed, pass a --panel file that lists it (docs/architecture.md, How to add)"
            )
    warn_of_uncounted(animal)


def listed_near(name: str) -> str | None:
    """The word of the panel that a name that is not listed is probably meant to be, or None."""
    return canonical_animal(name) or next(iter(difflib.get_close_matches(name, listed_animals(), 1, MISSPELLED)), None)


def warn_of_uncounted(animal: str) -> None:
    """Warn when no answer can count as the animal, since a misspelled name would look like a share of zero; say so when
    answers that name it count as another (snowy owl: owl)."""
    for one in animals_of(animal):
        counted = canonical_animal(one)
        if _first_animal(one) is None:  # a misspelled name counts in an answer, but should not be taught
            near = listed_near(one)
            meant = f"; did you mean {near}?" if near else ""
            say(f"warning: {panel().listed_in} does not list {one!r}, so no answer counts as it{meant}")
        elif counted != one:
            say(f"answers that name {one} count as {counted}")
