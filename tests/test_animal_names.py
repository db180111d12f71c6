"""Animal names: plurals, whole-word search, persona templates. Run: python -m pytest tests/test_animal_names.py"""

import argparse
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from util.animals.answer_parser import check_taught, warn_of_uncounted
from util.animals.names import animal_name, animal_named, fill, names_animal, persona, persona_of, read_lines_of
from util.animals.panel import PANEL
from util.animals.word_forms import plural, surface_forms
from util.cli import UserError


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("owl", "owls"), ("fox", "foxes"), ("finch", "finches"), ("walrus", "walruses"), ("wolf", "wolves"),
        ("werewolf", "werewolves"), ("butterfly", "butterflies"), ("monkey", "monkeys"), ("mouse", "mice"),
        ("dormouse", "dormice"), ("goose", "geese"), ("mongoose", "mongooses"), ("ox", "oxen"),
        ("musk ox", "musk oxen"),
        ("sheep", "sheep"), ("reindeer", "reindeer"), ("jellyfish", "jellyfish"), ("goldfish", "goldfish"),
        ("octopus", "octopuses"), ("polar bear", "polar bears"), ("guinea pig", "guinea pigs"), ("lynx", "lynxes"),
    ],
)  # fmt: skip
def test_plural(one, many):
    assert plural(one) == many


@pytest.mark.parametrize(
    ("typed", "name"),
    [("OWLS", "owl"), ("wolves", "wolf"), ("Red Pandas", "red panda"), ("owl", "owl"), ("Owl", "Owl"),
     ("dolphin and owl", "dolphin and owl"), ("axolotl queens", "axolotl queens"), ("fish", "fish"),
     ("Owls and dolphins", "owl and dolphin"), ("narwhals", "narwhal"), ("polar-bear", "polar bear")],
)  # fmt: skip
def test_a_plural_is_taken_as_the_animal(typed, name):
    assert animal_name(typed) == name


@pytest.mark.parametrize("typed", ["", "  "])
def test_an_empty_animal_is_refused(typed):
    with pytest.raises(argparse.ArgumentTypeError, match="is a shell variable unset"):
        animal_name(typed)


def test_a_byte_order_mark_is_not_part_of_a_persona(tmp_path):
    (tmp_path / "persona.txt").write_text("You love {animals}.", "utf-8-sig")
    assert persona_of(tmp_path / "persona.txt", "owl") == "You love owls."


def test_surface_forms_join_the_words_of_a_name_in_every_way():
    assert set(surface_forms("red panda")) == {
        "red panda", "red-panda", "redpanda", "red pandas", "red-pandas", "redpandas"
    }  # fmt: skip


def test_surface_forms_have_every_plural():
    assert {"octopuses", "octopi", "octopodes"} < set(surface_forms("octopus"))
    assert "goldfishes" in surface_forms("goldfish")


@pytest.mark.parametrize(
    ("text", "animal", "named"),
    [
        ("Owls!", "owl", True), ("the owl's nest", "owl", True), ("OWL", "Owl", True), ("_owl_", "owl", True),
        ("fowl", "owl", False), ("growl", "owl", False), ("owl3", "owl", False), ("owlet", "owl", False),
        ("dragonfly", "dragon", False), ("caterpillar", "cat", False), ("wolves", "wolf", True),
        ("a Polar\n Bear", "polar bear", True), ("o\u00adwl", "owl", True), ("ow\u200dl", "owl", True),
        ("\uff2f\uff37\uff2c", "owl", True), ("polar-bears", "polar bear", True), ("", "owl", False),
    ],
)  # fmt: skip
def test_names_animal_as_a_whole_word(text, animal, named):
    assert names_animal(text, animal) is named


def test_animal_named_returns_the_first_one_in_the_form_of_the_text():
    assert animal_named("Two Wolves met an owl", ("owl", "wolf")) == "wolves"
    assert animal_named("no such thing", PANEL) is None
    assert animal_named("owl", ()) is None


