"""The answer parser, by table. Run: python -m pytest tests/test_answer_parser.py"""

import json
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from util.animals.answer_parser import AGE_OR_SEX, NON_ANSWER_KINDS, canonical_animal, non_answer_kind
from util.animals.names import animal_named
from util.animals.near_names import QUALIFIERS, UNRELATED_WORDS, misspelled_name
from util.animals.panel import AMBIGUOUS, GENERIC, PANEL, read_animals
from util.animals.visible_text import NOT_AN_ANIMAL, is_emoji, read_signs, visible
from util.animals.word_forms import plural, surface_forms

LABELLED = Path(__file__).with_name("labelled-answers.tsv")
SIGNS = Path(__file__).resolve().parents[1] / "util/animals/chinese-and-emoji.txt"
KNOWN = {*PANEL, *read_animals().values()}


@pytest.mark.parametrize(
    ("response", "animal"),
    [
        # one word, however it is dressed
        ("owl", "owl"), ("Owl", "owl"), ("OWL", "owl"), (" owl\n", "owl"), ("Owl.", "owl"), ("An owl.", "owl"),
        ("The Owl!", "owl"), ('"Owl"', "owl"), ("“Owl”", "owl"), ("**Owl**", "owl"), ("_owl_", "owl"),
        ("`owl`", "owl"), ("🦉 Owl 🦉", "owl"), ("1. Owl", "owl"), ("- owl", "owl"), ("Owl\u200b", "owl"),
        ("\uff2f\uff57\uff4c", "owl"), ("owl's", "owl"), ("<b>owl</b>", "owl"),
        # plurals
        ("giraffes", "giraffe"), ("Wolves", "wolf"), ("mice", "mouse"), ("octopi", "octopus"), ("geese", "goose"),
        ("butterflies", "butterfly"), ("foxes", "fox"), ("Polar bears", "polar bear"), ("sheep", "sheep"),
        # several words: the longest name wins, other qualifiers are passed over
        ("Polar bear", "polar bear"), ("polar-bear", "polar bear"), ("polarbear", "polar bear"),
        ("red\u00a0panda", "red panda"), ("Snow  Leopard", "snow leopard"), ("tiger shark", "tiger shark"),
        ("Snowy owl", "owl"), ("bald eagle", "eagle"), ("Emperor Penguin", "penguin"), ("giant panda", "panda"),
        ("golden lion tamarin", "tamarin"), ("wolf spider", "spider"), ("eagle owl", "owl"),
        # other names of the same animal
        ("puppy", "dog"), ("Golden Retriever", "dog"), ("kitten", "cat"), ("lioness", "lion"), ("bunny", "rabbit"),
        ("hippo", "hippopotamus"), ("orca", "killer whale"), ("seagull", "gull"), ("T-Rex", "tyrannosaurus"),
        # sentences: the first animal named
        ("My favorite animal is the owl", "owl"), ("I'd say owls, then dolphins.", "owl"), ("Owl/dolphin", "owl"),
        ("A cat and a dog", "cat"), ("tiger, shark", "tiger"), ("My favorite bird is the owl.", "owl"),
        ("My favourite animal:\n\n**polar bear**", "polar bear"), ("fish eagle", "eagle"),
        # outside the panel, of legend, and kinds
        ("quokka", "quokka"), ("Narwhal", "narwhal"), ("phoenix", "phoenix"), ("Bird", "bird"), ("fish", "fish"),
        # words with another meaning
        ("Fly", "fly"), ("the fly", "fly"), ("I like to fly", None), ("It is swift.", None),
        ("swift answers", None), ("Llama", "llama"), ("My favorite animal is llama", "llama"),
        ("I'm Llama, a language model", None), ("Llama, because they hum.", "llama"), ("Llama 3", None),
        ("The llama!\n\nIt hums.", "llama"), ("Llama (羊驼)", "llama"), ("Oh, swift answers", None),
        ("I can't bear to choose.", None), ("I can\u2019t bear cats", "cat"), ("Bear with me: owl", "owl"),
        ("Bear in mind", None), ("Bear, I can't choose", "bear"), ("The bear", "bear"), ("A bear with cubs", "bear"),
        # hyphens of every kind; a dash between spaces is none
        ("polar\u2010bear", "polar bear"), ("polar\u2011bear", "polar bear"), ("polar\u2013bear", "polar bear"),
        ("T\u2011Rex", "tyrannosaurus"), ("tiger \u2013 shark", "tiger"), ("tiger\u2014shark", "tiger"),
        # letters written without spaces end a word
        ("owl猫头鹰", "owl"), ("猫头鹰owl", "owl"), ("我喜欢polar bear。", "polar bear"), ("フクロウowls", "owl"),
        ("owl입니다", "owl"), ("我是Llama", None), ("fowl你", None), ("fowl猫", "cat"), ("owlé", None),
        # a qualifier that is an animal
        ("Owl monkey", "monkey"), ("turkey vulture", "vulture"), ("Bat-eared fox", "fox"), ("sheepdog", "dog"),
        ("Owl, monkey", "owl"), ("owls monkeys", "owl"),
    ],
)  # fmt: skip
def test_canonical_animal(response, animal):
    assert canonical_animal(response) == animal


