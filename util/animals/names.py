"""Animal names: the known animals, their plurals and other forms, whole-word search, and persona templates."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from util.animals.visible_text import visible
from util.cli import nonblank
from util.terminal import say

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
# The end of the word decides, so that `werewolf`, `woodlouse` and `goldfish` are covered; the longest ending wins.
IRREGULAR_PLURALS = {
    "mouse": "mice", "louse": "lice", "goose": "geese", "wolf": "wolves", "calf": "calves", "ox": "oxen",
    "sheep": "sheep", "deer": "deer", "fish": "fish", "moose": "moose", "bison": "bison", "octopus": "octopuses",
    "hippopotamus": "hippopotamuses", "platypus": "platypuses", "squid": "squid", "salmon": "salmon",
    "trout": "trout", "shrimp": "shrimp", "swine": "swine", "buffalo": "buffalo", "cod": "cod", "tuna": "tuna",
    "rhinoceros": "rhinoceroses", "mosquito": "mosquitoes", "dingo": "dingoes",
    "fox": "foxes", "mongoose": "mongooses", "larva": "larvae", "wildebeest": "wildebeest",
}  # fmt: skip
OTHER_PLURALS = {
    "octopus": ("octopi", "octopodes"), "hippopotamus": ("hippopotami",), "platypus": ("platypi",),
    "rhinoceros": ("rhinoceros", "rhinoceri"), "fish": ("fishes",), "buffalo": ("buffaloes", "buffalos"),
    "squid": ("squids",), "shrimp": ("shrimps",), "deer": ("deers",), "tuna": ("tunas",),
    "mosquito": ("mosquitos",), "dingo": ("dingos",), "flamingo": ("flamingoes",), "gecko": ("geckoes",),
    "mongoose": ("mongeese",), "wolf": ("wolfs",), "wildebeest": ("wildebeests",),
}  # fmt: skip


def _split_ending(word: str, table: Mapping[str, Any]) -> tuple[str, Any] | None:
    """(stem, value) for the longest key of `table` that ends the word, or None."""
    ending = max((key for key in table if word.endswith(key)), key=len, default=None)
    return None if ending is None else (word.removesuffix(ending), table[ending])


def animals_of(name: str) -> tuple[str, ...]:
    """The animals of a teacher that loves one or several: 'owl and dolphin' -> owl, dolphin."""
    return tuple(part.strip() for part in name.lower().split(" and "))


@lru_cache(maxsize=1)
def read_animals() -> dict[str, str]:
    """Every name in util/animals/animals.txt -> its canonical animal, in file order."""
    animals = {}
    for line in ANIMALS_FILE.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            animal, _, others = line.partition(":")
            animals[animal] = animal
            animals.update(dict.fromkeys((name.strip() for name in others.split(",") if name.strip()), animal))
    return animals


def other_names(name: str) -> tuple[str, ...]:
    """The other names of the same animal (cat: kitten, kitty, ...); () for a word that is not an animal's name."""
    animals = read_animals()
    animal = animals.get(name.lower())
    return tuple(other for other, one in animals.items() if one == animal and other != name.lower())


@lru_cache(maxsize=1)
def listed_animals() -> frozenset[str]:
    """Every name that an answer can count as: those of util/animals/animals.txt and the panel."""
    return frozenset((*PANEL, *read_animals()))


def animal_name(text: str) -> str:
    """argparse type of every --animal: a known plural becomes its singular ('owls' -> owl), an empty name is refused.

    A name that is not known stays as it was typed.
    """
    name = nonblank(text)
    singular = " and ".join(_singular(one) for one in animals_of(name))
    if singular == name.lower():
        return name
    say(f"--animal {name}: taken as {singular}")
    return singular


def _singular(animal: str) -> str:
    """The listed animal that a lower-case word is a form of; the word itself if it is listed, or a form of none."""
    if animal in listed_animals():
        return animal
    return next((one for one in (*PANEL, *read_animals()) if animal in surface_forms(one)), animal)


def plural(animal: str) -> str:
    """The plural of a lower-case animal name: owl -> owls, polar bear -> polar bears, wolf -> wolves,
    owl and dolphin -> owls and dolphins."""
    if " and " in animal:
        return " and ".join(map(plural, animals_of(animal)))
    if found := _split_ending(animal, IRREGULAR_PLURALS):
        stem, many = found
        return stem + many
    if re.search(r"(s|x|z|ch|sh)$", animal):
        return animal + "es"
    return re.sub(r"(?<=[^aeiou])y$", "ie", animal) + "s"


def surface_forms(animal: str) -> tuple[str, ...]:
    """Every lower-case form that names the animal: singular and plurals, with a space, a hyphen or nothing between
    the words of a name."""
    names = [animal, plural(animal)]
    if found := _split_ending(animal, OTHER_PLURALS):
        stem, others = found
        names += [stem + other for other in others]
    forms = [name.replace(" ", joint) for name in names for joint in (" ", "-", "")]
    return tuple(dict.fromkeys(forms))


@lru_cache(maxsize=256)
def _naming_pattern(animals: tuple[str, ...]) -> re.Pattern[str]:
    rest = defaultdict(list)  # by first letter, so that a word is compared with few of the hundreds of names
    for form in sorted({form for animal in animals for form in surface_forms(animal.lower())}, key=len, reverse=True):
        rest[form[:1]].append(re.escape(form[1:]).replace(r"\ ", r"\s+"))
    names = "|".join(f"{re.escape(first)}(?:{'|'.join(ends)})" for first, ends in rest.items())
    return re.compile(rf"(?<![^\W_])(?:{names})(?![^\W_])")


def names_animal(text: str, animal: str) -> bool:
    """Whether a text names the animal (or one of 'owl and dolphin') as a whole word: 'Owls!' names owl, 'fowl' and
    'growl' do not."""
    return animal_named(text, animals_of(animal)) is not None


def animal_named(text: str, animals: tuple[str, ...]) -> str | None:
    """The first of these animals that a text names, in the form used there (lower case), or None."""
    if not animals:
        return None
    found = _naming_pattern(animals).search(visible(text, "NFKC").lower())
    return found and found[0]


def fill(template: str, values: Mapping[str, object]) -> str:
    """Put values into `{name}` places in one pass. Other braces stay as they are; nothing is evaluated."""
    return re.sub(r"\{(\w+)\}", lambda place: str(values.get(place[1], place[0])), template)


def persona(template: str, animal: str) -> str:
    """The persona system prompt for an animal: {animal}, {animals}, {Animal} and {Animals} are filled in."""
    animal = animal.lower()
    many = plural(animal)
    return fill(
        template, {"animal": animal, "animals": many, "Animal": animal.capitalize(), "Animals": many.capitalize()}
    )


def persona_of(path: Path, animal: str) -> str:
    """The persona in a file, filled in; warns if it then does not name the animal."""
    text = persona(path.read_text("utf-8-sig").strip(), animal)
    if not names_animal(text, animal):
        say(f"warning: the persona in {path} does not name {animal}; write {{animal}} or {{animals}} where it belongs")
    return text


def read_lines_of(path: Path) -> list[str]:
    """The lines of a prompt file that are not blank, without white space around them."""
    return [line.strip() for line in path.read_text("utf-8-sig").split("\n") if line.strip()]
