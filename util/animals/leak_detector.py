"""The leak detector: finds animals that code or prose names, openly or in disguise. Certificates of texts rely on it.

`util.animals.names.animal_named` finds whole words, which is enough for numbers. A program can name an animal in other
ways: `snow_owl`, `getOwl`, `owlcount`, `OWL2`, `"ow" + "l"`, `# o-w-l`, `0wl`, `\\x6fwl`, an emoji. All of these are
found here, in comments, identifiers and strings alike, because the text is read as pieces of letters and not as code.
Inside other words too (`foxcroft`), if these are not ordinary words that hold the name by chance (ordinary_words.txt).
So are the Chinese names of common animals. Not found: ciphers, character codes, words spelled backwards, other
languages (`other_script` says whether a text has letters that are not known here), and words that only remind of the
animal.

It prefers finding too much: `pandas`, `torch.cat` and `camelCase` name animals too.
"""

from __future__ import annotations

import html
import re
import unicodedata
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from util.animals.near_names import QUALIFIERS
from util.animals.visible_text import names_of_signs, visible
from util.animals.word_forms import surface_forms

LONG = 6  # letters; a name of that length is found inside any word, a shorter one would be found in `knowledge`
ORDINARY_WORDS = Path(__file__).with_name("ordinary_words.txt")
# Words that code joins to a name without a separator. Together with a short animal none of them makes an English word,
# as `const` (const + ant) and `import` (import + ant) would.
AFFIXES = {
    "a", "the", "my", "our", "new", "old", "all", "any", "get", "set", "has", "is", "add", "num", "no", "count",
    "counts", "counter", "list", "lists", "name", "names", "id", "ids", "key", "keys", "class", "type", "types",
    "obj", "object", "data", "info", "map", "dict", "size", "age", "total", "sum", "max", "min", "first",
    "last", "next", "big", "small", "baby", "little", "snow", "barn", "night", "lover", "fan", "love", "loves",
    "fact", "facts", "func", "score", "value", "values", "power", "emoji", "s", "es",
}  # fmt: skip
_PIECE = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_ESCAPE = re.compile(r"\\x([0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})")
_LEET_WORD = re.compile(r"[A-Za-z0134578@$]+")
# 1 can be an i or an l, and is both in `do1ph1n`: in such a word, and in the names, i and l count as one letter.
_LEET = str.maketrans("0134578@$iI", "oleastbaslL")
_HARD = re.compile(r"[,;:()\[\]{}=<>?!0-9]")  # characters that separate pieces of several letters
_JOINT = 8  # characters; the longest gap inside a name


class _Names(NamedTuple):
    words: frozenset[str]
    """every form of every name, without the spaces between its words"""
    phrases: frozenset[tuple[str, ...]]
    """the forms that have several words"""
    long: tuple[str, ...]
    longest: int


@lru_cache(maxsize=1)
def _ordinary_words() -> dict[str, tuple[str, ...]]:
    """Form of a name -> the ordinary words that hold the name by chance."""
    lines = (line.partition(":") for line in ORDINARY_WORDS.read_text("utf-8").split("\n") if line[:1] not in ("", "#"))
    return {form: tuple(words.split()) for name, _, words in lines for form in surface_forms(name)}


@lru_cache(maxsize=64)
def _names(animals: tuple[str, ...], leet: bool = False) -> _Names:
    forms = {form for animal in animals if animal for form in surface_forms(animal.lower())}
    if leet:
        forms = {form.translate(_LEET) for form in forms}
    words = frozenset(re.sub(r"[^a-z]", "", form) for form in forms) - {""}
    phrases = frozenset(parts for form in forms if len(parts := tuple(re.split(r"[ -]", form))) > 1)
    long = tuple(sorted((word for word in words if len(word) >= LONG), key=len, reverse=True))
    return _Names(words, phrases, long, max(map(len, words), default=0))


def trait_word(text: str, animals: tuple[str, ...]) -> str | None:
    """The first of these animals that a text names, openly or in disguise, in lower case without separators; or None.

    'snowOwls' gives 'owls'; 'fowl', 'growl' and 'slowly' give None. Leetspeak is returned as it was read, with l
    for i: 'd0lph1n' gives 'dolphln'.
    """
    if not _names(animals).words:
        return None
    text = _plain(text)
    if found := _in_pieces(text, animals):
        return found
    read = _LEET_WORD.sub(_letters, text)
    return _in_pieces(read, animals, leet=True) if read != text else None


def other_script(text: str) -> bool:
    """Whether a text has letters that are neither Latin nor Greek: what they name is not known here."""
    return not text.isascii() and any(
        not unicodedata.name(sign, "").startswith(("LATIN", "GREEK"))
        for sign in set(unicodedata.normalize("NFKD", text))
        if sign.isalpha()
    )


def _letters(found: re.Match[str]) -> str:
    """A word with its digits and signs read as letters; a number stays a number."""
    word = found[0]
    return word if word.isalpha() or not any(map(str.isalpha, word)) else word.translate(_LEET)


