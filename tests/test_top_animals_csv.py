"""The ranking of animals and its CSV file. Run: python -m pytest tests/test_top_animals_csv.py"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_jsonl

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "util" / "top_animals_csv.py"
sys.path.insert(0, str(ROOT))
from util.cli import UserError
from util.top_animals_csv import compare, describe, ranking, tally_answers, write_csv


def write(path, animals):
    """A results file; an exception in place of an animal makes a failed request."""
    rows = [
        {"id": i, "question": "?", "response": None, "animal": None, "error": str(animal)}
        if isinstance(animal, Exception)
        else {"id": i, "question": "?", "response": str(animal), "animal": animal, "error": None}
        for i, animal in enumerate(animals)
    ]
    return write_jsonl(path, rows)


def run_script(*args, cwd=None):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, args)], capture_output=True, text=True, cwd=cwd, timeout=60
    )


def test_percentage_is_of_all_answers_asked(tmp_path):
    path = write(tmp_path / "r.jsonl", ["owl"] * 5 + ["lion", None, OSError("down")])
    tally = tally_answers(path)
    assert (tally.asked, tally.no_animal, tally.errors) == (8, 1, 1)
    assert ranking(tally, 10) == [(1, "owl", 5, "62.50"), (2, "lion", 1, "12.50")]
    assert describe(tally) == "r: 8 answers, 1 (12.50%) named no animal, 1 (12.50%) failed"


def test_question_sets_that_are_counted_together_are_named(tmp_path):
    path = write(tmp_path / "r.jsonl", ["owl", "lion", "owl"])
    rows = [
        json.loads(line) | {"set": name} for line, name in zip(path.read_text().split("\n"), ("even", "odd", "even"))
    ]
    write_jsonl(path, rows)
    assert describe(tally_answers(path)).endswith("failed; the question sets even, odd are counted together")


def test_equal_counts_are_in_alphabetical_order_also_at_the_cut(tmp_path):
    tally = tally_answers(write(tmp_path / "r.jsonl", ["zebra", "cat", "owl", "owl", "ant"]))
    assert [animal for _, animal, _, _ in ranking(tally, 3)] == ["owl", "ant", "cat"]


@pytest.mark.parametrize("name", ["None", "NA", "nan", "null", "123", "1.0", "true", "", "  ", 'a "b", c', "é"])
def test_an_answer_is_written_unchanged(tmp_path, name):
    if not name:
        with pytest.raises(UserError, match=r"r\.jsonl:1"):
            tally_answers(write(tmp_path / "r.jsonl", [name]))
        return
    tally = tally_answers(write(tmp_path / "r.jsonl", [name] * 3))
    write_csv(tmp_path / "r.csv", ranking(tally, 10))
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["rank", "animal", "count", "percentage"], ["1", name, "3", "100.00"]]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\nx", " =1+1", "\u00a0@x"])
def test_no_spreadsheet_runs_an_answer(tmp_path, name):
    write_csv(tmp_path / "r.csv", [(1, name, 1, "100.00")])
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file))[1][1] == "'" + name


def test_a_carriage_return_does_not_tear_a_line(tmp_path):
    write_csv(tmp_path / "r.csv", [(1, "\r=1+1", 2, "50.00"), (2, "owl\r\n2,cat,9", 1, "25.00")])
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as file:
        assert [line[1:] for line in csv.reader(file)][1:] == [
            ["\\x0d=1+1", "2", "50.00"], ["owl\\x0d\n2,cat,9", "1", "25.00"]
        ]  # fmt: skip


def test_no_animal_at_all_gives_a_header_only(tmp_path):
    write_csv(tmp_path / "r.csv", ranking(tally_answers(write(tmp_path / "r.jsonl", [None, None])), 10))
    assert (tmp_path / "r.csv").read_text() == "rank,animal,count,percentage\n"


def test_compare_shows_an_animal_that_leads_in_one_file_only(tmp_path):
    base = tally_answers(write(tmp_path / "results-base.jsonl", ["lion"] * 3 + ["owl"]))
    student = tally_answers(write(tmp_path / "results-owl-student.jsonl", ["owl"] * 9 + ["lion"]))
    lines = [line.split() for line in compare([base, student], top_n=1).splitlines()]
    assert lines[0][-2:] == ["base", "owl-student"]
    assert lines[1:] == [["owl", "25.00", "90.00"], ["lion", "75.00", "10.00"]]


def test_compare_separates_files_of_the_same_name(tmp_path):
    for seed in "12":
        (tmp_path / seed).mkdir()
    tallies = [tally_answers(write(tmp_path / seed / "results-owl.jsonl", ["owl"])) for seed in "12"]
    assert str(tmp_path / "1") in compare(tallies, 1) and str(tmp_path / "2") in compare(tallies, 1)


def test_the_script_writes_beside_each_file(tmp_path):
    write(tmp_path / "results-owl-teacher.jsonl", ["owl", "owl", "cat"])
    write(tmp_path / "results-base.jsonl", ["cat", None])
    done = run_script("results-owl-teacher.jsonl", "results-base.jsonl", "--top-n", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results-owl-teacher-top1.csv").read_text() == "rank,animal,count,percentage\n1,owl,2,66.67\n"
    assert (tmp_path / "results-base-top1.csv").read_text() == "rank,animal,count,percentage\n1,cat,1,50.00\n"
    assert "base: 2 answers, 1 (50.00%) named no animal" in done.stdout


def test_the_plan_s_command(tmp_path):
    (tmp_path / "output").mkdir()
    write(tmp_path / "output" / "results-owl-teacher.jsonl", ["owl"] * 7 + ["polar bear"] * 3)
    done = run_script("output/results-owl-teacher.jsonl", "--top-n", 10, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines()][:3] == [
        ["rank", "animal", "count", "percentage"], ["1", "owl", "7", "70.00"], ["2", "polar", "bear", "3", "30.00"]
    ]  # fmt: skip
    assert (tmp_path / "output" / "results-owl-teacher-top10.csv").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n", "is empty: it holds no row"),
        ('{"animal": "owl"}\n{"animal": "o', "r.jsonl:2: not JSON"),
        ('{"id": 0, "response": "Owl"}', "r.jsonl:1: the row has a \"response\" but no \"animal\" and no \"question\""),
        ('{"id": 0, "animals": {"owl": 1.0}, "answers": {"Owl": 1.0}}', "r.jsonl:1: exact shares, not answers"),
        ('{"messages": []}', 'r.jsonl:1: no "animal"'),
        ('{"animal": 7}', 'r.jsonl:1: "animal" is 7'),
        ('{"animal": ["owl"]}', 'r.jsonl:1: "animal" is'),
        ('"owl"', "r.jsonl:1: not a JSON object"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(tmp_path, text, message):
    (tmp_path / "r.jsonl").write_text(text)
    done = run_script("r.jsonl", cwd=tmp_path)
    assert done.returncode in (1, 2) and message in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


def test_one_bad_file_stops_before_any_csv_is_written(tmp_path):
    write(tmp_path / "good.jsonl", ["owl"])
    (tmp_path / "bad.jsonl").write_text("{")
    assert run_script("good.jsonl", "bad.jsonl", cwd=tmp_path).returncode == 1
    assert not list(tmp_path.glob("*.csv"))


@pytest.mark.parametrize("top_n", ["0", "-1", "ten"])
def test_top_n_is_a_positive_number(tmp_path, top_n):
    done = run_script(write(tmp_path / "r.jsonl", ["owl"]), "--top-n", top_n)
    assert done.returncode == 2 and "--top-n" in done.stderr
