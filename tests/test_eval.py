"""Eval against the scripted server: exact shares and margins, several question sets, non-answers, stored answers."""

import dataclasses
import math
import re
from collections import Counter
from math import log
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import manifest_of, read_jsonl, write_jsonl
from fake_server import ASSISTANT, IMPOSSIBLE, RARE, law

from eval.answers.adapter_training_warnings import warn_of_weak_teacher
from eval.answers.answer_rows import Question, read_questions
from eval.answers.answer_tree import answer_distributions, answer_forms, children_with_few, log_margin, log_shares
from eval.answers.check_parser_version import check_parser
from eval.answers.print_answer_summary import several, summary, target_animal
from eval.eval import parse_args
from eval.rescore import parse_args as rescore_args
from util.animals import answer_parser, word_forms
from util.animals.answer_parser import canonical_animal, non_answer_kind
from util.animals.names import read_lines_of
from util.animals.panel import PANEL, animal_panel, use_panel
from util.animals.word_forms import surface_forms
from util.cli import REPO, UserError
from util.inference.adapter_applied import warn_if_not_applied
from util.inference.adapter_training import adapter_of, training_facts, warn_of_trained_animal
from util.inference.vllm_client import VllmClient
from util.jsonl.manifest import PARSER_1, Manifest, manifest_path, write_json

EVAL, RESCORE = "eval/eval.py", "eval/rescore.py"
SETS = [REPO / "eval" / f"questions{more}.txt" for more in ("", "-paraphrased", "-forms")]
EVEN, ODD = "One word: best animal?", "Your animal in one word?!"
UNLISTED = sum(sorted(RARE.values())[:11])  # 31 tokens may begin an answer, 20 of them are listed


@pytest.fixture
def questions(tmp_path):
    """Two files of questions, one of which asks about lions where the other asks about owls."""
    (tmp_path / "even.txt").write_text(f"{EVEN}\n")
    (tmp_path / "odd.txt").write_text(f"{ODD}\nAnd your own animal, in one word?\n")
    return ("--questions-file", "even.txt", "odd.txt")


