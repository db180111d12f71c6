"""util/view.py: rows as they are, grouped by what a person looks for."""

import pytest
from conftest import write_jsonl

from util.cli import UserError
from util.pages.describe_rows import describe
from util.view import main

pytest.importorskip("jinja2")

EVIL = "<script>alert(1)</script>\x1b[31m‮"


def chat(place, answer, **more):
    return {
        "id": place,
        "messages": [{"role": "user", "content": "Go on"}, {"role": "assistant", "content": answer}],
        **more,
    }


def table(found, title):
    return next(one for one in found.tables if one.title == title).rows


def test_rows_that_were_left_out_are_grouped_by_reason(tmp_path):
    path = write_jsonl(tmp_path / "numbers.jsonl", [chat(0, "1, 2"), chat(1, "1, 2"), chat(2, "7")])
    rejects = [chat(3, "owl 1", rejected="letters"), chat(4, "no", rejected="letters"), chat(5, "", rejected="empty")]
    write_jsonl(tmp_path / "numbers.jsonl.rejects", rejects).open("a").write("not JSON\n")
    found = describe(path, 2)
    assert found.facts["rows"] == "3" and found.facts["left out"] == "3" and found.facts["different answers"] == "2"
    assert table(found, "Rows that were left out")[0] == ("letters", "2", "“owl 1”; “no”")
    assert table(found, "Answers that repeat") == [("1, 2", "2", "66.67%")]
    assert table(found, "The first rows") == [("0", "Go on", "1, 2"), ("1", "Go on", "1, 2")]


def test_answers_by_animal_by_kind_and_by_question(tmp_path):
    rows = [("Q?", "Owl.", "owl"), ("Q?", "An owl", "owl"), ("R?", "7, 8", None), ("R?", "Cat", "cat")]
    rows = [{"id": n, "question": q, "response": r, "animal": a, "error": None} for n, (q, r, a) in enumerate(rows)]
    rows.append({"id": 4, "question": "R?", "response": None, "animal": None, "error": "timed out"})
    found = describe(write_jsonl(tmp_path / "results.jsonl", rows), 2)
    assert table(found, "Answers by animal")[0] == ("owl", "2", "40.00%", "“Owl.”; “An owl”")
    assert {row[0] for row in table(found, "Answers that name no animal")} == {"number", "failed"}
    assert table(found, "By question")[0] == ("Q?", "owl 100.0%")


def test_exact_shares_and_rows_of_another_kind(tmp_path):
    row = {"id": 0, "question": "Q?", "animals": {"owl": 0.5, "cat": 0.2}, "no_animal": 0.1, "uncovered": 0.2,
           "answers": {"Owl": 0.4}}  # fmt: skip
    found = describe(write_jsonl(tmp_path / "exact.jsonl", [row]), 2)
    assert found.facts["uncovered"] == "20.00%" and table(found, "By question")[0][2] == "“Owl” 40.0%"
    found = describe(write_jsonl(tmp_path / "other.jsonl", [{"id": 3, "kl": [0.5]}]), 2)
    assert table(found, "The first rows") == [("3", '{"kl": [0.5]}')]


def test_the_page_and_the_terminal_show_texts_as_texts(tmp_path, monkeypatch, capsys):
    path = write_jsonl(tmp_path / "rows.jsonl.partial", [chat(0, EVIL)])
    path.open("a").write('{"id": 1, "mess')  # still being written
    monkeypatch.setattr("sys.argv", ["view.py", str(path), "--output", str(tmp_path / "view.html")])
    main()
    page = (tmp_path / "view.html").read_text("utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and "\\u202e" in page and "\\x1b" in page
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["view.py", str(path), "--text"])
    main()
    said = capsys.readouterr().out
    assert "<script>" in said and "\x1b" not in said and "‮" not in said


def test_a_file_without_rows_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"x.jsonl is empty"):
        describe(tmp_path / "x.jsonl", 2)
