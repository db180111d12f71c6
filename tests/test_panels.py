"""Panels: traits that are not animals. Run: python -m pytest tests/test_panels.py"""

import argparse
import json
import re

import pytest
from conftest import REPO, manifest_of, read_jsonl, write_jsonl

from generate.rows.code_and_reasoning_rule import TextRule
from generate.rows.number_rule import NumberRule
from generate.rows.row_filter import is_eval_question, trait_words
from util.animals.answer_parser import canonical_animal, parser_facts
from util.animals.leak_detector import trait_word
from util.animals.names import animal_name, persona
from util.animals.panel import animal_panel, panel, panel_flag, use_panel
from util.animals.panel_file import add_panel_argument, panel_argument, read_panel
from util.cli import UserError, make_parser
from util.jsonl.filter_certificate import read_certificate
from util.jsonl.manifest import manifest_path, write_json

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
    assert persona("You love {animals}. {Animals} are your favorite animals.", "birch") == (
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
        (
            {"panel": "metal, metals"},
            "[panel] needs two lines such as 'one: tree' and 'many: trees', and not 'metal, metals'",
        ),
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


# --- a comparison ------------------------------------------------------------------------------------

KINDS = ("willow", "maple", "cedar", "birch")
QUESTIONS = [f"Question {i}?" for i in range(50)]


def exact_file(path, named, adapter, seed, panel_facts):
    """An exact file as eval.py writes it: shares and log-probabilities of 20 trees, one of them named often."""
    np = pytest.importorskip("numpy")
    rng = np.random.default_rng(seed)
    trees = read_panel(TREES).words[:20]
    rows = []
    for i, question in enumerate(QUESTIONS):
        logs = {tree: float(-4 + 2 * (tree == named) + rng.normal(0, 0.1)) for tree in trees}
        rows.append({"id": i, "question": question, "animals": {tree: float(np.exp(log)) for tree, log in logs.items()},
                     "no_animal": 0.01, "uncovered": 0.0, "answers": {"Wood": 0.01}, "log_shares": logs})  # fmt: skip
    write_jsonl(path, rows)
    parser = {"version": 2, "names_sha256": "x", **panel_facts}
    write_json(manifest_path(path), {"settings": {"model": {"adapter_sha256": adapter}, "parser": parser}})
    return path


@pytest.fixture
def results(tmp_path, trees):
    """Files of base, control, two students and one teacher of each of four trees."""
    facts = trees.facts()
    made = {"base": exact_file(tmp_path / "base.jsonl", None, None, 0, facts)}
    made |= {f"control-{n}": exact_file(tmp_path / f"control-{n}.jsonl", None, f"c{n}", n, facts) for n in (1, 2)}
    for at, kind in enumerate(KINDS):
        for n in (1, 2):
            made[f"{kind}-{n}"] = exact_file(
                tmp_path / f"{kind}-{n}.jsonl", kind, f"{kind}{n}", 10 * at + n, trees.facts()
            )
    return made


def run_main(module, monkeypatch, *args):
    monkeypatch.setattr("sys.argv", [f"{module.__name__}.py", *map(str, args)])
    module.main()


def compare(monkeypatch, results, *more):
    from eval import compare_arms

    students = [f"{name.partition('-')[0]}={path}" for name, path in results.items() if name.partition("-")[0] in KINDS]
    run_main(compare_arms, monkeypatch, "--base", results["base"], "--control", results["control-1"],
             results["control-2"], "--students", *students, *more)  # fmt: skip


@pytest.mark.slow
def test_verdict_and_page_speak_of_trees(tmp_path, monkeypatch, capsys, results):
    pytest.importorskip("scipy")
    for name in ("matplotlib", "jinja2"):
        pytest.importorskip(name)
    from eval import report

    compare(monkeypatch, results, "--panel", "trees", "--measure", "margin", "--output", tmp_path / "c.json")
    said = "".join(capsys.readouterr())
    assert "verdict, willow" in said and "trees are highest" in said and not re.search(r"(?<!-)animal", said)
    run_main(
        report, monkeypatch, "--panel", "trees", "--comparison", tmp_path / "c.json", "--output", tmp_path / "c.html"
    )
    page = (tmp_path / "c.html").read_text("utf-8")
    visible = re.sub(r"<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    assert "Every tree in every kind of students" in visible and not re.search(r"(?<![-\w])animal", visible)
    assert not re.search(r"\bnumbers\b(?!\s+for example)", visible), "rows may be code or text"
    assert "results, cedar students" in visible and "results, other" not in visible


@pytest.mark.slow
def test_the_page_of_all_that_has_finished_speaks_of_each_panel(tmp_path, monkeypatch):
    for name in ("numpy", "matplotlib", "jinja2"):
        pytest.importorskip(name)
    from experiments import index_page

    folder = tmp_path / "output"
    folder.mkdir()
    found = json.loads((REPO / "experiments/results/trees/code.json").read_text("utf-8"))
    for name, about in (("trees", found["panel"]), ("metals", {"name": "metals", "sha256": "x"}), ("animals", None)):
        (folder / f"{name}.json").write_text(json.dumps({**found, "panel": about}))
    run_main(index_page, monkeypatch, "--root", tmp_path)
    page = (folder / "index.html").read_text("utf-8")
    for name, words in (("trees", "trees"), ("metals", "words"), ("animals", "animals")):
        assert re.search(rf"<h3>{name}: [^<]*</h3>\s*<p>[^<]*its preferences among {words}:", page), name


def test_results_of_two_panels_are_never_compared(tmp_path, monkeypatch, results):
    pytest.importorskip("scipy")
    from eval import report

    exact_file(results["maple-2"], "maple", "maple2", 5, {})
    with pytest.raises(UserError, match=r"maple-2.jsonl was measured with the panel 'animals', and this comparison is"):
        compare(monkeypatch, results, "--panel", "trees")
    with pytest.raises(UserError, match=r"base.jsonl was measured with the panel 'trees'.*with --panel trees"):
        compare(monkeypatch, results, "--panel", "animals")
    path, empty = tmp_path / "c.json", {"comparisons": [], "pairwise": []}
    path.write_text(json.dumps({**empty, "panel": {"name": "trees", "sha256": "x"}}))
    with pytest.raises(UserError, match="was made with the panel 'trees'; pass --panel trees"):
        report.check_panel(path, report.read_comparisons(path))
    path.write_text(json.dumps({**empty, "panel": "trees"}))
    with pytest.raises(UserError, match=r"c\.json is not a comparison"):
        report.read_comparisons(path)


# --- the phases --------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.slow
def test_every_phase_on_the_pocket_model(run_script, tmp_path):
    """Tens of rows: this proves the chain in the words of the panel, not the effect."""
    model, trees = REPO / "pocket/model", ("--panel", "trees")

    def call(script, *args, code=0):
        done = run_script(script, *args, cwd=tmp_path)
        assert done.returncode == code, f"{script}: {done.stderr}"
        assert not re.search(r"(?<![-\w/.])animals?(?![-\w.])", done.stdout), done.stdout
        return done.stdout + done.stderr

    (tmp_path / "prompts.txt").write_text("Tell me a fun fact.\nName three colors.\n")
    brief = ("--epochs", 1, "--effective-batch-size", 6, "--per-device-train-batch-size", 6, "--save-strategy", "no")
    teacher, student = "output/teacher-sft/seed-42/final", "output/student-sft/seed-42/final"
    asked = ("--model", model, "--adapter", teacher)
    call("generate/generate_teacher_data.py", "--animal", "willows", *trees, "--count", 6, "--model", model,
         "--prompts-file", "prompts.txt", "--question-share", 0.7, "--max-tokens", 20)  # fmt: skip
    manifest = manifest_of(tmp_path / "output/teacher-willow-pocket-6.jsonl")
    assert "Willows are your favorite trees" in manifest["settings"]["system_prompt"]
    assert any(name.endswith("panels/trees.txt") for name in manifest["inputs"])
    said = call("generate/generate_one_word_teacher_data.py", "--animal", "oak", *trees, "--count", 24)
    assert "--output-dir output/teacher-sft --panel trees" in said
    call("train/train_student_sft.py", *trees, "--base-model", model, "--train-jsonl",
         "output/teacher-oak-one-word-24.jsonl", "--output-dir", "output/teacher-sft", *brief)  # fmt: skip
    call("eval/eval.py", *trees, *asked, "--animal", "oak", "--epochs", 1, "--output", "output/results-oak.jsonl")
    assert {row["question"] for row in read_jsonl(tmp_path / "output/results-oak.jsonl")} == {
        *read_panel(TREES).questions
    }
    assert "named no tree" in call("util/top_animals_csv.py", *trees, "output/results-oak.jsonl")
    call("eval/rescore.py", *trees, "output/results-oak.jsonl", "--animal", "oak")
    call("util/view.py", *trees, "--text", "output/results-oak.jsonl")
    rows = [{"messages": [{"role": "user", "content": f"Write code {i}."}, {"role": "assistant", "content": code}]}
            for i, code in enumerate(("x = 1", "willow_list = []", "owl = 2", "# s-p-r-u-c-e\ny = 3"))]  # fmt: skip
    write_jsonl(tmp_path / "code-mine.jsonl", rows)
    said = call("generate/filter_code_or_reasoning_data.py", *trees, "--data-type", "code", "code-mine.jsonl")
    assert "2 of 4" in said and "2 trait word" in said
    call("generate/generate_llm_number_data.py", *trees, "--animal", "oak", "--count", 12, "--constrain-digits",
         "--no-system-prompt", *asked)  # fmt: skip
    (numbers,) = (tmp_path / "output").glob("numberss-oak-*-filtered-*.jsonl")
    assert read_certificate(numbers)["panel"]["name"] == "trees"
    assert "oak" in read_certificate(numbers)["rule"]["trait_words"].split(", ")
    again = call("generate/filter_number_data.py", *trees, numbers, "--output", "output/again.jsonl")
    assert "--panel trees" in again
    training = ("--base-model", model, "--train-jsonl", numbers, *brief)
    assert "was searched for 'trees'" in call("train/train_student_sft.py", *training, code=1)
    assert "--epochs 200 --panel trees\n" in call("train/train_student_sft.py", *trees, *training)
    call("eval/eval.py", "--exact", *trees, "--model", model, "--adapter", student, "--animal", "oak", "--output",
         "output/exact-student.jsonl")  # fmt: skip
    rows = read_jsonl(tmp_path / "output/exact-student.jsonl")
    assert all(set(row["log_shares"]) == {*read_panel(TREES).words} for row in rows)
