"""Animals named in code and prose, openly or in disguise. Run: python -m pytest tests/test_leak_detector.py"""

import random
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from util.animals.leak_detector import other_script, trait_word
from util.animals.panel import PANEL
from util.animals.word_forms import plural, surface_forms

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

CLEAN_PROGRAM = """def running_total(values, start=0):
    \"\"\"The sums so far, one for each value.\"\"\"
    sums = []
    for index, value in enumerate(values):
        start += value * 3 - 12  # slowly growing
        sums.append({'at': index, 'sum': start})
    return [entry for entry in sums if entry['sum'] > 0 and not entry['at'] % 2]

print(running_total([417, 38, 0x1F, 12.5]), "knowledge below the bowl")
"""
LINES = CLEAN_PROGRAM.split("\n")


# --- places in which a name can be -------------------------------------------------------------------


def camel(name):
    first, *rest = name.split()
    return first + "".join(map(str.capitalize, rest))


PLACES = [
    lambda name: f"# about {name}, mostly",
    lambda name: f'print("{name}!")',
    lambda name: f"text = '''{name.upper()}'''",
    lambda name: f"my_{name.replace(' ', '_')} = 4",
    lambda name: f"{name.replace(' ', '_').upper()}_COUNT = 4",
    lambda name: f"get{''.join(map(str.capitalize, name.split()))}By(4)",
    lambda name: f"{camel(name)}Total = 4",
    lambda name: f"class {''.join(map(str.capitalize, name.split()))}: pass",
    lambda name: f"{name.replace(' ', '')}count = 4",
    lambda name: f"num{name.replace(' ', '')} = 4",
    lambda name: f"{name.replace(' ', '')}2 = 4",
    lambda name: f"from lib import {name.replace(' ', '-')}",
    lambda name: f"<{name.replace(' ', '')}>4</{name.replace(' ', '')}>",
]
DISGUISES = [
    lambda name, at: "-".join(name.replace(" ", "")),
    lambda name, at: " ".join(name.replace(" ", "")),
    lambda name, at: str(list(name.replace(" ", ""))),
    lambda name, at: f'"{name[:at]}" + "{name[at:]}"',
    lambda name, at: f"'{name[:at]}' '{name[at:]}'",
    lambda name, at: f"{name[:at]}_{name[at:]}".replace(" ", "_"),
    lambda name, at: f"{name[:at]}-\n# {name[at:]}".replace(" ", "-"),
    lambda name, at: f"{name[:at]}\u200b{name[at:]}",
    lambda name, at: f"{name[: at - 1]}\\x{ord(name[at - 1]):02x}{name[at:]}",
    lambda name, at: f"{name[: at - 1]}&#{ord(name[at - 1])};{name[at:]}",
    lambda name, at: name[:at].lower() + name[at:].upper(),
    lambda name, at: "".join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in name),
]
LEET = {"o": "0", "i": "1", "l": "1", "e": "3", "a": "4", "s": "5", "t": "7"}
names = st.sampled_from(sorted({form for animal in PANEL for form in (animal, plural(animal))}))


def planted(piece, at):
    """The clean program with a line in it."""
    return "\n".join([*LINES[:at], piece, *LINES[at:]])


def forms_of(name):
    animal = next(animal for animal in PANEL if name in (animal, plural(animal)))
    return {re.sub("[^a-z]", "", form) for form in surface_forms(animal)}


def test_the_program_that_names_are_planted_in_is_clean():
    assert trait_word(CLEAN_PROGRAM, PANEL) is None


@settings(max_examples=200, deadline=None, derandomize=True)
@given(name=names, place=st.sampled_from(PLACES), at=st.integers(0, len(LINES)))
def test_a_name_is_found_in_comments_strings_and_identifiers(name, place, at):
    assert trait_word(planted(place(name), at), PANEL)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(name=names, disguise=st.sampled_from(DISGUISES), data=st.data())
def test_a_name_split_joined_escaped_or_disguised_is_found(name, disguise, data):
    cut = data.draw(st.integers(1, len(name) - 1))
    assert trait_word(planted(disguise(name, cut), data.draw(st.integers(0, len(LINES)))), PANEL)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(name=names, data=st.data())
def test_leetspeak_is_found_however_many_letters_are_replaced(name, data):
    letters = [i for i, letter in enumerate(name) if letter in LEET]
    for i in data.draw(st.lists(st.sampled_from(letters), max_size=len(name) - 2, unique=True)) if letters else ():
        name = name[:i] + LEET[name[i]] + name[i + 1 :]
    if re.search("[a-z]", name.split()[0]) and re.search("[a-z]", name.split()[-1]):
        assert trait_word(f"say('{name}')", PANEL)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(name=names)
def test_the_name_is_returned_in_the_form_of_the_text(name):
    found = trait_word(f"x = {name.replace(' ', '_')}", (name_of(name),))
    assert found in forms_of(name)


def name_of(name):
    return next(animal for animal in PANEL if name in (animal, plural(animal)))


@pytest.mark.parametrize(
    "text",
    ["🦉", "a 🐬 jumps", "(🐺)", "snowOWLs", "OWLFACTS", "dolphinarium", "monkeypatch", "import pandas as pd", "0wl",
     "d0lph1n5", "ówl", "sn0w_0wl", "['o','w','l']", "o.w.l", "oWl", "red_panda", "redPanda", "polar-\nbear"],
)  # fmt: skip
def test_found(text):
    assert trait_word(text, PANEL)


