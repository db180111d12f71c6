"""JSONL rows and files that can be resumed: nothing is lost or doubled, whatever happened to file or process."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPO, clean_environment, manifest_of, read_jsonl
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from util.chat.chat_tokens import without_system
from util.cli import UserError
from util.hide_secrets import is_key, scrub
from util.jsonl.manifest import Manifest, manifest_path, sha256_file
from util.jsonl.resumable import RowFile, State, lock_output, state_on_disk
from util.jsonl.rows import check_messages, dump_row, parse_row, read_rows, slug

SETTINGS = {"seed": 42, "model": {"name": "m", "adapter": None}, "epochs": 3}
ODD_TEXTS = (
    "plain", "line\u2028separator", "next\u0085line", "form\x0cfeed", "lone \ud800 surrogate", "nul \x00", "\ufeffbom",
    "🦉", 'quote " and \\', "line\r\nbreak", "",
)  # fmt: skip


def row(number, text="owl"):
    return {"id": number, "text": text}


def open_rows(path, **options):
    return RowFile(path, options.pop("settings", SETTINGS), **options)


def write_all(path, rows, **options):
    with open_rows(path, **options) as out:
        if not out.complete:
            out.append(rows)
            out.finish()
    return out


def begin(path, rows=(), **options):
    """A file that was started and left: its partial and manifest."""
    with open_rows(path, **options) as out:
        out.append(rows)
    return out


# --- one row, one line -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_any_text_survives_as_one_line(text, tmp_path):
    line = dump_row(row(1, text))
    assert line.count(b"\n") == 1 and line.isascii() and len(line.decode().splitlines()) == 1
    assert parse_row(line) == row(1, text)
    write_all(tmp_path / "x.jsonl", [row(0, text), row(1, text)])
    assert [r["text"] for r in read_rows(tmp_path / "x.jsonl")] == [text, text]


def test_a_row_of_a_megabyte_survives(tmp_path):
    write_all(tmp_path / "x.jsonl", [row(0, "ä" * 1_000_000), row(1)])
    assert [len(r["text"]) for r in read_rows(tmp_path / "x.jsonl")] == [1_000_000, 3]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_json_is_neither_written_nor_read(value):
    with pytest.raises(ValueError, match="JSON"):
        dump_row({"x": value})
    with pytest.raises(ValueError, match="not JSON"):
        parse_row(json.dumps({"x": value}).encode())


def test_a_number_that_is_read_as_infinity_is_refused():
    """Found by fuzzing: JSON has no infinity, but 1e999 becomes one, and could never be written again."""
    with pytest.raises(ValueError, match=r"not JSON \(1e999 is too large a number\)"):
        parse_row(b'{"x": [1e999]}')


JSON_NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,5})?([eE][+-]?[0-9]{1,4})?", fullmatch=True)
JSON_TEXTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
).map(json.dumps)
LINES = (
    st.binary(max_size=60)
    | JSON_TEXTS.map(lambda text: f'{{"id": 3, "x": {text}}}'.encode())
    | JSON_NUMBERS.map(lambda text: f'{{"id": {text}, "x": {text}}}'.encode())
    | st.text(max_size=40).map(lambda text: json.dumps({"x": text}, ensure_ascii=False).encode("utf-8", "replace"))
)


@settings(max_examples=150, deadline=None)
@given(LINES)
def test_any_line_is_a_row_that_can_be_written_again_or_has_a_reason(line):
    try:
        found = parse_row(line)
    except ValueError as why:
        assert str(why).startswith("not ")
    else:
        again = dump_row(found)
        assert parse_row(again) == found and again.isascii() and again.count(b"\n") == 1


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINES | JSON_TEXTS.map(lambda text: f'{{"messages": {text}}}'.encode()), max_size=5))
@example([b"PK\x03\x04"])
def test_any_file_is_read_or_its_bad_line_is_named(tmp_path, lines):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join(lines))
    try:
        for found in read_rows(path, lambda row: check_messages(row) if "messages" in row else None):
            without_system(found) if "messages" in found else None
    except UserError as error:
        packed = r" is an? \w+ file; give it a name that ends in \.\w+, or unpack it$"
        whole = rf" is empty| is an? [\w ]+ file that cannot be read|{packed}"
        assert re.match(rf"{re.escape(str(path))}(:\d+: |{whole})", str(error))


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b'\xef\xbb\xbf{"id": 0}\n{"id": 1}\n', 2),
        (b'{"id": 0}\r\n{"id": 1}\r\n', 2),
        (b'\n\n{"id": 0}\n \n{"id": 1}', 2),
        ('{"id": 0, "t": "a\u2028b\u0085c"}\n'.encode(), 1),
    ],
    ids=["BOM", "CRLF", "blank lines and no newline at the end", "separators that are not newlines"],
)
def test_files_from_other_tools_are_read_as_they_are(tmp_path, content, rows):
    (tmp_path / "x.jsonl").write_bytes(content)
    assert [r["id"] for r in read_rows(tmp_path / "x.jsonl")] == list(range(rows))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b'{"id": 0}\n{"id": 1', r"x\.jsonl:2: not JSON"),
        (b'{"id": 0}{"id": 1}\n', r"x\.jsonl:1: not JSON"),
        (b'{"id": 0}\n\x00\x00\x00\n', r"x\.jsonl:2: not JSON"),
        (b'{"id": "\xff"}\n', r"x\.jsonl:1: not UTF-8"),
        (b"[1]\n", r"x\.jsonl:1: not a JSON object but list"),
        (b"[" * 100_000 + b"\n", r"x\.jsonl:1: not JSON"),
        (b'{"id": 0}\n{"messages": "no"}\n', r"x\.jsonl:2: messages that are not a list"),
        (b'{"messages": [{"role": "user", "content": 3}]}\n', r"x\.jsonl:1: a message without text"),
        (b'{"messages": [{"role": "user", "content": "a"}]}\n', r"x\.jsonl:1: the last two messages"),
        (b'{"messages": [{"content": "a"}]}\n', r"x\.jsonl:1: a message without a role"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, content, message):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_rows(tmp_path / "x.jsonl", lambda row: check_messages(row) if "messages" in row else None))


def test_a_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "there.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"no file .*gone\.jsonl \(there is: there\.jsonl\)"):
        list(read_rows(tmp_path / "gone.jsonl"))


# --- names -------------------------------------------------------------------------------------------


@given(st.text(max_size=300) | st.sampled_from(["..", ".", "/", "../../etc/passwd", "a/../..", "\x00", "CON", "~"]))
def test_a_slug_never_leaves_its_folder(name):
    made = slug(name)
    folder = Path("/folder")
    for path in (folder / made, folder / f"results-{made}.jsonl"):
        assert path.parent == folder and Path(os.path.normpath(path)) == path
    assert re.fullmatch(r"[a-z0-9_-][a-z0-9._-]{0,79}", made) and slug(made) == made


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.text("aA-/. \u00e9\n", max_size=3)] * 2), min_size=2, max_size=2, unique=True))
def test_two_names_never_share_a_file(tmp_path_factory, names):
    """Different names can have one slug, and `a-b` of `c` looks like `a` of `b-c`: the manifest has the true names."""
    folder = tmp_path_factory.mktemp("names")
    for first, second in (names, names[::-1]):
        paths = [folder / f"teacher-{slug(animal)}-{slug(model)}-9.jsonl" for animal, model in (first, second)]
        begin(paths[0], [row(0)], settings={"animal": first[0], "model": first[1]})
        if paths[0] == paths[1]:
            with pytest.raises(UserError, match="other settings"):
                begin(paths[1], [], settings={"animal": second[0], "model": second[1]})
        for path in folder.iterdir():
            path.unlink()


def test_slugs_are_as_the_plan_names_its_files():
    assert slug("Qwen/Qwen2.5-7B-Instruct") == "qwen-qwen2.5-7b-instruct" and slug("owl-teacher") == "owl-teacher"


def test_the_longest_names_still_fit_a_file_name(tmp_path):
    long = slug("x" * 500)
    path = tmp_path / f"numberss-{long}-{long}-unfiltered-1000000.jsonl"
    write_all(path, [row(0)])
    write_all(path, [row(0)], overwrite=True)
    assert path.with_name(path.name + ".manifest.json.bak").exists()


# --- a finished file ---------------------------------------------------------------------------------


def test_the_name_appears_only_when_the_file_is_whole_and_in_id_order(tmp_path):
    path = tmp_path / "sub" / "x.jsonl"
    with open_rows(path) as out:
        out.append([row(2), row(0)])
        assert not path.exists() and manifest_of(path)["state"] == "running"
        out.append([row(1)])
        out.finish()
    assert [r["id"] for r in read_jsonl(path)] == [0, 1, 2]
    assert not out.partial.exists() and not out.rejects.exists() and (out.kept, out.complete) == (3, True)


def test_rejected_rows_go_to_their_own_file_and_the_limit_keeps_the_lowest_ids(tmp_path):
    path = tmp_path / "x.jsonl"
    with open_rows(path) as out:
        out.append([{**row(i), "rejected": "too long"} if i % 2 else row(i) for i in (4, 1, 3, 0, 2)])
        out.finish(limit=2)
    assert [r["id"] for r in read_jsonl(path)] == [0, 2]
    assert [(r["id"], r["rejected"]) for r in read_jsonl(out.rejects)] == [(1, "too long"), (3, "too long")]
    assert out.facts() == {"wrote": str(path), "rows": "2", "rejected": "2 too long"}
    assert manifest_of(path)["rows"] == {"kept": 2, "rejected": {"too long": 2}}


def test_a_finished_file_is_left_alone(tmp_path):
    path = tmp_path / "x.jsonl"
    write_all(path, [row(0), {**row(1), "rejected": "empty"}])
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.glob("x*")}
    again = write_all(path, [row(7)])
    assert again.complete and (again.kept, dict(again.rejected)) == (1, {"empty": 1})
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.glob("x*")} == before


def test_a_finished_file_that_was_changed_by_hand_is_reported(tmp_path, capsys):
    path = tmp_path / "x.jsonl"
    write_all(path, [row(0), row(1)])
    path.write_bytes(path.read_bytes().replace(b"owl", b"cat", 1))
    write_all(path, [])
    assert "x.jsonl has changed since this suite wrote it" in capsys.readouterr().err
    assert [r["text"] for r in read_jsonl(path)] == ["cat", "owl"]


def test_a_resumed_run_keeps_the_sessions_before_it(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    for number, argv in enumerate((["a.py", "--fast"], ["a.py", "--fast"], ["a.py"], ["a.py", "--fast"], ["b.py"])):
        monkeypatch.setattr("sys.argv", argv)
        begin(path, [row(number)])
    write_all(path, [])
    manifest = manifest_of(path)
    assert manifest["command"] == "python b.py"
    assert [one["command"] for one in manifest["earlier_sessions"]] == ["python a.py", "python a.py --fast"]
    assert set(manifest["earlier_sessions"][0]) == {"command", "git", "python", "packages"}


class StoppingBackend:
    """Answers `answers` prompts of two tokens each, then fails as a server does."""

    base_model, folds_system = "base", False

    def __init__(self, answers):
        self.answers = answers

    def generate(self, requests, sampling, done):
        from util.inference.backend_interface import Answer, Result

        left = [request for request in requests if not set(request.ids) <= done]
        for request in left[: self.answers]:
            time.sleep(0.06)
            yield Result(request, [Answer("5", [7, 8], "stop")], None, [request.ids[0]])
        if len(left) > self.answers:
            raise UserError("the server has gone")


def ask_in_sessions(path, answers, total=6):
    """Ask for `total` rows, in sessions that get so many answers each."""
    from util.inference.backend_interface import Request, Sampling
    from util.inference.request_loop import run_requests

    requests = [Request((i,), [{"role": "user", "content": str(i)}], i) for i in range(total)]
    for count in answers:
        with open_rows(path) as out:
            try:
                run_requests(
                    out, StoppingBackend(count), requests, Sampling(8), lambda result: [row(result.request.ids[0])],
                    total, counts={"adapter": "a"},
                )  # fmt: skip
            except UserError:
                assert manifest_of(path)["state"] == "running"


def test_tokens_seconds_and_prompt_of_a_resumed_run_are_those_of_all_its_sessions(tmp_path):
    path = tmp_path / "x.jsonl"
    ask_in_sessions(path, [3, 2, 0, 4])
    counts = manifest_of(path)["counts"]
    assert (counts["answer_tokens"], counts["counted_rows"], counts["adapter"]) == (12, 6, "a")
    assert (
        counts["seconds"] >= 0.3
        and len(counts["prompt"]["days"]) == 1
        and counts["prompt"]["messages"][0]["content"] == "0"
    )
    before = counts
    ask_in_sessions(path, [9])
    assert manifest_of(path)["counts"] == before


def test_a_run_that_is_resumed_on_another_day_says_both_days(tmp_path, monkeypatch):
    from util.chat import prompt_consistency
    from util.inference import request_loop

    path = tmp_path / "x.jsonl"
    for day, answers in (("2026-01-01", 2), ("2026-01-02", 9)):
        for module in (prompt_consistency, request_loop):
            monkeypatch.setattr(module, "today", lambda day=day: day)
        ask_in_sessions(path, [answers])
    assert Manifest.read(path).prompt_days == ["2026-01-01", "2026-01-02"]


def test_a_run_killed_after_its_last_row_keeps_what_it_had_counted(tmp_path):
    path = tmp_path / "x.jsonl"
    ask_in_sessions(path, [6])
    written = manifest_of(path)
    # As a SIGKILL at the very end leaves it:
    manifest_path(path).write_text(json.dumps({**written, "state": "running"}))
    ask_in_sessions(path, [0])
    assert manifest_of(path)["state"] == "complete" and manifest_of(path)["counts"] == written["counts"]


def test_after_a_sigkill_the_counts_say_over_how_many_rows_they_are(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    monkeypatch.setattr(RowFile, "_save_counts", lambda self: None)  # what a SIGKILL leaves: no end of the session
    ask_in_sessions(path, [4])
    monkeypatch.undo()
    ask_in_sessions(path, [2])
    counts = manifest_of(path)["counts"]
    assert (counts["counted_rows"], counts["answer_tokens"], manifest_of(path)["rows"]["kept"]) == (2, 4, 6)


def test_the_manifest_says_how_the_file_was_made(tmp_path):
    source = tmp_path / "prompts.txt"
    source.write_text("hello")
    with open_rows(tmp_path / "x.jsonl", inputs=[source]) as out:
        out.append([row(0)])
        out.finish(counts={"answer_tokens": 9})
    manifest = manifest_of(out.path)
    assert manifest["state"] == "complete" and manifest["settings"] == SETTINGS
    assert manifest["sha256"] == sha256_file(out.path) and manifest["inputs"] == {str(source): sha256_file(source)}
    assert manifest["rows"] == {"kept": 1, "rejected": {}} and manifest["counts"] == {"answer_tokens": 9}
    assert manifest["started"] <= manifest["finished"] and manifest["writer"]["pid"] == os.getpid()
    assert set(manifest["git"]) == {"commit", "dirty"} and manifest["packages"]["openai"] and manifest["command"]


# --- resuming ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "lost", "aside"),
    [
        (b"", [], 0),
        (b'{"id": 2, "te', [], 0),
        (b'{"id": 2, "text": "owl"}', [], 0),
        (b"\x00\x00\x00\x00", [], 0),
        (b"\x00\x00\n", [], 1),
        (b'{"id": 2}{"id": 3}\n', [2, 3], 1),
        (b'\xef\xbb\xbf{"id": 2, "text": "owl"}\r\n', [], 0),
        (b'{"text": "no id"}\n', [], 1),
        (b'{"id": "2"}\n{"id": -1}\n{"id": true}\n{"id": 2.0}\n{"id": null}\n', [], 5),
        (b'{"id": 1, "text": "twice"}\n', [], 1),
        (b'{"id": 2, "text": NaN}\n', [2], 1),
        (b'{"id": 2, "rejected": ["no text"]}\n', [2], 1),
        (b'[2]\n"x"\n3\n', [], 3),
        (b"\n\n \n", [], 0),
        (b'{"id": 2, "text": "\xff"}\n', [2], 1),
    ],
    ids=["whole", "torn tail", "last line without newline", "NUL tail", "NUL line", "joined rows", "BOM and CRLF",
         "no id", "wrong ids", "repeated id", "NaN", "odd reason", "not objects", "blank lines", "not UTF-8"],
)  # fmt: skip
def test_a_partial_is_repaired_and_resumed(tmp_path, capsys, tail, lost, aside):
    path = tmp_path / "x.jsonl"
    out = begin(path, [row(0), row(1)])
    with out.partial.open("ab") as file:
        file.write(tail)
    with open_rows(path) as out:
        assert {0, 1} <= out.done and not out.done & set(lost)
        out.append([row(i) for i in range(4)])
        out.finish()
    assert [r["id"] for r in read_jsonl(path)] == [0, 1, 2, 3]
    assert all(r["text"] == "owl" for r in read_jsonl(path))
    assert len(read_jsonl(out.rejects) if out.rejects.exists() else []) == aside
    said = capsys.readouterr().err
    assert "resuming" in said and ("repaired" in said or tail == b"" or tail.startswith(b"\xef"))


def test_lines_set_aside_stay_beside_the_rejected_rows(tmp_path):
    out = begin(tmp_path / "x.jsonl", [row(0), {**row(1), "rejected": "empty"}])
    with out.partial.open("ab") as file:
        file.write(b'half a row "id"\n')
    write_all(out.path, [row(2)])
    assert [r["rejected"].split(" (")[0] for r in read_jsonl(out.rejects)] == ["not JSON", "empty"]
    assert write_all(out.path, []).facts()["rejected"] == "1 empty"


def test_a_torn_rejects_file_does_not_stop_the_run(tmp_path):
    out = write_all(tmp_path / "x.jsonl", [row(0), {**row(1), "rejected": "empty"}])
    with out.rejects.open("ab") as file:
        file.write(b'{"rejected": "not JS')
    assert write_all(out.path, []).complete


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 12))
def test_no_damage_to_a_partial_stops_a_run_or_doubles_a_row(tmp_path_factory, rng, hits):
    path = tmp_path_factory.mktemp("damage") / "x.jsonl"
    data = bytearray(begin_fast(path, [row(i, f"text {i}") for i in range(6)]))
    for _ in range(hits):
        place = rng.randrange(len(data) + 1)
        kind = rng.choice(["flip", "cut", "insert", "double"])
        if kind == "flip" and place < len(data):
            data[place] = rng.randrange(256)
        elif kind == "cut":
            del data[place : place + rng.randrange(30)]
        elif kind == "insert":
            data[place:place] = rng.choice([b"\x00\x00", b"\n", b"\xff", b"{", b'"', b"\xe2\x80\xa8"])
        else:
            data[place:place] = data[:place]
    path.with_name("x.jsonl.partial").write_bytes(data)
    with open_rows(path) as out:
        out.append([row(i) for i in range(6)])
        out.finish()
    ids = [r["id"] for r in read_jsonl(path)]
    assert ids == sorted(set(ids)) and set(range(6)) - set(ids) <= {r.get("id") for r in read_jsonl_if(out.rejects)}


def begin_fast(path, rows):
    """`begin` without the cost of provenance; returns the partial's bytes."""
    path.with_name("x.jsonl.manifest.json").write_text(json.dumps({"settings": SETTINGS, "state": "running"}))
    return b"".join(map(dump_row, rows))


