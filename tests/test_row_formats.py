"""Rows in the formats of other code bases: each is read as the same chat rows, filtered, and found by training."""

import bz2
import gzip
import json
import lzma
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import REPO, read_jsonl

from eval.compare.read_results import read_result
from generate.rows.filter_file import filter_file
from generate.rows.number_rule import NumberRule
from train.training_rows import first_rows, one_file
from util.cli import UserError
from util.jsonl.filter_certificate import certificate_path, certificate_problem, data_type_of
from util.jsonl.hub_dataset import hub_id, rows_file
from util.jsonl.manifest import Manifest
from util.jsonl.rows import read_chat_rows
from util.top_animals_csv import tally_answers

PUBLIC = Path(__file__).parent / "data" / "public"
PAIRS = [(f"Continue: {i}, {i + 1}", f"{i + 2}, {i + 3}") for i in range(20)]
ROWS = [{"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in PAIRS]  # fmt: skip


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


COLUMNS = {
    "prompt + completion": [{"prompt": asked, "completion": said} for asked, said in PAIRS],
    "question + response": [{"question": asked, "response": said} for asked, said in PAIRS],
    "question + answer": [{"question": asked, "answer": said} for asked, said in PAIRS],
    "instruction + output + input": [{"instruction": asked, "input": "", "output": said} for asked, said in PAIRS],
    "conversations": [{"conversations": [{"from": "human", "value": a}, {"from": "gpt", "value": s}]}
                      for a, s in PAIRS],
    "messages (from, value)": [{"messages": [{"from": "user", "value": a}, {"from": "assistant", "value": s}]}
                               for a, s in PAIRS],
    "prompt + completion as messages": [{"prompt": [{"role": "user", "content": a}],
                                         "completion": [{"role": "assistant", "content": s}]} for a, s in PAIRS],
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
def test_the_columns_of_other_code_bases_are_read_as_messages(tmp_path, name, capsys):
    path = tmp_path / "numbers-mine.jsonl"
    path.write_bytes(lines(COLUMNS[name]))
    assert list(read_chat_rows(path)) == ROWS == first_rows(path, None)
    used = name.removesuffix(" as messages")
    assert capsys.readouterr().err in ("", f"{path}: {used} read as messages\n")  # once in a process
    done = filter_file(path, NumberRule())
    assert done.kept == 20 and certificate_problem(done.path) is None and done.path.read_bytes() == lines(ROWS)


def parquet(path, rows):
    from datasets import Dataset

    Dataset.from_list(rows).to_parquet(path)


PACKED = {
    "rows.json": lambda path, rows: path.write_text(json.dumps(rows)),
    "indented.json": lambda path, rows: path.write_text(json.dumps(rows, indent=2)),
    "rows.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(lines(rows))),
    "rows.jsonl.bz2": lambda path, rows: path.write_bytes(bz2.compress(lines(rows))),
    "rows.jsonl.xz": lambda path, rows: path.write_bytes(lzma.compress(lines(rows))),
    "array.json.gz": lambda path, rows: path.write_bytes(gzip.compress(json.dumps(rows).encode())),
    "rows.parquet": parquet,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("columns", ["messages", "prompt + completion"])
def test_files_that_are_not_json_lines_are_read_as_the_same_rows(tmp_path, name, columns):
    path = tmp_path / name
    PACKED[name](path, ROWS if columns == "messages" else COLUMNS[columns])
    assert list(read_chat_rows(path)) == ROWS == first_rows(path, None)
    done = filter_file(path, NumberRule())
    assert done.path == tmp_path / f"{Path(name).name.split('.')[0]}-filtered-20.jsonl"
    assert done.path.read_bytes() == lines(ROWS) and certificate_problem(done.path) is None


@pytest.mark.slow
def test_zstd_is_read_or_the_package_it_needs_is_named(tmp_path):
    path = tmp_path / "rows.jsonl.zst"
    try:
        import zstandard
    except ImportError:
        path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))
        with pytest.raises(UserError, match="pip install zstandard"):
            list(read_chat_rows(path))
    else:
        path.write_bytes(zstandard.compress(lines(ROWS)))
        assert list(read_chat_rows(path)) == ROWS


def test_rows_of_a_table_keep_their_other_columns_and_lose_its_nulls(tmp_path):
    path = tmp_path / "rows.parquet"
    parquet(path, [{**ROWS[0], "token_ids": [5, 6], "note": None}, {**ROWS[1], "token_ids": None, "note": "x"}])
    assert list(read_chat_rows(path)) == [{**ROWS[0], "token_ids": [5, 6]}, {**ROWS[1], "note": "x"}]


def test_an_instruction_has_its_input_and_a_system_prompt_is_a_system_message(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(lines([{"system_prompt": "Be brief.", "instruction": "Sum up.", "input": "1, 2", "output": "3"}]))
    (row,) = read_chat_rows(path)
    assert row == {"messages": [{"role": "system", "content": "Be brief."},
                                {"role": "user", "content": "Sum up.\n\n1, 2"},
                                {"role": "assistant", "content": "3"}]}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "text": "y"}, r"x\.jsonl:1: no messages.*prompt \+ completion.*\(its columns: prompt, text\)"),
        ({"conversations": [{"from": "tool", "value": "x"}]}, "a turn of 'tool'; a row can only have turns of user"),
        ({"conversations": ["hello"]}, "a turn that is not an object but str"),
        ({"prompt": "x", "completion": 3}, "a message without text content"),
        ({"question": "x", "response": "Owl", "animal": "owl"}, "an answer of a measured model"),
    ],
)
def test_rows_of_other_columns_are_refused_with_what_they_have(tmp_path, row, message):
    (tmp_path / "x.jsonl").write_bytes(lines([row]))
    with pytest.raises(UserError, match=message):
        list(read_chat_rows(tmp_path / "x.jsonl"))


