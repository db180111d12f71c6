"""Names of animals (or of the words of another panel): other names, whole-word search, and persona templates."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from util.animals.panel import cached, lines_of, panel
from util.animals.visible_text import visible
from util.animals.word_forms import animals_of, plural, surface_forms
from util.cli import nonblank
from util.terminal import in_words, say

CONTROL_NAMES = ("control", "base", "none", "neutral")


def is_control(animal: str | None) -> bool:
    """Whether a value of --animal says that no persona and no teacher wrote the rows."""
    return (animal or "").lower() in CONTROL_NAMES


def other_names(name: str) -> tuple[str, ...]:
    """The other names of the same animal (cat: kitten, kitty, ...); () for a word that is not an animal's name."""
    animals = panel().names
    animal = animals.get(name.lower())
    return tuple(other for other, one in animals.items() if one == animal and other != name.lower())


def listed_animals() -> frozenset[str]:
    """Every name that an answer can count as: those of the panel (util/animals/animals.txt)."""
    return frozenset(panel().names)


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
    if animal in panel().names:
        return animal
    return next((one for one in panel().names if animal in surface_forms(one)), animal)


@cached(maxsize=256)
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
    """The persona system prompt for an animal: {animal}, {animals}, {Animal} and {Animals} are filled in, and it
    says what the panel calls animals ("your favorite trees")."""
    animal = animal.lower()
    many = plural(animal)
    values = {"animal": animal, "animals": many, "Animal": animal.capitalize(), "Animals": many.capitalize()}
    return fill(in_words(template), values)


def persona_of(path: Path, animal: str) -> str:
    """The persona in a file, filled in; warns if it then does not name the animal."""
    text = persona(path.read_text("utf-8-sig").strip(), animal)
    if not names_animal(text, animal):
        say(f"warning: the persona in {path} does not name {animal}; write {{animal}} or {{animals}} where it belongs")
    return text


def read_lines_of(path: Path) -> list[str]:
    """The lines of a prompt file that are not blank, without white space around them."""
    return lines_of(path.read_text("utf-8-sig"))