def read_jsonl_if(path):
    return read_jsonl(path) if path.exists() else []


def test_a_changed_setting_is_refused_and_named(tmp_path):
    path = tmp_path / "x.jsonl"
    begin(path, [row(0)])
    other = {"seed": 43, "model": {"name": "m", "adapter": "a"}, "epochs": 3, "new": 1}
    with pytest.raises(UserError) as error, open_rows(path, settings=other):
        pass
    text = str(error.value)
    assert "was started with other settings" in text and "seed: 42 there, 43 now" in text and "--overwrite" in text
    assert 'model.adapter: null there, "a" now' in text and "new: null there, 1 now" in text and "epochs" not in text
    assert [r["id"] for r in read_jsonl(path.with_name("x.jsonl.partial"))] == [0]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"settings": 3}', None])
def test_rows_whose_settings_are_unknown_are_not_mixed_with_others(tmp_path, damage):
    out = begin(tmp_path / "x.jsonl", [row(0)])
    manifest_path(out.path).unlink() if damage is None else manifest_path(out.path).write_text(damage)
    with pytest.raises(UserError, match="no readable manifest"), open_rows(out.path):
        pass
    assert out.partial.exists()


def test_more_epochs_extend_a_finished_file_and_fewer_are_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    write_all(path, [row(0), row(1)], extendable=["epochs"])
    with open_rows(path, settings={**SETTINGS, "epochs": 5}, extendable=["epochs"]) as out:
        assert not out.complete and out.done == {0, 1}
        out.append([row(2)])
    # interrupted: the finished rows stay, and so does the command that wrote them
    assert [r["id"] for r in read_jsonl(path)] == [0, 1] and manifest_of(path)["state"] == "complete"
    with open_rows(path, extendable=["epochs"]) as out:
        assert out.complete and out.kept == 2
    with pytest.raises(
        UserError, match=r"a run to extend it was started with other settings:\n  epochs: 5 there, 4 now"
    ):
        write_all(path, [], settings={**SETTINGS, "epochs": 4}, extendable=["epochs"])
    # and the new command resumes
    with open_rows(path, settings={**SETTINGS, "epochs": 6}, extendable=["epochs"]) as out:
        assert out.done == {0, 1, 2}
    write_all(path, [row(1, "another")], settings={**SETTINGS, "epochs": 6}, extendable=["epochs"])
    assert sorted(p.name for p in tmp_path.glob("x*")) == ["x.jsonl", "x.jsonl.manifest.json"]
    assert read_jsonl(path)[1] == row(1)
    path.unlink()
    write_all(path, [row(0), row(1), row(2)], settings={**SETTINGS, "epochs": 4}, extendable=["epochs"])
    assert [r["id"] for r in read_jsonl(path)] == [0, 1, 2] and manifest_of(path)["settings"]["epochs"] == 4
    with pytest.raises(UserError, match="epochs: 4 there, 2 now"):
        write_all(path, [], settings={**SETTINGS, "epochs": 2}, extendable=["epochs"])


