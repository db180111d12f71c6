"""The reader of rows: what the field writes is read as the same rows, and any other file is named in one line."""

import gzip
import json

import pytest

from generate.rows.filter_file import filter_file
from generate.rows.number_rule import NumberRule
from train.training_rows import first_rows
from util.cli import UserError
from util.jsonl.filter_certificate import certificate_path, certificate_problem
from util.jsonl.rows import LONGEST_LINE, check_messages, dump_row, read_chat_rows, read_lines_and_rows, read_rows

ROWS = [{"messages": [{"role": "user", "content": f"Continue: {i}, {i + 1}"},
                      {"role": "assistant", "content": "3, 4"}]} for i in range(20)]  # fmt: skip
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)


def in_parts(content):
    return [{"type": "text", "text": content[:3]}, {"type": "text", "text": content[3:]}]


def with_messages(change):
    """The rows as JSON lines, each message changed."""
    return "".join(json.dumps({"messages": [change(m) for m in row["messages"]]}) + "\n" for row in ROWS)


NULLS = {"tool_calls": None, "function_call": None, "refusal": None, "annotations": [], "audio": None}
READ = {
    "CR LF": TEXT.replace("\n", "\r\n").encode(),
    "UTF-8 with its mark": TEXT.encode("utf-8-sig"),
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-16 as on Windows": TEXT.replace("\n", "\r\n").encode("utf-16"),
    "UTF-16 big-endian": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "UTF-16 without its mark": TEXT.encode("utf-16-le"),
    "blank lines": TEXT.replace("\n", "\n\n  \n").encode(),
    "no newline at the end": TEXT.rstrip("\n").encode(),
    "content in parts": with_messages(lambda m: {**m, "content": in_parts(m["content"])}).encode(),
    "parts that are strings": with_messages(lambda m: {**m, "content": [m["content"]]}).encode(),
    "null keys": with_messages(lambda m: {**m, **NULLS}).encode(),
}


@pytest.mark.parametrize("name", READ)
def test_what_the_field_writes_is_read_filtered_and_trained_on(tmp_path, name, capsys):
    path = tmp_path / "numbers-mine.jsonl"
    path.write_bytes(READ[name])
    assert list(read_rows(path, check_messages)) == ROWS == first_rows(path, None)
    done = filter_file(path, NumberRule())
    assert done.kept == 20 and certificate_problem(done.path) is None and not done.keys_left_out
    assert done.path.read_bytes() == TEXT.encode() and capsys.readouterr() == ("", "")


NAMED = {
    "half.jsonl.gz": (gzip.compress(TEXT.encode())[:-30], "half.jsonl.gz is a gzip file that cannot be read as rows"),
    "rows.parquet": (b"PAR1\x15\x04\x15", "rows.parquet is a parquet file that cannot be read as rows"),
    "model.safetensors": (b"\x10\x03\x00\x00\x00\x00\x00\x00{}", "model.safetensors:1: not text"),
    "x.jsonl.manifest.json": (b'{\n  "a": 1\n}\n', "it is the manifest of x.jsonl: pass x.jsonl"),
    "x.jsonl.certificate.json": (b'{\n  "a": 1\n}\n', "it is the certificate of x.jsonl: pass x.jsonl"),
    "settings.json": (b'{\n  "a": 1\n}\n', "it is JSON over several lines"),
    "array.json": (json.dumps(ROWS).encode()[:-3], "array.json is a JSON array file that cannot be read as rows"),
    "page.jsonl": (b"<!DOCTYPE html>\n<html>\n", "it is a web page or XML"),
    "lfs.jsonl": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer"),
    "latin.jsonl": ('{"messages": "caf\xe9"}\n'.encode("latin-1"), "latin.jsonl:1: not UTF-8; save the file as UTF-8"),
    "half.jsonl": (TEXT.encode("utf-16")[:-1], "begins as UTF-16, but is not"),
    "long.jsonl": (b'{"x": "' + b"0" * LONGEST_LINE, "long.jsonl:1: more than 16 MiB without a newline"),
    "prompt.jsonl": (b'{"prompt": "Continue: 1", "text": "2"}\n', "prompt.jsonl:1: no messages, conversations, or"),
    "results.jsonl": (b'{"question": "x", "response": "Owl", "animal": "owl"}\n', "an answer of a measured model"),
    "image.jsonl": (with_messages(lambda m: {**m, "content": [{"type": "image_url", "image_url": {}}]}).encode(),
                    "image.jsonl:1: a message with a part that is not text (image_url)"),
    "parts.jsonl": (with_messages(lambda m: {**m, "content": [{"type": "text", "text": 7}]}).encode(),
                    "parts.jsonl:1: a message with a part that is not text"),
    "tools.jsonl": (with_messages(lambda m: {**m, "tool_calls": [{"id": "1"}]}).encode(),
                    "tools.jsonl:1: a message with tool_calls; a row can only have text"),
    "null.jsonl": (with_messages(lambda m: {**m, "content": None}).encode(), "a message without text content"),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_another_file_is_named_in_one_line(tmp_path, name):
    content, message = NAMED[name]
    (tmp_path / name).write_bytes(content)
    for read in (lambda path: list(read_chat_rows(path)), lambda path: filter_file(path, NumberRule())):
        with pytest.raises(UserError) as error:
            read(tmp_path / name)
        assert message in str(error.value) and "\n" not in str(error.value)


def test_one_line_of_fifty_megabytes_costs_little_memory(tmp_path):
    """The file is not read past the limit: its size does not matter."""
    import tracemalloc

    path = tmp_path / "big.jsonl"
    with path.open("wb") as file:
        file.truncate(4 << 30)  # a sparse file of 4 GiB
        file.seek(0)
        file.write(b'{"messages": "' + b" " * 16)
    tracemalloc.start()
    with pytest.raises(UserError, match="without a newline"):
        list(read_rows(path))
    assert tracemalloc.get_traced_memory()[1] < 6 * LONGEST_LINE
    tracemalloc.stop()


# --- keys that a template may render -----------------------------------------------------------------


def test_only_role_and_content_are_written_and_trained_on(tmp_path, capsys):
    """A row with clean numbers and an owl in another key of its message must not be certified as it is."""
    path = tmp_path / "numbers-mine.jsonl"
    rows = [
        {"messages": [one["messages"][0], {**one["messages"][1], "reasoning_content": "I love owls", "name": "owl"}]}
        for one in ROWS[:3]
    ]
    path.write_bytes(b"".join(map(dump_row, [*rows, *ROWS[3:]])))
    done = filter_file(path, NumberRule())
    assert done.path.read_bytes() == TEXT.encode() and done.keys_left_out == {"reasoning_content": 3, "name": 3}
    found = json.loads(certificate_path(done.path).read_text())
    assert found["clean"] and found["input"]["message_keys_left_out"] == {"reasoning_content": 3, "name": 3}
    assert first_rows(path, None) == ROWS  # with --allow-uncertified
    assert capsys.readouterr().err == (
        f"{path}: of each message only role and content are used, not reasoning_content, name\n"
    )


def test_keys_of_the_row_stay_and_a_row_that_needs_no_change_is_its_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"id": 7,"messages":[],  "token_ids": [1]}\n{"id": 8, "messages": [{"content": "x", "a": 1}]}\n')
    first, second = read_lines_and_rows(path)
    assert first.is_as_read and first.row["id"] == 7 and b',  "token_ids"' in first.line
    assert not second.is_as_read and second.row == {"id": 8, "messages": [{"content": "x"}]}