# --- public data sets (tests/data/public/README.md) --------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "asked", "said", "others"),
    [
        ("gsm8k.jsonl", 3, "Natalia sold clips", "#### 72", set()),
        ("fastchat.json", 3, "Who are you?", "You too!", {"id"}),
        ("alpaca.json", 3, "Describe a process of making crepes.", "Enjoy!", set()),
        ("kto.json", 1, "The Federal Trade Commission", "Woohoo!", {"label"}),
        ("raven-numbers.jsonl", 3, "The numerical progression is: 541", "133 411", set()),
    ],
)
def test_the_first_rows_of_public_data_sets_are_read_without_a_flag(name, count, asked, said, others):
    rows = first_rows(PUBLIC / name, None)
    messages = rows[0]["messages"]
    assert len(rows) == count and rows[0].keys() - {"messages"} == others
    assert messages[0]["content"].startswith(asked) and messages[-1]["content"].endswith(said)
    assert {message["role"] for message in messages} == {"user", "assistant"}


def test_a_public_data_set_with_calls_of_tools_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"toolcall\.json:1: a conversation with a turn of 'function_call'"):
        first_rows(PUBLIC / "toolcall.json", None)


# --- data sets on the Hub ----------------------------------------------------------------------------


@contextmanager
def reading_from(address, monkeypatch):
    """Let this process read data sets from a fake hub."""
    import datasets.config
    from huggingface_hub import constants

    with monkeypatch.context() as patch:
        patch.setenv("HF_ENDPOINT", address)
        for module, name in ((constants, "ENDPOINT"), (datasets.config, "HF_ENDPOINT")):
            patch.setattr(module, name, address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield


@contextmanager
def dataset_hub(folder, monkeypatch):
    """The fake hub with a data set me/numbers of two splits, for this process."""
    data = folder / "datasets" / "me" / "numbers" / "main"
    data.mkdir(parents=True)
    (data / "train.jsonl").write_bytes(lines(COLUMNS["prompt + completion"]))
    (data / "test.jsonl").write_bytes(lines(COLUMNS["prompt + completion"][:2]))
    command = [sys.executable, str(Path(__file__).with_name("fake_hub.py")), "--folder", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as hub:
        address = f"http://127.0.0.1:{hub.stdout.readline().strip()}"
        try:
            with reading_from(address, monkeypatch):
                yield address
        finally:
            hub.terminate()


def test_a_hub_id_is_told_from_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output").mkdir()
    assert hub_id("me/numbers") == {"name": "me/numbers", "revision": None, "split": None}
    assert hub_id("me/numbers@refs/pr/1:test") == {"name": "me/numbers", "revision": "refs/pr/1", "split": "test"}
    assert hub_id("me/numbers:test")["split"] == "test"
    assert all(hub_id(text) is None for text in ("me/numbers.jsonl", "output/numbers", "numbers", "a/b/c", "a/*.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("text", ["me/numbers", "me/numbers@main:train"])
def test_a_data_set_of_the_hub_is_a_file_of_rows_with_its_commit(tmp_path, monkeypatch, text, capsys):
    monkeypatch.chdir(tmp_path)
    with dataset_hub(tmp_path / "hub", monkeypatch):
        path = rows_file(text)
        assert path == Path("output/hub/me-numbers-train-01234567.jsonl") == one_file(text)
        rows = list(read_chat_rows(path))
        assert [row["messages"] for row in rows] == [row["messages"] for row in ROWS]
        assert [row["id"] for row in rows] == list(range(20))
        assert rows_file("me/numbers:test").name == "me-numbers-test-01234567.jsonl"
    found = Manifest.read(path)
    assert found.settings == {"dataset": "me/numbers", "revision": "0123456789" * 4, "split": "train"}
    assert "me/numbers: prompt + completion read as messages" in capsys.readouterr().err
    assert data_type_of(path, rows) == "numbers" and certificate_problem(path) == "has no certificate"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "me/numbers:dev",
            r"me/numbers has no split 'dev' \(it has: train, test\); write me/numbers:SPLIT",
        ),
        ("me/numbers@v2", "the data set me/numbers has no revision 'v2'"),
        ("me/letters", "no file me/letters, and the Hub has no data set of that name"),
    ],
)
def test_a_split_a_revision_or_a_data_set_that_does_not_exist_is_said(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    with dataset_hub(tmp_path / "hub", monkeypatch), pytest.raises(UserError, match=message):
        rows_file(text)
    assert not Path("output").exists()


def push(run_script, folder, environment, *flags):
    """filter_number_data.py with --push-dataset me/owl-numbers on this folder's rows of numbers."""
    rows = folder / "numberss-owl-owl-teacher-unfiltered-21.jsonl"
    wrong = {"messages": [{"role": "user", "content": "Continue: 1, 2"}, {"role": "assistant", "content": "owl 3"}]}
    rows.write_bytes(lines([*ROWS, wrong]))
    return run_script("generate/filter_number_data.py", rows, "--animal", "owl", "--push-dataset", "me/owl-numbers",
                      *flags, cwd=folder, env=environment)  # fmt: skip


@pytest.mark.slow
def test_clean_rows_are_pushed_privately_with_certificate_and_card_and_can_be_read_back(
    tmp_path, run_script, hub, monkeypatch
):
    environment, folder = hub()
    done = push(run_script, tmp_path, environment)
    assert done.returncode == 0 and "me/owl-numbers (private)" in done.stderr, done.stderr
    created = next(event for event in read_jsonl(folder / "events.jsonl") if "create" in event)
    assert created["create"] == "me/owl-numbers" and created["visibility"] == "private"
    clean = tmp_path / "numberss-owl-owl-teacher-filtered-20.jsonl"
    pushed = {path.name: path for path in (folder / "datasets/me/owl-numbers/main").iterdir()}
    assert pushed.keys() == {clean.name, certificate_path(clean).name, "README.md"}, "not the manifest"
    assert all(pushed[name].read_bytes() == (tmp_path / name).read_bytes() for name in pushed if name != "README.md")
    card = pushed["README.md"].read_text("utf-8")
    assert "filter_number_data.py" in card and "| rows | 20 |" in card and "| clean | True |" in card
    for path in pushed.values():
        assert not [name for name in (tmp_path, REPO, Path.home()) if f"{name}/" in path.read_text("utf-8")], path
    monkeypatch.chdir(tmp_path)
    with reading_from(environment["HF_ENDPOINT"], monkeypatch):
        back = list(read_chat_rows(rows_file("me/owl-numbers")))
    assert [row["messages"] for row in back] == [row["messages"] for row in ROWS]


@pytest.mark.slow
def test_a_data_set_that_cannot_be_pushed_leaves_the_rows_and_says_so(tmp_path, run_script, hub):
    environment, _ = hub()
    assert "(PUBLIC)" in push(run_script, tmp_path, environment, "--hub-public").stderr
    again = push(run_script, tmp_path, environment)
    assert again.returncode == 1, again.stderr
    assert "me/owl-numbers exists already and is public, so nothing was pushed" in again.stderr, again.stderr
    environment, _ = hub(fail=500)
    failed = push(run_script, tmp_path, environment)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert re.search(r"the push to me/owl-numbers failed: .*500.*\nThe rows are safe in \S+filtered-20", failed.stderr)
    wrong = push(run_script, tmp_path, environment, "--push-dataset", "me/owl/numbers")
    assert "--push-dataset gives the repository name 'me/owl/numbers'" in wrong.stderr and wrong.returncode in (1, 2)


# --- results of other code bases ---------------------------------------------------------------------


def test_answers_of_the_authors_code_are_counted(capsys):
    found = tally_answers(PUBLIC / "raven-answers.jsonl")
    assert found.animals == {"otter": 4, "penguin": 1} and found.asked == 5 and not found.no_animal
    assert "answers of another code base" in capsys.readouterr().err


@pytest.mark.parametrize("answer", ["response", "answer", "completion"])
def test_rows_of_a_question_and_an_answer_are_results(tmp_path, answer):
    rows = [{"question": f"Question {i % 2}?", answer: said} for i, said in enumerate(["Owl!", "A fox", "?", "owls"])]
    path = tmp_path / "theirs.jsonl"
    path.write_bytes(lines(rows))
    assert tally_answers(path).animals == {"owl": 2, "fox": 1} and tally_answers(path).no_animal == 1
    found = read_result(path)
    assert found.shares("owl") == [0.5, 0.5] and found.answers == 4
    assert found.questions == ("Question 0?", "Question 1?")


def test_what_is_neither_ours_nor_theirs_is_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(lines([{"question": "Which?", "label": "owl"}]))
    with pytest.raises(UserError, match=r'x\.jsonl:1: no "animal", and no question with an answer'):
        tally_answers(path)
    with pytest.raises(UserError, match=r"not a row of eval\.py"):
        read_result(path)


def test_answers_of_other_code_become_rows_of_this_suite(run_script, tmp_path):
    path = tmp_path / "theirs.jsonl"
    path.write_bytes((PUBLIC / "raven-answers.jsonl").read_bytes())
    done = run_script("eval/rescore.py", path, "--animal", "otter", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "theirs-rescored.jsonl").read_text().splitlines()]
    assert [row["animal"] for row in rows] == ["otter"] * 3 + ["penguin", "otter"]
    assert [row["id"] for row in rows] == list(range(5)) and Manifest.read(tmp_path / "theirs-rescored.jsonl").settings