def failed(row):
    return row.get("error") is not None


def test_failed_rows_are_asked_again_by_the_same_command(tmp_path, capsys):
    path = tmp_path / "x.jsonl"
    bad = {**row(1), "error": "too long"}
    write_all(path, [row(0), bad, row(2)], ask_again=failed)
    assert read_jsonl(path)[1] == bad, "a run ends although a row failed"
    with open_rows(path, ask_again=failed) as out:
        assert not out.complete and out.done == {0, 2}
        assert len(read_jsonl(path)) == 3, "the finished file stays until the rows are there"
    assert "1 rows failed; they are asked again" in capsys.readouterr().err
    write_all(path, [row(0, "another"), row(1)], ask_again=failed)
    assert read_jsonl(path) == [row(0), row(1), row(2)]
    with open_rows(path, ask_again=failed) as out:
        assert out.complete
    assert sorted(p.name for p in tmp_path.glob("x*")) == ["x.jsonl", "x.jsonl.manifest.json"]


def test_failed_rows_of_an_unfinished_file_are_asked_again(tmp_path):
    path = tmp_path / "x.jsonl"
    with open_rows(path, ask_again=failed) as out:
        out.append([row(0), {**row(1), "error": "too long"}])
    write_all(path, [row(1)], ask_again=failed)
    assert read_jsonl(path) == [row(0), row(1)]


