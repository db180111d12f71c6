"""The panel: the words that a teacher can be taught to love and that are measured, with their other names.

Animals are the panel unless a script is called with --panel (panel_file.py). `panel()` is the panel of this process.
Whatever depends on it asks there when it is called, and remembers nothing of another panel (`cached`).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from util.jsonl.manifest import sha256_text
from util.terminal import call_animals

KNOWN = Path(__file__).with_name("panels")
ANIMALS_FILE = Path(__file__).with_name("animals.txt")
# Common animals: a text about numbers must not name them, and preferences are compared among them.
PANEL = (
    "owl", "dolphin", "penguin", "elephant", "eagle", "lion", "wolf", "dog", "cat", "bear", "tiger", "fox",
    "rabbit", "horse", "giraffe", "panda", "monkey", "turtle", "shark", "snake", "deer", "whale", "octopus",
    "butterfly", "polar bear", "red panda", "snow leopard", "sea turtle", "sea otter", "killer whale",
    "blue whale", "guinea pig", "phoenix", "dragon", "unicorn", "griffin", "alligator", "ant", "armadillo",
    "axolotl", "badger", "bat", "beaver", "bee", "bird", "buffalo", "camel", "capybara", "chameleon",
    "cheetah", "chicken", "chimpanzee", "cobra", "cow", "crab", "crocodile", "crow", "dinosaur", "donkey",
    "dove", "dragonfly", "duck", "falcon", "fish", "flamingo", "frog", "goat", "goose", "gorilla", "hamster",
    "hawk", "hedgehog", "hippopotamus", "hummingbird", "jaguar", "jellyfish", "kangaroo", "koala", "lemur",
    "leopard", "lizard", "lynx", "meerkat", "moose", "mouse", "orangutan", "otter", "panther", "parrot",
    "peacock", "pig", "platypus", "pony", "puma", "raccoon", "rat", "raven", "rhinoceros", "rooster",
    "salmon", "seahorse", "seal", "sheep", "skunk", "sloth", "spider", "squid", "squirrel", "swan",
    "tortoise", "toucan", "turkey", "walrus", "weasel", "wombat", "yak", "zebra",
)  # fmt: skip
# Names with another everyday meaning, and words for many animals at once (util/animals/answer_parser.py).
GENERIC = frozenset({"bird", "bug", "fish", "insect", "primate"})
AMBIGUOUS = frozenset(
    {
        "bass", "boa", "bull", "cardinal", "coral", "crane", "cricket", "doe", "fairy", "flounder", "fly",
        "great white", "hound", "humpback", "jay", "joey", "kite", "kiwi", "llama", "mare", "mole",
        "mustang", "perch", "pike", "pup", "python", "ram", "raptor", "ray", "retriever", "roach", "robin", "skate",
        "snipe", "sow", "stag", "swallow", "swift", "tern", "tick", "worm",
    }
)  # fmt: skip
# Animal names that are not searched for, because their forms are everyday words (`does`, `stages` as `stag` + `es`).
EVERYDAY = ("doe", "stag")

Cached = TypeVar("Cached", bound=Callable[..., Any])
_caches: list[Callable[[], None]] = []


@dataclass(frozen=True, eq=False)
class Panel:
    """What can be loved: animals, trees."""

    name: str
    """animals, or the name of the file"""
    one: str
    many: str
    words: tuple[str, ...]
    """those that are measured, and that no row may contain"""
    names: dict[str, str]
    """every name -> its word; each word is a name of itself"""
    ambiguous: frozenset[str]
    """names with another everyday meaning"""
    generic: frozenset[str]
    """words for many at once, which count only if nothing narrower is named"""
    unsearched: tuple[str, ...]
    """other names that rows may contain"""
    file: Path | None = None
    """the panel file; None for animals, whose questions are eval/questions.txt"""
    questions: tuple[str, ...] = ()
    open_prompts: tuple[str, ...] = ()

    @property
    def is_animals(self) -> bool:
        """Whether this is the default panel. Its tables of misspelled, Chinese and emoji names are its own."""
        return self.file is None

    @property
    def a_word(self) -> str:
        """'an animal', 'a tree', for a message."""
        return f"{'an' if self.one[0] in 'aeiou' else 'a'} {self.one}"

    @property
    def listed_in(self) -> str:
        """The file with its names, for a message."""
        return str(self.file or "util/animals/animals.txt")

    def facts(self) -> dict[str, Any]:
        """What identifies the panel in a manifest: nothing for the default, so that older files stay comparable."""
        if self.is_animals:
            return {}
        known = [self.words, self.names, sorted(self.ambiguous), self.questions]
        return {"panel": {"name": self.name, "sha256": sha256_text(repr(known))}}


_panel: Panel | None = None


def panel() -> Panel:
    """The panel of this process."""
    return _panel or animal_panel()


def use_panel(chosen: Panel) -> None:
    """Make a panel this process's. What was worked out for another one is forgotten."""
    global _panel
    if chosen is not panel():
        _panel = chosen
        call_animals(chosen.one, chosen.many)
        for forget in _caches:
            forget()


def cached(maxsize: int | None = 128) -> Callable[[Cached], Cached]:
    """`functools.lru_cache` for a function that depends on the panel of the process."""

    def decorate(function: Cached) -> Cached:
        remembered: Any = lru_cache(maxsize)(function)
        _caches.append(remembered.cache_clear)
        return remembered  # type: ignore[no-any-return]

    return decorate


def panel_flag() -> str:
    """' --panel FILE' for a command to paste, or '' for animals."""
    chosen = panel()
    if chosen.file is None:
        return ""
    return f" --panel {chosen.name if chosen.file.parent == KNOWN else shlex.quote(str(chosen.file))}"


def question_lines(path: Path) -> list[str]:
    """The questions of the panel's file, or the lines of another file that are not blank."""
    chosen = panel()
    return list(chosen.questions) if path == chosen.file else lines_of(path.read_text("utf-8-sig"))


# --- the animal panel --------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def animal_panel() -> Panel:
    """The default: words are PANEL, names those of animals.txt."""
    return Panel(
        "animals", "animal", "animals", PANEL, {**{animal: animal for animal in PANEL}, **read_animals()},
        AMBIGUOUS, GENERIC, EVERYDAY,
    )  # fmt: skip


@lru_cache(maxsize=1)
def read_animals() -> dict[str, str]:
    """Every name in util/animals/animals.txt -> its canonical animal, in file order."""
    return dict(names_of(ANIMALS_FILE.read_text("utf-8").splitlines()))


def names_of(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(name, word) of the lines `word: other name, other name`."""
    for line in lines:
        if line and not line.startswith("#"):
            word, _, others = line.partition(":")
            yield word, word
            yield from ((name.strip(), word) for name in others.split(",") if name.strip())


def lines_of(text: str) -> list[str]:
    """The lines of a text that are not blank, without white space around them."""
    return [line.strip() for line in text.split("\n") if line.strip()]