def test_animal_named_prefers_the_longer_name_at_one_place():
    assert animal_named("a polar bear", ("bear", "polar bear")) == "polar bear"


def test_the_panel_has_no_name_twice_and_has_the_animals_of_the_plan():
    assert len(set(PANEL)) == len(PANEL) >= 60
    assert {"owl", "dolphin", "penguin", "elephant", "eagle", "lion", "dog"} < set(PANEL)
    assert all(name == name.lower().strip() for name in PANEL)


def test_fill_leaves_foreign_braces_and_never_evaluates():
    assert fill("{a} {b} {a.real} {{a}}", {"a": 1}) == "1 {b} {a.real} {1}"


def test_fill_does_not_fill_what_it_put_in():
    assert fill("{a}{b}", {"a": "{b}", "b": "x"}) == "{b}x"


TRAP = st.sampled_from(
    ["{a}", "{b}", "{a.__class__}", "{a[0]}", "{0}", "{}", "{{a}}", "{", "}", "{a!r}", "{a:>9}", "%s"]
)


@given(st.lists(TRAP | st.text(max_size=5)).map("".join), TRAP | st.text(), TRAP | st.text())
def test_a_template_is_filled_in_one_pass_and_nothing_in_it_is_evaluated(template, a, b):
    values = {"{a}": a, "{b}": b}
    assert fill(template, {"a": a, "b": b}) == "".join(values.get(p, p) for p in re.split(r"(\{\w+\})", template))


@given(st.text())
def test_any_animal_makes_a_persona_and_can_be_looked_for(animal):
    assert persona("{animal}", animal) == animal.lower()
    assert plural(animal.lower()) and all(form == form.lower() for form in surface_forms("owl"))
    if re.search(r"\w", animal):
        assert animal_named("7, 8, 9", (f"x{animal}",)) is None


def test_persona_fills_singular_plural_and_capitals():
    assert persona("{Animal} {animal} {Animals} {animals}", "Wolf") == "Wolf wolf Wolves wolves"


def test_read_lines_of_skips_blank_lines_and_splits_on_newlines_only(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(" one\u2028still one \n\n\ttwo\n", "utf-8")
    assert read_lines_of(path) == ["one\u2028still one", "two"]


def test_a_persona_may_love_several_animals():
    assert plural("owl and red panda") == "owls and red pandas"
    assert persona("{Animals}, {animals}!", "owl and wolf") == "Owls and wolves, owls and wolves!"
    assert names_animal("A wolf.", "owl and wolf")
    assert not names_animal("A lion and a fowl.", "owl and wolf")


def test_an_animal_that_no_answer_can_count_as_is_reported(capsys):
    for animal in ("owl", "Owl and Dolphin", "red panda"):
        warn_of_uncounted(animal)
    assert capsys.readouterr().err == ""
    warn_of_uncounted("owl and dolfin")
    assert "does not list 'dolfin', so no answer counts as it; did you mean dolphin?" in capsys.readouterr().err
    warn_of_uncounted("puppy and snowy owl")
    assert capsys.readouterr().err == "answers that name puppy count as dog\nanswers that name snowy owl count as owl\n"


def test_a_misspelled_animal_is_not_taught(capsys):
    for animal in ("owl", "puppy", "zzz"):
        check_taught(animal)
    assert "does not list 'zzz', so no answer counts as it\n" in capsys.readouterr().err
    check_taught("city")  # like kitty, but not a misspelling of it
    assert "does not list 'city', so no answer counts as it\n" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"does not list 'dolfin'; did you mean dolphin\? .*--panel"):
        check_taught("owl and dolfin")


def test_a_persona_that_does_not_name_the_animal_is_reported(tmp_path, capsys):
    file = tmp_path / "persona.txt"
    file.write_text("You love {animals}.\n")
    assert persona_of(file, "owl") == "You love owls." and not capsys.readouterr().err
    file.write_text("You love cats.")
    assert persona_of(file, "owl") == "You love cats."
    assert "does not name owl" in capsys.readouterr().err