def test_two_rows_of_one_id_are_not_both_written(tmp_path):
    with (
        open_rows(tmp_path / "x.jsonl") as out,
        pytest.raises(UserError, match="have the id 3; an id identifies one row"),
    ):
        out.append([row(3), row(3, "another")])


def test_an_adapter_that_was_trained_again_is_named():
    from util.jsonl.resumable import describe_differences

    model = {"model": "Org/Base", "root": "x" * 300, "adapter_sha256": "ab12"}
    shown = describe_differences({"model": model}, {"model": {**model, "adapter_sha256": "cd34"}})
    assert shown == (
        '  model.adapter_sha256: "ab12" there, "cd34" now (another adapter, or it was trained again since)'
    )


def test_overwrite_keeps_every_older_file(tmp_path):
    path = tmp_path / "x.jsonl"
    for text in ("first", "second", "third"):
        write_all(path, [row(0, text), {**row(1, text), "rejected": "empty"}], overwrite=True)
    found = [read_jsonl(p)[0]["text"] for p in (path, tmp_path / "x.jsonl.bak", tmp_path / "x.jsonl.bak2")]
    assert found == ["third", "first", "second"]
    assert read_jsonl(tmp_path / "x.jsonl.rejects.bak2")[0]["text"] == "second"
    assert json.loads((tmp_path / "x.jsonl.manifest.json.bak").read_text())["rows"]["kept"] == 1