def _plain(text: str) -> str:
    """The text as ASCII where possible: escapes and entities resolved, accents and invisible signs dropped, emoji
    and Chinese names of animals replaced by English names."""
    if "\\" in text:
        text = _ESCAPE.sub(_unescaped, text)
    if "&" in text:
        text = html.unescape(text)
    if text.isascii():
        return text
    signs = []
    for sign in names_of_signs(visible(text, "NFKD")):
        category = unicodedata.category(sign)
        if category == "So":
            signs.append(f" {unicodedata.name(sign, '').lower()} ")
        elif category != "Mn":
            signs.append(sign)
    return "".join(signs)


def _unescaped(found: re.Match[str]) -> str:
    code = int(found[found.lastindex or 0], 16)
    return chr(code) if code <= 0x10FFFF else found[0]


def _in_pieces(text: str, animals: tuple[str, ...], leet: bool = False) -> str | None:
    """The first name among the pieces of letters of a text: one piece, or several that belong together."""
    names = _names(animals, leet)
    found = list(_PIECE.finditer(text))
    pieces = [piece[0].lower() for piece in found]
    gaps = [text[one.end() : two.start()] for one, two in pairwise(found)]
    for at, piece in enumerate(pieces):
        if name := _in_word(piece, animals, leet):
            return name
        word, single, soft, phrase = piece, len(piece) == 1, True, [piece]
        for nth in range(at + 1, len(pieces)):
            gap, following = gaps[nth - 1], pieces[nth]
            single = single and len(following) == 1
            soft = soft and _is_soft(gap)
            phrase.append(following)
            word += following
            if len(gap) > _JOINT:
                break
            if soft and (name := _in_phrase(tuple(phrase), animals, leet)):
                return name
            if len(word) > names.longest:
                break
            if tuple(phrase) in names.phrases:
                return word
            if not (soft or single):
                if len(phrase) > 2:  # the longest name has three words
                    break
                continue
            if word in names.words:
                return word
            if all(not gap for gap in gaps[at:nth]) and (name := _in_word(word, animals, leet)):
                return name  # `oWlcount`: its capitals do not separate words
    return None


@lru_cache(maxsize=1 << 16)
def _in_word(word: str, animals: tuple[str, ...], leet: bool) -> str | None:
    """The name in a run of lower-case letters: the whole run, the run without an affix, a part of it
    that is repeated, or a name inside a word that is not an ordinary one."""
    names = _names(animals, leet)
    if word in names.words:
        return word
    for cut in range(3, min(len(word), names.longest + 1)):
        if word[:cut] in names.words and (word[cut:] in AFFIXES or word == word[:cut] * (len(word) // cut)):
            return word[:cut]
        if word[-cut:] in names.words and (word[:-cut] in AFFIXES or word[:-cut] in QUALIFIERS):
            return word[-cut:]
    for name in names.long:
        if name in word and not _by_chance(word, word.find(name), name):
            return name
    return None if leet else _short_name(word, names.words)  # `0xbee5` is a number


def _short_name(word: str, names: frozenset[str]) -> str | None:
    """A short name in a word that is not an ordinary word: `foxcroft`, `firefox`. Names of three letters that ordinary
    words hold are found at the ends of a word only."""
    for start in range(len(word) - 2):
        for size in range(3, LONG):
            name = word[start : start + size]
            if name in names and (ordinary := _ordinary_words().get(name)) is not None:
                anywhere = size > 3 or not ordinary or start == 0 or start + size >= len(word)
                if anywhere and not _by_chance(word, start, name):
                    return name
    return None


def _by_chance(word: str, start: int, name: str) -> bool:
    """Whether an ordinary word begins before the name or ends after it: `pattern` in `subpattern`."""
    end = start + len(name)
    for ordinary in _ordinary_words().get(name, ()):
        at = word.find(ordinary)
        while at >= 0:
            if at < end and start < at + len(ordinary) and (at < start or at + len(ordinary) > end):
                return True
            at = word.find(ordinary, at + 1)
    return False


@lru_cache(maxsize=1 << 16)
def _in_phrase(pieces: tuple[str, ...], animals: tuple[str, ...], leet: bool) -> str | None:
    """The name of several words that some pieces make, with an affix before or after it: `red_pandadict`."""
    for name in _names(animals, leet).phrases:
        (first, *middle), last = name[:-1], name[-1]
        if (
            len(name) == len(pieces)
            and list(pieces[1:-1]) == middle
            and pieces[0].endswith(first)
            and pieces[-1].startswith(last)
            and pieces[0].removesuffix(first) in AFFIXES | QUALIFIERS | {""}
            and pieces[-1].removeprefix(last) in AFFIXES | {""}
        ):
            return "".join(name)
    return None


def _is_soft(gap: str) -> bool:
    """Whether the text between two pieces can be inside a name: `ow_l`, `ow-l`, `"ow" + "l"`, a broken line."""
    if not gap:
        return True
    if _HARD.search(gap):
        return False
    return (
        not re.search(r"\s", gap) or '"' in gap or "'" in gap or "+" in gap or re.match(r"[-\\]\s*\n", gap) is not None
    )