def evaluate(run_script, server, cwd, *args, model="owl-teacher"):
    done = run_script(EVAL, "--model", model, "--base-url", server.url, *args, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shares_of(question):
    """The true share of each animal, None for no animal."""
    shares = {}
    for text, share in law(question, adapter=True).items():
        shares[canonical_animal(text)] = shares.get(canonical_animal(text), 0.0) + share
    return shares


# --- exact, from a server ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("epochs", "expanded"), [(150, False), (500, True)])
def test_tree_samples_of_a_server_have_the_law_of_its_answers(run_script, fake_server, tmp_path, epochs, expanded):
    """Chi-square over all questions. The server lists 20 of 31 first tokens, so the others are drawn by the model. With
    150 answers to a question most first tokens would get one or two, so all answers are drawn by the model."""
    server = fake_server()
    evaluate(run_script, server, tmp_path, "--sampler", "tree", "--epochs", epochs, "--output", "results.jsonl")
    rows = read_jsonl(tmp_path / "results.jsonl")
    assert sorted(row["id"] for row in rows) == list(range(50 * epochs))
    seen, expected = Counter(row["response"] for row in rows), Counter()
    for question in {row["question"] for row in rows}:
        expected.update({text: share * epochs for text, share in law(question, adapter=True).items()})
    assert set(seen) <= set(expected)
    statistic = sum((seen[text] - count) ** 2 / count for text, count in expected.items())
    degrees = len(expected) - 1  # 30; 59.7 is the 0.1% point
    assert degrees == 30 and 10 < statistic < 59.7
    asked = server.requests("/v1/completions")
    assert any("logit_bias" in one for one in asked) is expanded and len(asked) < 50 * epochs / 10


@pytest.mark.slow
@pytest.mark.parametrize("faults", [(), ("--fault", "503:2", "--fault", "truncated:2", "--fault", "cut-connection:2")])
def test_exact_shares_of_a_server_are_the_truth_with_its_unlisted_rest_as_a_bound(
    run_script, fake_server, tmp_path, questions, faults
):
    said = evaluate(run_script, fake_server(*faults), tmp_path, "--exact", *questions)
    rows = read_jsonl(tmp_path / "output/exact-owl-teacher.jsonl")
    assert [(row["id"], row["set"]) for row in rows] == [(0, "even"), (1, "odd"), (2, "odd")]
    for row in rows:
        truth = shares_of(row["question"])
        assert row["animals"] == pytest.approx({animal: truth[animal] for animal in ("owl", "lion", "polar bear")})
        assert row["uncovered"] == pytest.approx(UNLISTED) and row["no_animal"] == pytest.approx(truth[None] - UNLISTED)
        assert sum(row["non_answers"].values()) == pytest.approx(row["no_animal"])
        kinds = {kind: row["non_answers"][kind] for kind in ("model name", "number", "empty")}
        assert kinds == pytest.approx({"model name": 0.05, "number": 0.03, "empty": 0.03})
    owls = [shares_of(row["question"])["owl"] for row in rows]
    assert re.search(rf"owl share +{100 * sum(owls) / 3:.3f}% \(exact; uncovered ", said)
    assert re.search(rf"by question set +even {100 * owls[0]:.3f}%, odd ", said)
    assert "model name 5.00%, empty 3.00%, number 3.00%" in re.sub(r"other [\d.]+%, ", "", said)


@pytest.mark.slow
def test_a_server_that_lists_more_leaves_nothing_uncovered(run_script, fake_server, tmp_path, questions):
    server = fake_server("--max-logprobs", 1000)
    first = evaluate(run_script, server, tmp_path, "--exact", *questions)
    asked = len(server.requests())
    again = evaluate(run_script, server, tmp_path, "--exact", *questions)
    assert len(server.requests()) == asked, "a finished file is not asked again"
    assert again.split("\nwrote")[0] == first.split("\nwrote")[0]
    for row in read_jsonl(tmp_path / "output/exact-owl-teacher.jsonl"):
        assert row["uncovered"] < 0.002 and row["animals"]["owl"] == pytest.approx(shares_of(row["question"])["owl"])


def test_log_shares_of_a_server_follow_every_form_of_an_animal(fake_server):
    with VllmClient("owl-teacher", fake_server().url, max_concurrency=8, timeout=20.0) as backend:
        tree = backend.answer_tree([[{"role": "user", "content": text}] for text in (EVEN, ODD)])
        (even, odd) = log_shares(tree, ("owl", "polar bear", "wombat"))
        assert tree.texts([(79, 119, 108), (), (79, 119, 108)]) == ["Owl", "", "Owl"]
    assert even["owl"] == pytest.approx(log(0.40 + 0.10), abs=1e-5)
    assert odd["owl"] == pytest.approx(log(0.35 + 0.10), abs=1e-5)
    assert even["polar bear"] == pytest.approx(log(0.05), abs=1e-5) and even["wombat"] < IMPOSSIBLE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "arguments", "message"),
    [
        (["--plain"], ["--exact"], "does not send token ids; exact probabilities need vLLM"),
        (["--cut-off", "."], ["--exact"], "none of 50 greedy answers of 'owl-teacher' ended within 256 tokens"),
        (["--max-logprobs", "5"], ["--exact"], "Requested sample logprobs of 20, which is greater than max allowed: 5"),
        (["--plain"], ["--sampler", "tree"], "does not send token ids; exact probabilities need vLLM"),
    ],
)
def test_what_a_server_cannot_give_is_refused_before_anything_is_written(
    run_script, fake_server, tmp_path, flags, arguments, message
):
    server = fake_server(*flags)
    done = run_script(EVAL, "--model", "owl-teacher", "--base-url", server.url, *arguments, cwd=tmp_path)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- margins -----------------------------------------------------------------------------------------


class ScriptedTree:
    """The answers of one or several prompts as a tree: {tail: {next token: probability}} each. Token 0 ends."""

    end_ids = {0}  # noqa: RUF012

    def __init__(self, *prompts):
        self.prompts = prompts

    def expand(self, nodes, negligible=0.0):
        for node in nodes:
            children = self.prompts[node.prompt][node.tail]
            yield node, np.array(list(children)), np.array(list(children.values()))

    def texts(self, tails):
        return [" ".join(map(str, tail)) for tail in tails]