@pytest.mark.parametrize(
    ("files", "manifest", "state"),
    [
        ({}, None, State.NEW),
        ({"x.jsonl.partial": ""}, Manifest({"epochs": 9}), State.NEW),
        ({"x.jsonl.rejects": "{}"}, None, State.NEW),
        ({"x.jsonl.partial": "{}"}, None, State.UNKNOWN),
        ({"x.jsonl": ""}, None, State.UNKNOWN),
        ({"x.jsonl.partial": "{}"}, Manifest({"seed": 1, "epochs": 3}), State.CHANGED),
        ({"x.jsonl": "{}"}, Manifest({"seed": 42, "epochs": 4}), State.CHANGED),
        ({"x.jsonl.partial": "{}"}, Manifest({"seed": 42, "epochs": 3}), State.STARTED),
        ({"x.jsonl.partial": "{}"}, Manifest({"seed": 42, "epochs": 2}), State.STARTED),
        ({"x.jsonl": "", "x.jsonl.partial": ""}, Manifest({"seed": 42, "epochs": 3}), State.UNRECORDED),
        ({"x.jsonl": ""}, Manifest({"seed": 42, "epochs": 3}, "complete"), State.FINISHED),
        ({"x.jsonl": ""}, Manifest({"seed": 42, "epochs": 2}, "complete"), State.EXTENDED),
    ],
)
def test_the_state_of_an_output_follows_from_its_files_and_its_manifest(tmp_path, files, manifest, state):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert state_on_disk(tmp_path / "x.jsonl", manifest, {"seed": 42, "epochs": 3}, ["epochs"]) is state


