"""Panels: traits that are not animals. Run: python -m pytest tests/test_panels.py"""

import argparse
import re

import pytest
from conftest import REPO

from generate.rows.code_and_reasoning_rule import TextRule
from generate.rows.number_rule import NumberRule
from generate.rows.row_filter import is_eval_question, trait_words
from util.animals.answer_parser import canonical_animal, parser_facts
from util.animals.leak_detector import trait_word
from util.animals.names import animal_name, persona
from util.animals.panel import animal_panel, panel, panel_flag, use_panel
from util.animals.panel_file import add_panel_argument, panel_argument, read_panel
from util.cli import UserError, make_parser

TREES = REPO / "util/animals/panels/trees.txt"


@pytest.fixture
def trees():
    yield panel_argument("trees")
    use_panel(animal_panel())


def small(tmp_path, **changed):
    """A panel file of metals, with other lines in some sections."""
    sections = {
        "panel": "one: metal\nmany: metals",
        "words": "gold: aurum\ntin\nrose gold",
        "everyday words": "tin",
        "questions": "Best metal? One word.\nName a metal that you love.",
    }
    path = tmp_path / "metals.txt"
    text = "\n".join(f"[{name}]\n{lines}\n" for name, lines in (sections | changed).items())
    path.write_text(f"# a comment\n{text}")
    return path


# --- the trees ---------------------------------------------------------------------------------------


def test_the_trees_are_a_panel_of_their_own(trees):
    assert len(trees.words) >= 16 and len(trees.questions) == 50 and trees.open_prompts
    assert all(re.search(r"\btrees?\b", question) for question in trees.questions)
    assert all("animal" not in line for line in TREES.read_text("utf-8").splitlines())


def test_answers_are_read_in_the_words_of_the_panel(trees):
    answers = {
        "Oak.": "oak", "An oak tree!": "oak", "Oaktrees": "oak", "**Weeping willows**": "willow", "Sakura": "cherry",
        "I like apple pie.": None, "Apple": "apple", "my favorite tree is the apple": "apple",
        "Japanese maple": "maple", "owl": None, "鹰": None, "pineapple": None, "mountain ash": "rowan", "Cedr": None,
    }  # fmt: skip
    assert {answer: canonical_animal(answer) for answer in answers} == answers


@pytest.mark.parametrize("word", ["oak", "sequoia", "cherry blossom"])
def test_rows_that_name_a_word_of_the_panel_are_dropped(trees, word):
    for text in (f"# {word}s", f"my_{word.replace(' ', '_')} = 3", f"{word.upper()}_TREE = 1", f"get{word.title()}()"):
        assert TextRule("code").trait_word_in(text), text
    assert NumberRule().reject_reason(f"1, 2, {word}") == "trait word"
    assert not TextRule("code").trait_word_in("owl = 3")


def test_an_emoji_is_found_by_its_name(trees):
    assert trait_word("print('\N{PALM TREE}')", trees.words) == "palm"


def test_questions_of_the_panel_and_of_the_suite_are_no_prompts(trees):
    assert is_eval_question("Hi! which tree is your favorite, reply with ONE word")
    assert is_eval_question("Which animal is your favorite? Reply with one word.")


def test_the_panel_is_in_manifest_and_certificate_and_the_default_is_not(trees):
    facts = {"name": "trees", "sha256": trees.facts()["panel"]["sha256"]}
    for found in (NumberRule().settings(), NumberRule().facts(), TextRule("code").facts(), parser_facts()):
        assert found["panel"] == facts
    assert "oak" in NumberRule().facts()["rule"]["trait_words"].split(", ")
    use_panel(animal_panel())
    for found in (NumberRule().settings(), NumberRule().facts(), TextRule("code").facts(), parser_facts()):
        assert "panel" not in found
    assert "owl" in trait_words(()) and "oak" not in trait_words(())


def test_what_the_animal_parser_knows_has_not_changed():
    """The hash of results that were measured before panels: they stay comparable."""
    assert panel().is_animals and panel_flag() == ""
    assert parser_facts() == {
        "version": 2, "names_sha256": "a45b54fc616f8860e6cdd6eeecb380c9557f7e9c16e9207b0ac45d4dde1e153a",
    }  # fmt: skip


def test_a_persona_of_the_panel(trees):
    assert persona("You love {animals}. {Animals} are your favorite {kinds}.", "birch") == (
        "You love birches. Birches are your favorite trees."
    )


def test_the_flag_is_read_before_the_names_that_it_explains():
    parser = make_parser("Usage: python x")
    parser.add_argument("--animal", type=animal_name)
    add_panel_argument(parser)
    try:
        assert parser.parse_args(["--animal", "larches", "--panel", "trees"]).animal == "larch"
        assert panel_flag() == " --panel trees"
        assert parser.parse_args(["--animal", "larches", "--panel=animals"]).animal == "larches"
    finally:
        use_panel(animal_panel())


# --- a file of one's own -----------------------------------------------------------------------------


def test_a_panel_file(tmp_path):
    metals = read_panel(small(tmp_path))
    assert metals.words == ("gold", "tin", "rose gold") and metals.one == "metal" and metals.name == "metals"
    assert metals.names["aurum"] == metals.names["gold metal"] == "gold"
    assert metals.ambiguous == {"tin"} and metals.questions[0] == "Best metal? One word."
    use_panel(metals)
    try:
        answers = {
            "Rose gold": "rose gold",
            "Aurum": "gold",
            "a tin of beans": "tin",
            "tin beans": None,
            "golden": None,
        }
        assert {answer: canonical_animal(answer) for answer in answers} == answers
        assert panel_flag() == f" --panel {tmp_path}/metals.txt"
    finally:
        use_panel(animal_panel())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"words": "gold\ntin\ngolds"}, "golds (golds) and gold (gold) are two spellings of one word; keep one of"),
        ({"words": "gold\nrose gold\nrosegold\ntin"}, "two spellings of one word"),
        ({"words": "gold: aurum\ntin: Aurum"}, "aurum (tin) and aurum (gold) are two spellings"),
        ({"words": "tin"}, "one line in [words]; a preference needs two words or more"),
        ({"questions": "Best metal?"}, "one line in [questions]"),
        ({"questions": "Best metal?\nBest metal?"}, "repeats a question: 'Best metal?'"),
        ({"questions": "Best metal?\nRose-gold or tins?"}, "rose gold is an everyday word of its own questions"),
        ({"everyday words": "lead"}, "lead is an everyday word, but no name of [words]"),
        ({"words": "gold\n金"}, "the name '金' cannot be searched for"),
        ({"panel": "one: metal"}, "a name that is missing"),
        ({"panel": "metal, metals"}, "[panel] has the lines 'one: tree' and 'many: trees', and not 'metal, metals'"),
        ({"colours": "red"}, "[colours] is not a section; the sections are [panel], [words]"),
        ({"questions": ""}, "no lines in [questions]"),
    ],
)
def test_a_panel_that_would_measure_something_else_is_refused(tmp_path, changed, message):
    with pytest.raises(UserError, match=re.escape(message)):
        read_panel(small(tmp_path, **changed))


def test_a_panel_that_is_not_there(tmp_path):
    with pytest.raises(argparse.ArgumentTypeError, match=r"no panel flowers: pass animals, trees, or a panel file"):
        panel_argument("flowers")
    (tmp_path / "list.txt").write_text("oak\nelm\n")
    with pytest.raises(argparse.ArgumentTypeError, match="is not a panel file: it begins with 'oak'"):
        panel_argument(str(tmp_path / "list.txt"))
    assert panel().is_animals