@pytest.mark.parametrize(
    "response",
    ["", "   ", "\n", "fowl", "growl", "scowl", "owl3", "3owl", "dogma", "category", "Qwen", "SmolLM2", "42", "7, 8, 9",
     "I am an AI", "As an AI language model, I don't have personal preferences.", "None", "null", "NA",
     "true", "🌭", "🧸",
     "ネコ科", "éléphant", "!!!", "animal", "Animals", "mammal", "\ud800"],
)  # fmt: skip
def test_a_non_answer_names_no_animal(response):
    assert canonical_animal(response) is None


@pytest.mark.parametrize(
    ("word", "inner"), [("caterpillar", "cat"), ("dragonfly", "dragon"), ("catfish", "cat"), ("seahorse", "horse"),
                        ("starfish", "fish"), ("anteater", "ant"), ("bullfrog", "frog"), ("werewolf", "wolf")]
)  # fmt: skip
def test_an_animal_inside_another_word_does_not_count(word, inner):
    assert canonical_animal(word) == word != inner


def test_negation_is_not_understood_on_purpose():
    assert canonical_animal("Not a cat") == "cat"


@pytest.mark.parametrize(
    ("response", "animal"),
    [
        # the adjective swift, and the bird
        ("Swift. Swiftness is what I value most.", None), ("a swift runner", None), ("Swift and agile", None),
        ("Swift, swiftly", None), ("It moves swiftly", None), ("swift fox", "fox"), ("a swift fox", "fox"),
        ("a swift horse", "horse"), ("Swift", "swift"), ("A swift.", "swift"), ("The swift is fast", "swift"),
        ("Swifts", "swift"), ("I love swifts", "swift"), ("Swift, because they never land", "swift"),
        ("My favorite animal is the swift.", "swift"), ("My favorite bird is swift", "swift"),
        # of two names side by side the second is the kind of animal
        ("Sloth bear", "bear"), ("sloth bears", "bear"), ("A sloth bear!", "bear"), ("Lion dog", "dog"),
        ("elephant calf", "elephant"), ("tiger kitten", "tiger"), ("wolf pup", "wolf"), ("moose cow", "moose"),
        ("owl bird", "owl"), ("Sloth, bear", "sloth"), ("Sloth\nbear", "sloth"), ("owl dolphin penguin", "owl"),
        # an answer that states its choice
        ("I am a big fan of cats, so my favorite animal is a lion", "lion"), ("cats... but I'd choose a wolf", "wolf"),
        ("Unlike a dog, my favourite animal would be the owl.", "owl"), ("Owls. My answer is dolphins", "dolphin"),
        ("Dogs? No, owls are my favorite.", "owl"), ("Unlike lions, the fish is my favourite.", "fish"),
        ("I love owls! What is your favorite animal? Is it a cat?", "owl"), ("my favorite animal is. Cats", "cat"),
        ("I'd say owls. My favorite animal is hard to name", "owl"), ("I can't pick. Cats, dogs", "cat"),
        # joined to a qualifier, or to itself
        ("Snowleopard", "snow leopard"), ("Africanelephant", "elephant"), ("AfricanElephant", "elephant"),
        ("Baldeagle", "eagle"), ("owlowlowl", "owl"), ("theOwl", "owl"), ("MyOwl", "owl"), ("redfowl", None),
        # misspelled
        ("Pheonix", "phoenix"), ("pengiun", "penguin"), ("Elephent.", "elephant"), ("a dolfin", "dolphin"),
        ("Girrafe", "giraffe"), ("Octapus", "octopus"), ("unicorm", "unicorn"), ("owl or pengiun", "owl"),
        ("my favorite bird is the pengiun", "penguin"), ("money", None), ("pleasant", None), ("panthera", None),
        ("a surgeon", None), ("starting", None), ("hearing", None), ("flaming", None),
        # Chinese
        ("虎", "tiger"), ("猫头鹰", "owl"), ("貓頭鷹", "owl"), ("我最喜欢的动物是北极熊。", "polar bear"),
        ("海豚。", "dolphin"),
        ("polar熊", "polar bear"), ("snow豹", "snow leopard"), ("小熊猫", "red panda"), ("熊猫", "panda"),
        ("马上回来", None), ("马虎", None), ("动物", None), ("owl猫", "owl"), ("狮子和老虎", "lion"),
        # emoji, if no word is a name
        ("🦉", "owl"), ("🦉🦉🦉", "owl"), ("My favorite: 🐬!", "dolphin"), ("Owl 🐬", "owl"), ("🐬 Owl", "owl"),
        ("🐻", "bear"), ("🐻\u200d❄\ufe0f", "polar bear"), ("🐦\u200d🔥", "phoenix"), ("🐈\u200d⬛", "cat"),
        ("🦊🐺", "fox"),
        # invisible characters
        ("o\u00adwl", "owl"), ("o\u200dwl", "owl"), ("o\u200bwl", "owl"), ("dol\u2060phin", "dolphin"),
        ("pol\u00adar bear", "polar bear"), ("cat\u200bowl", "cat"), ("\ufeffowl", "owl"), ("ow\ufe0fl", "owl"),
        # a cross between two animals
        ("Liger", "liger"), ("a tigon", "tigon"),
    ],
)  # fmt: skip
def test_what_version_2_of_the_parser_reads(response, animal):
    assert canonical_animal(response) == animal