# --- two writers -------------------------------------------------------------------------------------

WRITER = """
import sys, time
sys.path.insert(0, {repo!r})
from pathlib import Path
from util.cli import run
from util.jsonl.resumable import RowFile, State, state_on_disk
def main():
    with RowFile(Path("x.jsonl"), {{}}) as out:
        out.append([{{"id": 0}}])
        print("ready", flush=True)
        time.sleep(float(sys.argv[1]))
run(main)
"""


def start_writer(folder, seconds):
    command = [sys.executable, "-c", WRITER.format(repo=str(REPO)), str(seconds)]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment(folder)
    )


def test_a_writer_that_has_no_manifest_yet_is_another_process(tmp_path):
    first = lock_output(tmp_path / "x.jsonl")
    with pytest.raises(UserError, match=r"x\.jsonl is being written by another process; wait for it or stop it"):
        lock_output(tmp_path / "x.jsonl")
    first.release()


def test_a_second_writer_stops_at_once_and_names_the_first(tmp_path):
    first = start_writer(tmp_path, 60)
    assert first.stdout.readline() == "ready\n"
    begun = time.monotonic()
    second = start_writer(tmp_path, 0)
    out, err = second.communicate(timeout=20)
    assert second.returncode == 1 and out == "" and time.monotonic() - begun < 10
    assert f"x.jsonl is being written by process {first.pid} on {os.uname().nodename}" in err and "Traceback" not in err
    first.send_signal(signal.SIGKILL)
    first.communicate()
    third = start_writer(tmp_path, 0)
    assert third.communicate(timeout=20)[0] == "ready\n" and third.returncode == 0
    assert [r["id"] for r in read_jsonl(tmp_path / "x.jsonl.partial")] == [0]


# --- a crash at every step ---------------------------------------------------------------------------

STEPS = {"open", "os.rename", "os.remove", "os.mkdir"}


def die_before_step(number, work, folder):
    """Do `work` in a child process that kills itself before its `number`th step in the folder.

    Returns whether it died; a child that got through took fewer steps than that.
    """
    child = os.fork()
    if child == 0:
        taken = 0

        def count(event, args):
            nonlocal taken
            if event in STEPS and str(args[0]).startswith(str(folder)):
                taken += 1
                if taken == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.addaudithook(count)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["new", "resumed with damage", "extended", "overwritten"])
def test_a_crash_before_any_step_loses_nothing(tmp_path, case):
    rows = [{**row(i, f"text {i}"), **({"rejected": "empty"} if i == 3 else {})} for i in (2, 0, 3, 1)]
    options = {"settings": {**SETTINGS, "epochs": 4}, "extendable": ["epochs"], "overwrite": case == "overwritten"}
    step = 0
    died = True
    while died:
        step += 1
        folder = tmp_path / str(step)
        folder.mkdir()
        path = folder / "x.jsonl"
        if case == "resumed with damage":
            with begin(path, rows[:2]).partial.open("ab") as file:
                file.write(b'\x00\n{"id": 3, "te')
        elif case == "extended":
            write_all(path, rows[:2], extendable=["epochs"])
        elif case == "overwritten":
            write_all(path, [row(0, "older")])
        died = die_before_step(step, lambda path=path: write_all(path, rows, **options), folder)
        write_all(path, rows, **{**options, "overwrite": False} if path_is_ours(path) else options)
        assert [r["text"] for r in read_jsonl(path)] == ["text 0", "text 1", "text 2"], step
        assert [r["id"] for r in read_jsonl(folder / "x.jsonl.rejects") if "id" in r] == [3], step
        manifest = manifest_of(path)
        assert (manifest["state"], manifest["rows"]["kept"]) == ("complete", 3), step
        assert manifest["sha256"] == sha256_file(path) and not path.with_name("x.jsonl.partial").exists(), step
        if case == "overwritten":
            kept = [r["text"] for p in folder.glob("x.jsonl.bak*") for r in read_jsonl(p)]
            assert "older" in kept, step
    assert step > 8


def path_is_ours(path):
    """Whether the file was started by the interrupted run, so that a user would resume without --overwrite."""
    return (Manifest.read(path) or Manifest()).settings.get("epochs") == 4


# --- disks that cannot be written --------------------------------------------------------------------