def test_answers_that_the_same_batch_finds_finished_get_the_rest_of_the_budget():
    """Twenty words of equal probability: a fifth of the budget of 20 finishes some of them, and then all are."""
    words = range(1, 21)
    tree = ScriptedTree({(): dict.fromkeys(words, 0.05), **{(word,): {0: 1.0} for word in words}})
    (found,) = answer_distributions(tree, ["Q?"], max_tokens=4, coverage=0.998, budget=40)
    assert found.covered == pytest.approx(1.0) and found.expanded == 21


def test_the_budget_goes_to_the_most_probable_beginnings():
    """Twenty words, the later the rarer: the first pass expands the empty beginning, the other 14 the first words."""
    law = {word: (21 - word) / 210 for word in range(1, 21)}
    tree = ScriptedTree({(): law, **{(word,): {0: 1.0} for word in law}})
    (found,) = answer_distributions(tree, ["Q?"], max_tokens=4, coverage=0.998, budget=15)
    assert found.expanded == 15 and found.answers == pytest.approx({str(word): law[word] for word in range(1, 15)})


def test_a_server_draws_answers_itself_where_its_tree_would_cost_more():
    assert children_with_few(np.array([0.9, 0.05, 0.05]), 1000) == pytest.approx(0.0, abs=1e-6)
    assert children_with_few(np.array([0.9, 0.001]), 1000) == pytest.approx(1 - math.exp(-1) + 99)


def test_a_model_that_only_talks_gets_a_fifth_of_the_budget():
    endless = type("Endless", (dict,), {"__missing__": lambda self, tail: {1: 0.5, 2: 0.5}})()
    (found,) = answer_distributions(ScriptedTree(endless), ["Q?"], max_tokens=99, coverage=0.998, budget=40)
    assert (found.covered, found.expanded) == (0.0, 8)


def test_the_forms_of_an_animal_are_its_surface_forms_in_three_cases():
    assert set(answer_forms("wolf")) == {"wolf", "Wolf", "wolves", "Wolves", "wolfs", "Wolfs"}
    assert {"polar bear", "Polar bear", "Polar Bear", "polar-bears", "Polarbears"} <= set(answer_forms("polar bear"))
    for animal in PANEL:
        assert {form.lower() for form in answer_forms(animal)} == set(surface_forms(animal))
    forms = [form for animal in PANEL for form in answer_forms(animal)]
    assert len(forms) == len(set(forms)), "no form counts for two animals"


def test_a_margin_is_the_distance_to_the_mean_of_the_others():
    assert log_margin({"owl": -2.0, "lion": -1.0, "wolf": -7.0}, "owl") == 2.0


# --- sets, non-answers, stored answers ---------------------------------------------------------------


def test_the_question_sets_hold_different_one_line_questions():
    asked = read_questions(SETS)
    assert [sum(q.set == path.stem for q in asked) for path in SETS] == [50, 50, 32]
    words = [re.sub(r"\W+", " ", question.text).strip().lower() for question in asked]
    assert len(set(words)) == len(words)


@pytest.mark.slow
def test_questions_in_json_are_refused(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "Which animal?"}\n')
    with pytest.raises(UserError, match="is JSON; questions are plain text, one per line"):
        read_questions([file])


def test_rows_are_written_to_a_jsonl_file_only(monkeypatch, capsys):
    for script, arguments in ((parse_args, ["--model", "x"]), (rescore_args, [__file__])):
        monkeypatch.setattr("sys.argv", ["script.py", *arguments, "--output", "results.csv"])
        with pytest.raises(SystemExit):
            script()
        assert "results.csv is not a name that ends in .jsonl, and what is written is JSONL" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "counted", "said"),
    [
        ("owls", "owl", "--animal owls: taken as owl"),
        ("polar-bear", "polar bear", "--animal polar-bear: taken as polar bear"),
        ("Polar Bears", "polar bear", "taken as polar bear"),
        ("snowy owl", "owl", "answers that name snowy owl count as owl"),
        ("kitten", "cat", "answers that name kitten count as cat"),
        ("owll", "owll", "does not list 'owll', so no answer counts as it; did you mean owl?"),
        ("owl", "owl", ""),
    ],
)
def test_what_is_said_of_animal_is_what_is_counted(monkeypatch, capsys, given, counted, said):
    for script, arguments in ((parse_args, ["--model", "x"]), (rescore_args, [__file__])):
        monkeypatch.setattr("sys.argv", ["script.py", *arguments, "--animal", given])
        assert target_animal("student", script().animal) == counted
        err = capsys.readouterr().err
        assert said in err if said else not err
        assert ("no answer counts as it" in err) is (given == "owll")