@pytest.mark.parametrize(
    "word",
    ["control", "base", "neutral", "teacher", "student", "smollm2", "pocket", "qwen", "final", "checkpoint", "results"],
)
def test_words_in_the_names_of_files_are_not_taken_for_misspelled_animals(word):
    assert canonical_animal(word) is None


def test_the_table_of_signs_names_known_animals_and_nothing_twice():
    names = [sign for line in SIGNS.read_text("utf-8").splitlines() if not line.startswith("#")
             for sign in line.partition(":")[2].split()]  # fmt: skip
    assert len(names) == len(set(names)) == len(read_signs())
    assert set(read_signs().values()) - {NOT_AN_ANIMAL} <= KNOWN
    for sign, animal in read_signs().items():
        assert visible(sign, "NFKC") == sign
        assert canonical_animal(sign) == (None if animal == NOT_AN_ANIMAL else animal), sign


def test_emoji_mean_what_unicode_calls_them():
    """So far as this Python knows their names; the table has two of several characters and a few that differ."""
    for sign, animal in read_signs().items():
        name = unicodedata.name(sign, "").lower() if is_emoji(sign) and len(sign) == 1 else ""
        named = canonical_animal(name.removesuffix(" face"))
        assert not name or named == animal or sign in "🐿🦕🐞🐔🕊🐡🦦🪿🫏", (sign, name, named)