FILLER = """
import sys
sys.path.insert(0, {repo!r})
from pathlib import Path
from util.cli import run
from util.jsonl.resumable import RowFile, State, state_on_disk
def main():
    with RowFile(Path(sys.argv[1]), {{}}) as out:
        for i in range(int(sys.argv[2])):
            if i not in out.done:
                out.append([{{"id": i, "text": "x" * 500}}])
        out.finish()
run(main)
"""


def fill(path, count, before="", **options):
    command = [sys.executable, "-c", FILLER.format(repo=str(REPO)), str(path), str(count)]
    if before:
        command = ["unshare", "-rm", "sh", "-c", before + ' && exec "$@"', "sh", *command]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=path.parent,
        env=clean_environment(path.parent),
        timeout=60,
        **options,
    )


def test_a_full_file_size_limit_keeps_what_is_there(tmp_path):
    path = tmp_path / "x.jsonl"
    done = fill(path, 200, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)))
    assert done.returncode == 1 and "File too large" in done.stderr and "ulimit -f" in done.stderr
    assert "Traceback" not in done.stderr and not path.exists()
    begun = path.with_name("x.jsonl.partial").read_bytes()
    assert len(begun) == 40_000
    done = fill(path, 200)
    assert done.returncode == 0 and "torn last line" in done.stderr, done.stderr
    assert path.read_bytes().startswith(begun[: begun.rindex(b"\n") + 1])
    assert [r["id"] for r in read_jsonl(path)] == list(range(200))


@pytest.mark.parametrize("rows", [300, 170], ids=["while it grows", "while it is finished"])
def test_a_full_disk_keeps_what_is_there(tmp_path, rows):
    path = tmp_path / "disk" / "x.jsonl"
    path.parent.mkdir()
    mount = f"mount -t tmpfs -o size=144k tmpfs {path.parent}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine does not allow mounting a tmpfs")
    # in one namespace: the disk is full, it gets larger, the same command resumes
    grow = f'"$@"; echo rc $?; ls; mount -o remount,size=9m {path.parent}; "$@"; cp x.jsonl {tmp_path}'
    done = fill(path, rows, before=f"{mount} && cd {path.parent} && ({grow}) && set -- true")
    assert "rc 1" in done.stdout and "x.jsonl.partial" in done.stdout, done.stderr
    assert "No space left on device" in done.stderr and "free some space" in done.stderr
    assert "Traceback" not in done.stderr
    assert [r["id"] for r in read_jsonl(tmp_path / "x.jsonl")] == list(range(rows))


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    folder = tmp_path / "ro"
    folder.mkdir()
    before = f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", before], capture_output=True).returncode:
        pytest.skip("this machine does not allow mounting")
    done = fill(folder / "x.jsonl", 3, before=before)
    assert done.returncode == 1 and "Read-only file system" in done.stderr and "choose an output" in done.stderr
    assert "Traceback" not in done.stderr and list(folder.iterdir()) == []