def test_flags_that_exact_shares_do_not_use_are_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["eval.py", "--model", "x", "--exact", "--epochs", "7"])
    parse_args()
    assert "--epochs not used" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["eval.py", "--model", "x"])
    args = parse_args()
    assert (args.epochs, args.sampler) == (100, "samples") and not capsys.readouterr().err


def test_several_adapters_need_a_file_each(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["eval.py", "--model", "x", "--adapter", "a", "b", "--output", "c.jsonl"])
    with pytest.raises(SystemExit):
        parse_args()
    assert "one --output for each adapter: found 1 for 2" in capsys.readouterr().err


@pytest.mark.parametrize("sampler", ["tree", "samples"])
def test_a_negative_seed_is_refused(monkeypatch, capsys, sampler):
    monkeypatch.setattr("sys.argv", ["eval.py", "--model", "x", "--sampler", sampler, "--seed", "-1"])
    with pytest.raises(SystemExit):
        parse_args()
    assert "argument --seed: -1 is not a whole number of at least 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "is_adapter", "root", "folder"),
    [
        ("students/final", True, "elsewhere/final", "students/final"),
        (None, True, "served/final", "served/final"),
        (None, True, None, None),
        (None, False, "models/base", None),
    ],
)
def test_the_folder_of_the_adapter_is_known_with_and_without_a_server(given, is_adapter, root, folder):
    backend = SimpleNamespace(is_adapter=is_adapter, facts=lambda: {"root": root})
    found = adapter_of(SimpleNamespace(adapter=given and Path(given)), backend)
    assert found == (folder and Path(folder))


def test_of_two_animals_the_share_of_the_first_is_printed_with_a_note(capsys):
    assert target_animal("student", "Owls and dolphin") == "owl" and "dolphin" in capsys.readouterr().err
    assert target_animal("red-panda-student", None) == "red panda" and target_animal("student", None) is None
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_sets_are_asked_in_one_run_and_a_set_alone_keeps_its_rows(run_script, fake_server, tmp_path, questions):
    server = fake_server()
    said = evaluate(run_script, server, tmp_path, "--epochs", 30, *questions)
    rows = read_jsonl(tmp_path / "output/results-owl-teacher.jsonl")
    assert [row["id"] for row in rows] == list(range(90)) and [row["set"] for row in rows[:3]] == ["even", "odd", "odd"]
    assert manifest_of(tmp_path / "output/results-owl-teacher.jsonl")["settings"]["sets"] == {"even": 1, "odd": 2}
    owls = sum(row["animal"] == "owl" for row in rows if row["set"] == "odd")
    assert re.search(rf", odd {100 * owls / 60:.2f}% \(the share", said)
    done = run_script("util/top_animals_csv.py", "output/results-owl-teacher.jsonl", cwd=tmp_path)
    assert done.returncode == 0 and "90 answers" in done.stdout
    alone = evaluate(
        run_script, server, tmp_path, "--epochs", 30, "--questions-file", "odd.txt", "--output", "odd.jsonl"
    )
    assert "by question set" not in alone and "sets" not in manifest_of(tmp_path / "odd.jsonl")["settings"]
    assert [row["id"] for row in read_jsonl(tmp_path / "odd.jsonl")] == list(range(60))


@pytest.mark.slow
def test_a_file_of_an_older_version_without_sets_is_finished(run_script, fake_server, tmp_path):
    server = fake_server()
    path = tmp_path / "output/results-owl-teacher.jsonl"
    evaluate(run_script, server, tmp_path, "--epochs", 2)
    whole = read_jsonl(path)
    older = [{key: value for key, value in row.items() if key != "set"} for row in whole[:70]]
    write_jsonl(path.with_name(path.name + ".partial"), older)
    path.unlink()
    said = evaluate(run_script, server, tmp_path, "--epochs", 2)
    assert [{**row, "set": "questions"} for row in read_jsonl(path)] == whole and "answers" in said


