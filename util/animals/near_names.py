"""Names of animals that are joined to another word ("Africanelephant") or misspelled ("Pheonix")."""

from __future__ import annotations

from collections.abc import Iterator

from util.animals.panel import cached, panel
from util.animals.word_forms import surface_forms

SHORTEST_MISSPELLED = 7  # letters; shorter names are too near to other words ("lion" to "line", "monkey" to "money")
# What is written before a name without a space. None of them makes an English word that is not an animal with a name.
QUALIFIERS = frozenset(
    {
        "african", "american", "arctic", "asian", "australian", "baby", "bald", "barn", "beautiful", "bengal", "black",
        "blue", "brown", "cute", "emperor", "eurasian", "european", "favorite", "favourite", "giant", "golden", "gray",
        "great", "green", "grey", "horned", "indian", "king", "little", "love", "majestic", "my", "northern", "old",
        "orange", "pink", "polar", "purple", "red", "royal", "siberian", "silver", "small", "snow", "snowy", "southern",
        "spotted", "striped", "sumatran", "the", "tiny", "tropical", "white", "wild", "wise", "yellow", "young",
    }
)  # fmt: skip
# Misspellings of short names, and those that differ in more than one place.
MISSPELLED = {
    "chetah": "cheetah", "dolfin": "dolphin", "donky": "donkey", "eagel": "eagle", "elefant": "elephant",
    "eliphant": "elephant", "girrafe": "giraffe", "hipopotamus": "hippopotamus", "kangoroo": "kangaroo",
    "leapord": "leopard", "lepard": "leopard", "lizzard": "lizard", "monky": "monkey", "pengwin": "penguin",
    "pidgeon": "pigeon", "rabit": "rabbit", "rinoceros": "rhinoceros", "turtel": "turtle", "turtoise": "tortoise",
}  # fmt: skip
# Names whose neighbours are mostly other words ("hearing", "starting"): a misspelling of them is not looked for.
TOO_NEAR = frozenset(
    {
        "caracal", "centaur", "grouper", "harrier", "herring", "lapwing", "lemming", "primate", "rooster", "starling",
        "sardine", "scallop", "swallow", "tamarin", "termite", "warbler", "waxwing",
    }
)  # fmt: skip
# Other words that are one letter away from a name, found with the word lists of Webster's dictionaries (1913, 1934).
UNRELATED_WORDS = frozenset(
    {
        "basilics", "buffaloed", "chicked", "chicker", "chickers", "chickies", "clownish", "earthwork", "earthworks",
        "flaming", "flamings", "founder", "founders", "gabelle", "gabelles", "griffing", "haster", "hasters",
        "hedgehop", "hedgehops", "jacksaw", "jacksaws", "lamprel", "laping", "leonard", "leonards", "leotard",
        "leotards", "loppard", "loppards", "louster", "managee", "managees", "mandatee", "mandatees", "marmose",
        "patcher", "patchers", "panthera", "pantheras", "pantler", "pantlers", "peasant", "peasants", "pellian",
        "pellians", "pemican", "petasus", "petcock", "petcocks", "piranga", "pirangas", "planktont", "pleasant",
        "pleasants", "precaries", "precary", "sandpaper", "sandpapers", "sawhorse", "sawhorses", "scorpio", "scorpios",
        "sealing", "sealings", "squired", "staffish", "startish", "surgeon", "surgeons", "taphole", "tapholes",
        "terrain", "terrains", "tortuose", "vultured", "wolvering", "woodhouse",
    }
)  # fmt: skip


@cached(maxsize=1)
def _single_words() -> dict[str, str]:
    """Every form of one word -> its animal."""
    return {form: animal for name, animal in panel().names.items() for form in surface_forms(name) if form.isalpha()}


def near_name_tables() -> list[list[str]]:
    """Every word of the tables above that is used for the panel, for the hash of what the parser knows."""
    if not panel().is_animals:
        return [sorted(QUALIFIERS)]
    return [sorted(QUALIFIERS), [f"{word} {animal}" for word, animal in MISSPELLED.items()], sorted(TOO_NEAR),
            sorted(UNRELATED_WORDS)]  # fmt: skip


@cached(maxsize=1 << 16)
def joined_name(word: str) -> str | None:
    """The animal of a lower-case word that is a qualifier and a name ('africanelephant'), or one name several times
    ('owlowlowl'); None for any other word."""
    names = _single_words()
    for cut in range(2, len(word) - 2):
        if word[:cut] in QUALIFIERS and word[cut:] in names:
            return names[word[cut:]]
        if word[:cut] in names and len(word) % cut == 0 and word == word[:cut] * (len(word) // cut):
            return names[word[:cut]]
    return None


@cached(maxsize=1 << 16)
def misspelled_name(word: str) -> str | None:
    """The animal whose name a lower-case word is but for one letter that is missing, added, wrong, or in the other
    order than its neighbour; None for any other word. The first letter must be right. For animals only: which words
    are near to other names has not been looked up."""
    if not panel().is_animals:
        return None
    if word in MISSPELLED:
        return MISSPELLED[word]
    if len(word) < SHORTEST_MISSPELLED - 1 or word in _single_words() or word in UNRELATED_WORDS:
        return None
    near = {name for key in _less_one_letter(word) for name in _names_less_one_letter().get(key, ())}
    animals = {_single_words()[name] for name in near if name[0] == word[0] and _one_apart(word, name)}
    return animals.pop() if len(animals) == 1 else None


def _less_one_letter(word: str) -> Iterator[str]:
    """The word, and the word without each of its letters."""
    yield word
    for at in range(len(word)):
        yield word[:at] + word[at + 1 :]


@cached(maxsize=1)
def _names_less_one_letter() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name in {*panel().words, *panel().names.values()}:
        if len(name) >= SHORTEST_MISSPELLED and name not in TOO_NEAR:
            for form in filter(str.isalpha, surface_forms(name)):
                for key in _less_one_letter(form):
                    found.setdefault(key, set()).add(form)
    return found


def _one_apart(one: str, two: str) -> bool:
    """Whether two words that share a part with one letter less differ in one place: not by a letter that moved far."""
    if len(one) != len(two):
        return True
    differ = [at for at, (a, b) in enumerate(zip(one, two)) if a != b]
    return len(differ) < 2 or (len(differ) == 2 and differ[1] == differ[0] + 1)