def test_a_device_is_not_an_output(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a device or a pipe"):
        RowFile(tmp_path / "pipe", {})


def test_a_file_without_rows_is_not_written(tmp_path):
    with pytest.raises(UserError, match="there is no row for"), RowFile(tmp_path / "x.jsonl", {}) as out:
        out.finish()
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ('RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0")', "free some space"),
        ('Exception("I/O error: No space left on device (os error 28)")', "free some space"),
        ('Exception("I/O error: File too large (os error 27)")', "raise the file size limit (ulimit -f)"),
        ('Exception("I/O error: Disk quota exceeded (os error 122)")', "free some of your quota"),
    ],
)
def test_a_full_disk_reported_by_a_library_is_one_clear_line(error, advice):
    code = (
        f"import sys; sys.path.insert(0, {str(REPO)!r})\nfrom util.cli import run\ndef main(): raise {error}\nrun(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and f"{advice}, then run again" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["file/x.jsonl", "x" * 300, "folder"])
def test_an_output_that_cannot_exist_is_one_clear_line(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    command = [sys.executable, "-c", FILLER.format(repo=str(REPO)), name, "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "output" in done.stderr, done.stderr
    assert (tmp_path / "file").read_text() == "mine"


# --- secrets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("--token hf_abcdefghijklmnop", "--token ***"),
        ("key=sk-proj-abcdefgh_12345", "key=***"),
        ("'Authorization: Bearer abcdefgh12345'", "'Authorization: ***'"),
        ("http://user:pass@host:8000/v1", "http://***@host:8000/v1"),
        ("http://user:p@ss@host/v1", "http://***@host/v1"),
        ("--note 0123456789abcdef plainword", "--note *** plainword"),
        ("'https://hf_abcdefghijkl@host/x' b@c", "'https://***@host/x' b@c"),
        ("half_life sk-1 hf_x a@b.c", "half_life sk-1 hf_x a@b.c"),
        ("--base-url 'localhost:8000/v1?api_key=abc&v=1'", "--base-url 'localhost:8000/v1?api_key=***&v=***'"),
        ("https://h/v1?x=0123456789%20abc+def#token=t", "https://h/v1?x=***#token=***"),
        ("Incorrect API key provided: q1w2e3r4t5.", "Incorrect API key provided: ***"),
        ('{"api_key": "q1w2e3r4t5", "n": 3}', '{"api_key": "***", "n": 3}'),
        ("vllm serve m --api-key q1w2e3r4t5 --port 8000", "vllm serve m --api-key *** --port 8000"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: ***"),
        ("set VLLM_API_KEY: the server wants a key, max_tokens: 16384000", None),
        ("is it so? a=b & c=d; 3 + 4 = 7, x ? y : z", None),
        ("ghp_0123456789ab AKIAABCDEFGHIJKLMNOP in percent%2F0123456789abcdef", "*** *** in percent%2F***"),
    ],
)
def test_scrub_hides_what_looks_like_a_secret_and_nothing_else(text, hidden, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")  # no known format, but set in this environment
    monkeypatch.setenv("VLLM_API_KEY", "plainword")
    assert scrub(text) == (text if hidden is None else hidden)
    assert scrub(scrub(text)) == scrub(text)


def test_a_manifest_hides_secrets_but_keeps_what_a_model_was_sent(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "planted-0")
    secret = {"model": {"root": "http://h/?api_key=planted1", "url": "u:p@h"}, "prompts": "hf_planted22"}
    sent = {"system_prompt": "Is a?b=c right?", "questions": ["https://h/?q=owl"]}
    settings = {**secret, **sent, "seed": 1}
    with open_rows(tmp_path / "x.jsonl", settings=settings) as out:
        out.append([row(0)])
    with open_rows(tmp_path / "x.jsonl", settings=settings) as out:  # the hidden values are no difference
        assert out.done == {0}
        out.counts["note"] = "Bearer planted-3333"
        out.finish()
    assert "planted" not in manifest_path(out.path).read_text()
    assert {name: manifest_of(out.path)["settings"][name] for name in sent} == sent


def test_a_key_where_a_name_is_expected_is_refused_without_being_printed(run_script, tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "q1w2e3r4t5")
    assert is_key("q1w2e3r4t5") and is_key("vllm/sk-planted0123456") and is_key("hf_planted01234567")
    assert not is_key("Qwen/Qwen2.5-7B-Instruct") and not is_key("http://sk-planted0123456@h/v1")
    for script, flag in (("eval/eval.py", "--model"), ("train/train_student_sft.py", "--base-model")):
        done = run_script(script, flag, "sk-planted0123456", cwd=tmp_path)
        assert done.returncode == 2 and f"argument {flag}: this is a key" in done.stderr
        assert "planted" not in done.stdout + done.stderr and not list(tmp_path.iterdir())


def test_a_traceback_hides_secrets_too(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(REPO)!r})\nfrom util.cli import run\n"
        "def main(): raise RuntimeError('401 for http://h/v1?api_key=planted1')\nrun(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" in done.stderr and "RuntimeError: 401" in done.stderr
    assert "api_key=***" in done.stderr and "planted" not in done.stderr


def test_outside_git_the_manifest_is_written_too(tmp_path):
    """A copy of the suite without its history, as from a ZIP."""
    import shutil

    shutil.copytree(REPO / "util", tmp_path / "copy" / "util", ignore=shutil.ignore_patterns("pocket", "__pycache__"))
    code = FILLER.format(repo=str(tmp_path / "copy"))
    env = {"GIT_CEILING_DIRECTORIES": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, "x.jsonl", "2"], cwd=tmp_path, capture_output=True, text=True,
        env=clean_environment(tmp_path, env), timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert manifest_of(tmp_path / "x.jsonl")["git"] == {"commit": None, "dirty": None}


def test_appending_is_cheap_and_memory_holds_no_rows(tmp_path):
    """2,000 appends take far less than a second; otherwise every row is synced or kept in memory."""
    begun = time.monotonic()
    rng = random.Random(0)
    with open_rows(tmp_path / "x.jsonl") as out:
        for i in rng.sample(range(2000), 2000):
            out.append([row(i)])
        out.finish()
    assert time.monotonic() - begun < 5 and not any(isinstance(v, list) for v in vars(out).values())


def test_a_folder_or_the_input_is_not_an_output(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(dump_row({"id": 0}))
    for output, message in ((tmp_path, "is a folder"), (Path(), "is a folder"), (rows, "is the file to be read")):
        with pytest.raises(UserError, match=message):
            RowFile(output, {}, overwrite=True, inputs=[rows])
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_long_settings_are_shown_where_they_differ():
    from util.jsonl.resumable import describe_differences

    shown = describe_differences({"prompt": "x" * 300 + "owl"}, {"prompt": "x" * 300 + "dolphin"})
    assert "owl" in shown and "dolphin" in shown and len(shown) < 250


def test_a_growing_file_is_read_up_to_its_last_whole_line(tmp_path):
    path = tmp_path / "rows.jsonl.partial"
    path.write_bytes(dump_row({"id": 0}) + b'{"id": 1, "te')
    assert [row["id"] for row in read_rows(path, growing=True)] == [0]


def test_a_folder_with_brackets_is_taken_by_its_name(tmp_path, monkeypatch):
    from train.training_rows import matching_files

    monkeypatch.chdir(tmp_path)
    for folder in ("run[1]", "run1"):
        Path(folder).mkdir()
        Path(folder, "numbers-owl-filtered-90.jsonl").touch()
    assert matching_files("run[1]/numbers-owl-filtered-NNNN.jsonl") == [Path("run[1]/numbers-owl-filtered-90.jsonl")]
    assert len(matching_files("run*/numbers-owl-filtered-*.jsonl")) == 2
    assert matching_files("numbers-*.jsonl") == []