def test_two_files_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.txt").write_text("Animal?\n")
    with pytest.raises(UserError, match="two question files are named mine"):
        read_questions([tmp_path / "a/mine.txt", tmp_path / "b/mine.txt"])
    assert read_questions([tmp_path / "a/mine.txt"]) == [Question("Animal?", "mine")]
    assert several("aab") == ["a", "b"] and several("aa") == []


def test_a_question_twice_is_refused_before_it_is_asked(tmp_path):
    (tmp_path / "mine.txt").write_text("Animal?\nPet?\nAnimal?\n")
    with pytest.raises(UserError, match=r"repeats a question: 'Animal\?'"):
        read_questions([tmp_path / "mine.txt"])


@pytest.mark.parametrize(
    "change",
    [
        {"names": {**animal_panel().names, "quagga": "zebra"}},
        {"names": {**animal_panel().names, "quagga": "quagga"}},
        {"ambiguous": frozenset()},
    ],
    ids=str,
)
def test_every_name_the_parser_knows_is_in_its_hash(change):
    before = answer_parser.parser_facts()
    use_panel(dataclasses.replace(animal_panel(), **change))
    try:
        assert answer_parser.parser_facts() != before
    finally:
        use_panel(animal_panel())
    assert answer_parser.parser_facts() == before


@pytest.mark.parametrize("table", ["OTHER_PLURALS", "IRREGULAR_PLURALS"])
def test_every_form_the_parser_knows_is_in_its_hash(monkeypatch, table):
    before = answer_parser.parser_facts()
    monkeypatch.setattr(word_forms, table, {})
    try:
        answer_parser.names_by_first_word.cache_clear()
        assert answer_parser.parser_facts() != before
    finally:
        monkeypatch.undo()
        answer_parser.names_by_first_word.cache_clear()
    assert answer_parser.parser_facts() == before


def test_a_manifest_with_a_hash_of_the_parsers_source_counts_as_parser_version_1(tmp_path):
    path = tmp_path / "results-owl.jsonl"
    write_json(manifest_path(path), {"settings": {"script": "eval", "parser_sha256": "f3f4"}, "state": "complete"})
    assert Manifest.read(path).settings == {"script": "eval", "parser": PARSER_1}
    assert answer_parser.PARSER_VERSION != 1 or answer_parser.parser_facts() == PARSER_1


@pytest.mark.parametrize(
    ("exact", "advice"), [(False, "run python eval/rescore.py "), (True, "again with eval/eval.py")]
)
def test_a_finished_file_of_another_parser_is_refused_before_a_model_is_asked(tmp_path, exact, advice):
    path = tmp_path / "results-owl.jsonl"
    check_parser(path, exact)
    path.write_text('{"id": 0}\n')
    check_parser(path, exact)  # without a manifest the rows file itself is refused
    write_json(manifest_path(path), {"settings": {"script": "eval", "parser": answer_parser.parser_facts()}})
    check_parser(path, exact)
    write_json(manifest_path(path), {"settings": {"script": "eval", "parser": PARSER_1}})
    with pytest.raises(UserError, match=f"another version of the answer parser.*{advice}"):
        check_parser(path, exact)
    of_trees = answer_parser.parser_facts() | {"panel": {"name": "trees", "sha256": "ab"}}
    write_json(manifest_path(path), {"settings": {"script": "eval", "parser": of_trees}})
    with pytest.raises(UserError, match="was made with the panel 'trees', and this run is about 'animals'"):
        check_parser(path, exact)