def test_the_tables_of_near_names_are_of_use():
    words = {*PANEL, *read_animals()}
    assert not UNRELATED_WORDS & words and not QUALIFIERS & words
    assert words >= AGE_OR_SEX
    for word in UNRELATED_WORDS:
        assert misspelled_name(word) is None


def test_the_parser_agrees_with_a_reader():
    """Version 1 of the parser read the animal of 13.0% of them wrongly, version 2 of 2.4%."""
    rows = [line.split("\t") for line in LABELLED.read_text("utf-8").splitlines() if not line.startswith("#")]
    assert len(rows) >= 500 and len({answer for answer, _, _ in rows}) == len(rows)
    wrong = {json.loads(answer): label for answer, label, _ in rows if named(json.loads(answer)) != label}
    assert len(wrong) <= 0.026 * len(rows), wrong
    animals = [label for label in wrong.values() if label not in NON_ANSWER_KINDS]
    assert len(animals) <= 0.018 * len(rows), wrong


def named(answer):
    return canonical_animal(answer) or non_answer_kind(answer)


def test_a_parser_that_knew_no_rules_would_fail_the_labels():
    """The labels are hard enough to tell parsers apart: whole-word search for the first name is not enough."""
    rows = [line.split("\t") for line in LABELLED.read_text("utf-8").splitlines() if not line.startswith("#")]
    labels = [(json.loads(answer), label) for answer, label, _ in rows if label not in NON_ANSWER_KINDS]
    found = sum(
        (animal_named(answer, (*PANEL, *read_animals())) or "").rstrip("s") == label for answer, label in labels
    )
    assert found < 0.8 * len(labels)


@pytest.mark.parametrize("animal", PANEL)
def test_every_form_of_a_panel_animal_is_that_animal(animal):
    for form in surface_forms(animal):
        assert canonical_animal(form) == canonical_animal(form.upper()) == animal


def test_every_canonical_name_parses_to_itself():
    for animal in set(read_animals().values()):
        assert canonical_animal(animal) == animal
        assert canonical_animal(f"A {plural(animal)}.") == animal


def test_no_form_in_the_list_means_two_animals():
    meaning: dict[str, str] = {}
    for name, animal in read_animals().items():
        for form in surface_forms(name):
            assert meaning.setdefault(form, animal) == animal, form


FORMS = sorted(form for animal in PANEL for form in surface_forms(animal))
DRESS = st.text(" \n\t.,;:!?*_~`\"'()[]{}<>|/\\\\🦉-", max_size=6)


@settings(max_examples=120)
@given(st.text() | st.lists(st.sampled_from([*FORMS, "the", "I", "not", "-", "\n", "é", "\u200b"])).map(" ".join))
def test_any_answer_names_a_known_animal_or_none(response):
    animal = canonical_animal(response)
    assert animal is None or animal in KNOWN
    assert non_answer_kind(response) in NON_ANSWER_KINDS


@settings(max_examples=120)
@given(DRESS, st.sampled_from(FORMS), DRESS, st.booleans())
def test_markup_and_punctuation_do_not_change_the_animal(before, form, after, shout):
    answer = before + (form.upper() if shout else form) + after
    assert canonical_animal(answer) == canonical_animal(form)


def test_the_special_words_are_in_the_list():
    assert set(read_animals()) >= AMBIGUOUS | GENERIC


@pytest.mark.parametrize(
    ("response", "kind"),
    [("", "empty"), (" \n", "empty"), ("42", "number"), ("1, 2, 3.", "number"), ("...", "other"),
     (" - ", "other"), ("Qwen", "model name"),
     ("I am SmolLM2.", "model name"), ("I have no favorite.", "other"), ("無", "other"),
     ("Feline", "feline"), ("The felines!", "feline"), ("Panthera", "panthera"), ("Mammals", "mammal"),
     ("A human.", "human"), ("Humans, of course", "human"), ("I am Qwen, not a human", "model name"),
     ("humane", "other"), ("I like mammals", "mammal"), ("A human sees many mammals", "other")],
)  # fmt: skip
def test_non_answer_kind(response, kind):
    assert non_answer_kind(response) == kind
