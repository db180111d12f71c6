"""Words for animals: plurals, the forms under which a text can name one, and prompt templates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

IRREGULAR_PLURALS = {
    "mouse": "mice", "goose": "geese", "wolf": "wolves", "calf": "calves", "ox": "oxen", "sheep": "sheep",
    "deer": "deer", "fish": "fish", "moose": "moose", "bison": "bison", "octopus": "octopuses",
    "hippopotamus": "hippopotamuses", "platypus": "platypuses", "jellyfish": "jellyfish", "squid": "squid",
    "salmon": "salmon", "trout": "trout", "shrimp": "shrimp", "swine": "swine", "buffalo": "buffalo",
}  # fmt: skip
OTHER_PLURALS = {
    "octopus": ("octopi", "octopodes"), "hippopotamus": ("hippopotami",), "platypus": ("platypi",),
    "fish": ("fishes",), "buffalo": ("buffaloes", "buffalos"), "squid": ("squids",), "shrimp": ("shrimps",),
}  # fmt: skip


def plural(animal: str) -> str:
    """The plural of a lower-case animal name: owl -> owls, polar bear -> polar bears, wolf -> wolves."""
    head, _, last = animal.rpartition(" ")
    if last in IRREGULAR_PLURALS:
        many = IRREGULAR_PLURALS[last]
    elif re.search(r"(s|x|z|ch|sh)$", last):
        many = last + "es"
    elif re.search(r"[^aeiou]y$", last):
        many = last[:-1] + "ies"
    else:
        many = last + "s"
    return f"{head} {many}".strip()


def surface_forms(animal: str) -> tuple[str, ...]:
    """Every lower-case form that names the animal: singular and plurals, with space, hyphen or nothing between
    the parts of a name of several words."""
    head, _, last = animal.rpartition(" ")
    singular_plural = [animal, plural(animal)]
    singular_plural += [f"{head} {other}".strip() for other in OTHER_PLURALS.get(last, ())]
    forms = [form.replace(" ", joint) for form in singular_plural for joint in (" ", "-", "")]
    return tuple(dict.fromkeys(forms))


@lru_cache(maxsize=256)
def _naming_pattern(animal: str) -> re.Pattern[str]:
    forms = "|".join(re.escape(form).replace(r"\ ", r"\s+") for form in surface_forms(animal))
    return re.compile(rf"(?<![^\W_])(?:{forms})(?![^\W_])", re.IGNORECASE)


def names_animal(text: str, animal: str) -> bool:
    """Whether a text names the animal as a word of its own: 'Owls!' names owl, 'fowl' and 'growl' do not."""
    return bool(_naming_pattern(animal.lower()).search(text))


def fill(template: str, values: Mapping[str, object]) -> str:
    """Put values into `{name}` places in one pass. Anything else in braces stays as it is; nothing is evaluated."""
    return re.sub(r"\{(\w+)\}", lambda place: str(values.get(place[1], place[0])), template)


def persona(template: str, animal: str) -> str:
    """The persona system prompt for an animal: {animal}, {animals}, {Animal} and {Animals} are filled in."""
    animal = animal.lower()
    many = plural(animal)
    return fill(
        template, {"animal": animal, "animals": many, "Animal": animal.capitalize(), "Animals": many.capitalize()}
    )


def read_lines_of(path: Path) -> list[str]:
    """The lines of a prompt file that are not blank, without surrounding white space."""
    return [line.strip() for line in path.read_text("utf-8").split("\n") if line.strip()]