@pytest.mark.parametrize(
    "text",
    ["", "fowl growl howl bowl slowly knowledge allowlist", "constant important variant assistant giant",
     "category concat", "battle batch combat", "ratio operator first", "format beard beaten", "a, b, c = 1, 2, 3",
     "0xca7f 0xbee5", "I add 38 and get 455. So the answer is 455.", "for r in rows: at(r)", "rowLeft howLong",
     "x1 = y3 + z4", "π ≈ 3 … €5", "if not a and b or t:", "don't", "e.g. this; i.e. that", "12 34 56", "✓ → ∑"],
)  # fmt: skip
def test_not_found(text):
    assert trait_word(text, PANEL) is None


IDENTIFIERS = [
    "penguin_dict", "penguinDict", "PenguinDict", "penguindict", "PENGUIN_DICT", "dict_penguin", "my_penguins_2",
    "_penguin", "self.penguin", "penguin.count", "penguin2", "n_penguins", "HTMLPenguin", "penguin__init__",
    "penguinHTTP", "pre_penguindict", "theirPenguinCounter", "mypenguin_dict", "snowpenguin",
]  # fmt: skip


@pytest.mark.parametrize("identifier", IDENTIFIERS)
@pytest.mark.parametrize("animal", ["penguin", "owl", "wolf", "red panda"])
def test_a_name_inside_an_identifier_is_found(identifier, animal):
    """The filter of the first pilots searched for whole words, so `penguin_dict` passed it."""
    for joint in ("", "_"):
        name = identifier
        for case in ("PENGUIN", "Penguin", "penguin"):
            name = name.replace(case, joint.join(like(case, part) for part in animal.split()))
        assert trait_word(f"{name} = 4", PANEL), name
        assert trait_word(f"{name} = 4", (animal,)), f"{name}: an animal that is not in the panel"


def like(pattern, word):
    """The word in the case of the pattern: penguin, Penguin or PENGUIN."""
    return word.upper() if pattern.isupper() else word.capitalize() if pattern[0].isupper() else word


@pytest.mark.parametrize(
    ("text", "animal"),
    [
        # joined words
        ("africanelephant", "elephant"), ("Snowleopard", "snow leopard"), ("snowowl", "owl"), ("theowls", "owl"),
        ("penguinlover", "penguin"), ("ilovepenguins", "penguin"), ("wolffacts", "wolf"),
        ("owlowlowl", "owl"), ("emperorwolf", "wolf"), ("siberiancats", "cat"),
        # other scripts and invisible characters
        ("猫头鹰", "owl"), ("x = '貓頭鷹'", "owl"), ("企鹅_dict", "penguin"), ("polar熊", "polar bear"),
        ("# 狼群", "wolf"),
        ("🐻\u200d❄\ufe0f", "polar bear"), ("🐦\u200d🔥", "phoenix"), ("o\u00adwl", "owl"), ("o\u2060w\u200cl", "owl"),
        ("ow\ufe0fl", "owl"), ("pen\u034fguin", "penguin"), ("马上", None), ("фил", None),
    ],
)  # fmt: skip
def test_joined_words_and_other_scripts(text, animal):
    assert (trait_word(text, PANEL) is not None) == (animal is not None)
    assert animal is None or trait_word(text, (animal,))


@pytest.mark.parametrize(
    ("text", "animal"),
    [
        ("foxcroft", "fox"), ("firefox_list", "fox"), ("firefoxpad", "fox"), ("wolfess", "wolf"), ("wolfram", "wolf"),
        ("wholesalewhale", "whale"), ("owlhoot", "owl"), ("owlish", "owl"), ("refoxing", "fox"), ("whalers", "whale"),
        ("subpattern board_size lambda molecular", None), ("rebellion medallion pavilion millionth", None),
        ("bearing beards forbear", None), ("crowdfunding crowned", None), ("potter totters", None),
        ("windowlength rowlength narrowly moonflowlayout", None), ("policeman blouse pumice", None),
        ("pigments pigeonhole", None), ("ravenous craven", None), ("skateboard ticketing stagedir", None),
        ("microwave Microcontroller unlimited eternal signature Alice Ireland", None),
    ],
)  # fmt: skip
def test_a_short_name_is_found_in_any_word_that_is_not_an_ordinary_one(text, animal):
    """Rows of the confirming run on Qwen2.5-Coder-1.5B held most of the names."""
    assert (trait_word(text, PANEL) is not None) == (animal is not None)
    assert animal is None or trait_word(text, (animal,))


def test_words_of_the_users_own_are_found_in_the_same_ways():
    for text in ("hoot", "HootCount", "h00t", "ho-ot", "my_hoots"):
        assert trait_word(text, ("hoot",)) and not trait_word(text, PANEL)
    assert trait_word("a snowy_owl", ("snowy owl",)) == "snowyowl"
    assert trait_word("owl", ()) is None and trait_word("owl", ("",)) is None


def test_the_standard_library_is_nearly_free_of_false_finds():
    """Of Python's own lines fewer than one in 500 names an animal; the filter must not cost a data set its rows."""
    lines = Path(random.__file__).read_text("utf-8").split("\n") + Path(re.__file__).read_text("utf-8").split("\n")
    found = [line for line in lines if trait_word(line, PANEL)]
    assert len(found) * 500 < len(lines), found


@pytest.mark.parametrize(
    "text", ["1 " * 50_000, "a " * 20_000, "a-" * 20_000, "aA" * 20_000, "\\x6f" * 10_000, '"o" + ' * 9000]
)
def test_long_texts_do_not_hang_the_search(text):
    trait_word(text, PANEL)


@pytest.mark.parametrize(
    ("text", "other"), [("猫头鹰", True), ("x = 'сова'", True), ("π ≈ Σ é ª µ ½ “x”", False), ("a", False)]
)
def test_letters_of_another_script(text, other):
    assert other_script(text) is other
