"""Forms of a name: plurals, and the spellings of names of several words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

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