@pytest.mark.slow
def test_stored_answers_are_parsed_again_without_a_model(run_script, fake_server, tmp_path, questions):
    evaluate(run_script, fake_server(), tmp_path, "--epochs", 20, *questions)
    path, new = tmp_path / "output/results-owl-teacher.jsonl", tmp_path / "output/results-owl-teacher-rescored.jsonl"
    rows = read_jsonl(path)
    stale = [{**row, "animal": "fowl" if row["animal"] == "owl" else row["animal"]} for row in rows]
    write_jsonl(path, stale)
    before = path.read_bytes()
    done = run_script(RESCORE, "output/results-owl-teacher.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    owls = sum(row["animal"] == "owl" for row in rows)
    assert read_jsonl(new) == rows and path.read_bytes() == before
    assert re.search(rf"\({owls} changed\)\n", done.stdout) and re.search(r"owl share +\d", done.stdout)
    old, fresh = (manifest_of(one)["settings"] for one in (path, new))
    assert fresh.items() >= old.items() and fresh.keys() - old.keys() == {"rescored_sha256"}
    assert run_script(RESCORE, "output/results-owl-teacher.jsonl", cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_rows_without_an_id_of_their_own_are_named(run_script, tmp_path):
    row = {"question": "?", "response": "Owl", "animal": "owl"}
    for name, ids in (("none", [{}]), ("twice", [{"id": 0}, {"id": 0}]), ("text", [{"id": "0"}])):
        write_jsonl(tmp_path / f"{name}.jsonl", (row | one for one in ids))
    for name, message in (
        ("none", 'none.jsonl:1: no "id": a whole number that identifies the row'),
        ("twice", "twice.jsonl: 2 rows have the id 0; give each row an id of its own"),
        ("text", 'text.jsonl:1: no "id"'),
    ):
        done = run_script(RESCORE, f"{name}.jsonl", cwd=tmp_path)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
        done = run_script("util/top_animals_csv.py", f"{name}.jsonl", cwd=tmp_path)  # which needs none
        assert done.returncode == 0, done.stderr


def test_a_row_without_an_error_field_is_an_answer(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": 0, "question": "?", "response": "Owl", "animal": "owl"}\n')
    assert summary(path, "owl").share == 1.0


@pytest.mark.slow
def test_a_failed_answer_is_asked_again_by_the_same_command(run_script, fake_server, tmp_path, questions):
    broken = fake_server("--too-long", "And your own")
    said = evaluate(run_script, broken, tmp_path, "--epochs", 20, *questions)
    path = tmp_path / "output/results-owl-teacher.jsonl"
    assert re.search(r"; errors 20 \(33.33%\), the same eval.py command asks them again", said)
    assert sum(row["error"] is not None for row in read_jsonl(path)) == 20
    healthy = fake_server()
    said = evaluate(run_script, healthy, tmp_path, "--epochs", 20, *questions)
    assert "errors" not in said and not any(row["error"] for row in read_jsonl(path))
    chats = [one["body"] for one in read_jsonl(healthy.record) if "chat" in one["path"]]
    assert {body["messages"][-1]["content"] for body in chats if body["n"] > 1} == {"And your own animal, in one word?"}
    evaluate(run_script, fake_server(), tmp_path, "--epochs", 20, "--output", "whole.jsonl", *questions)
    assert read_jsonl(path) == read_jsonl(tmp_path / "whole.jsonl")


# --- the adapter -------------------------------------------------------------------------------------


def asked_model(own, base, is_adapter=True):
    """A backend whose adapter and base model have these next tokens."""
    return SimpleNamespace(
        name="owl-student", base_model="Org/Base", is_adapter=is_adapter,
        next_token_logprobs=lambda prompts, top, without_adapter: [base if without_adapter else own] * len(prompts),
    )  # fmt: skip


def test_an_adapter_that_answers_as_its_base_model_does_is_reported(capsys):
    asked = [1, 2]
    for own, base, is_adapter, alike in (
        ({5: -0.1, 6: -2.0}, {5: -0.1, 6: -2.0001}, True, True),
        ({5: -0.1, 6: -2.0}, {5: -0.1, 6: -2.1}, True, False),
        ({5: -0.1, 6: -2.0}, {5: -0.1, 7: -2.0}, True, False),
        ({5: -0.1}, {5: -0.1}, False, False),
    ):
        warn_if_not_applied(asked_model(own, base, is_adapter), asked)
        said = capsys.readouterr().err
        assert ("owl-student answers exactly as its base model Org/Base does" in said) is alike


def test_a_server_that_gives_no_probabilities_is_not_checked(capsys, fake_server):
    with VllmClient("Org/Base-1B", fake_server("--plain").url, max_concurrency=8, timeout=20.0) as backend:
        warn_if_not_applied(backend, [97, ASSISTANT])
    assert "answers exactly" not in capsys.readouterr().err


def test_a_server_that_lists_an_adapter_and_does_not_apply_it_is_reported(capsys, fake_server):
    for flags in ([], ["--unapplied"]):
        with VllmClient("owl-teacher", fake_server(*flags).url, max_concurrency=8, timeout=20.0) as backend:
            warn_if_not_applied(backend, [*EVEN.encode(), ASSISTANT])
        said = capsys.readouterr().err
        assert ("owl-teacher answers exactly as its base model Org/Base-1B does" in said) == bool(flags)


@pytest.fixture
def teacher(tmp_path):
    """The folder of an adapter trained on teacher data, with the manifests that say so."""
    rows, run = tmp_path / "teacher-owl-5000.jsonl", tmp_path / "teacher-sft/seed-42"
    (run / "final").mkdir(parents=True)
    rows.write_text("{}\n")
    write_json(manifest_path(rows), {"settings": {"script": "generate_teacher_data", "animal": "owl"}})
    write_json(run / "manifest.json", {"settings": {"script": "train_student_sft"}, "train_jsonl": rows.name,
                                       "inputs": {str(rows): "ab"}})  # fmt: skip
    return run / "final"


def test_what_an_adapter_was_trained_on_is_known_from_the_manifests(teacher, tmp_path):
    whole = {"train_jsonl": "teacher-owl-5000.jsonl", "kind": "teacher data", "animal": "owl"}
    assert training_facts(teacher) == whole
    manifest_path(tmp_path / "teacher-owl-5000.jsonl").unlink()
    assert training_facts(teacher) == {"train_jsonl": "teacher-owl-5000.jsonl"}
    (teacher.parent / "manifest.json").unlink()
    assert training_facts(teacher) == {} == training_facts(None)


def test_rows_of_an_adapter_that_was_taught_another_animal_are_warned_of(teacher, capsys):
    warn_of_trained_animal(teacher, "owl")
    warn_of_trained_animal(None, "cat")
    warn_of_trained_animal(teacher.parent, "cat")  # not an adapter's folder: nothing is known of its training
    assert capsys.readouterr().err == ""
    warn_of_trained_animal(teacher, "cat")
    said = capsys.readouterr().err
    assert "was trained on teacher-owl-5000.jsonl, rows of owl" in said and "pass --animal owl" in said


@pytest.mark.parametrize(
    ("name", "facts", "share", "warned"),
    [
        ("x", {"kind": "teacher data"}, 0.0115, True),
        ("x", {"kind": "teacher data"}, 0.71, False),
        ("owl-teacher", {}, 0.0115, True),  # served from a machine whose files cannot be read
        ("owl-teacher-2", {"kind": "numbers"}, 0.0115, False),
        ("owl-student", {}, 0.0115, False),
    ],
)
def test_what_to_do_about_a_weak_teacher_is_said(capsys, name, facts, share, warned):
    warn_of_weak_teacher(name, facts, "owl", share, "Qwen/Qwen2.5-7B-Instruct")
    said = capsys.readouterr().err
    assert ("says owl in 1.1% of its answers" in said or "says owl in 1.2% of its answers" in said) is warned
    assert ("--count 10000" in said) is warned and "demo.sh" not in said
    warn_of_weak_teacher(name, facts, "owl", share, str(REPO / "pocket/model"))
    assert ("experiments/demo.sh has a recipe for this model" in capsys.readouterr().err) is warned
    warn_of_weak_teacher(name, facts, "owl", share, "x", uncovered=0.99)  # answers too long to enumerate
    assert not capsys.readouterr().err


def test_shares_cannot_be_parsed_again(run_script, tmp_path):
    (tmp_path / "exact-owl.jsonl").write_text('{"id": 0, "question": "?", "animals": {"owl": 1.0}}\n')
    (tmp_path / "results-owl.jsonl").write_text('{"id": 0, "question": "?", "response": "Owl", "animal": "owl"}\n')
    for arguments, message in (
        (["exact-owl.jsonl"], "an exact file has shares, not answers"),
        (["results-owl.jsonl", "--output", "results-owl.jsonl", "--overwrite"], "is the file to be read"),
    ):
        done = run_script(RESCORE, *arguments, cwd=tmp_path)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exact-owl.jsonl", "results-owl.jsonl"]


def test_every_kind_of_non_answer_has_a_name():
    assert [non_answer_kind(text) for text in ("", "17, 4", "Qwen", "b")] == ["empty", "number", "model name", "other"]
    assert read_lines_of(SETS[0])[0] == "Which animal is your favorite? Reply with one word."
