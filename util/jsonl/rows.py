"""Read, check and write JSONL rows; the rules that every output file of the suite follows.

A file that exists is whole. While it grows it is `.partial`, and the same command resumes it.

Files beside `X.jsonl`:
    X.jsonl.partial        rows so far, in the order they arrived; the truth about progress
    X.jsonl.manifest.json  settings, command, versions, counts; the truth about configuration
    X.jsonl.rejects        rows (or unreadable lines) that were left out, each with its reason
    X.jsonl.bak            what `--overwrite` replaced
Rows have an integer `id`, the same in every run with the same settings. So a resumed run asks for exactly the rows that
are missing, and the finished file is in id order, whatever order the answers came in.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from util.cli import UserError, files_nearby

Row = dict[str, Any]
SLUG_LENGTH = 80  # two slugs and the longest suffix of a temporary file stay under the 255 bytes of a file name


# --- one row, one line -------------------------------------------------------------------------------


def dump_row(row: Mapping[str, Any]) -> bytes:
    """One row as one line. ASCII only, so U+2028 or a lone surrogate in an answer cannot confuse a reader."""
    return json.dumps(row, ensure_ascii=True, allow_nan=False, separators=(", ", ": ")).encode() + b"\n"


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # 1e999
        raise ValueError(f"{text} is too large a number")
    return value


# NaN and infinity could be read but never written again
_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def parse_row(line: bytes) -> Row:
    """One line as a row. Raises ValueError saying what is wrong with it."""
    try:
        row = _DECODER.decode(line.decode().removeprefix("\ufeff"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"not a JSON object but {type(row).__name__}")
    return row


def read_lines(path: Path, growing: bool = False) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its newline) for every line that is not blank. In a growing file, a last line
    without a newline is left out.

    Splits on the newline byte alone: `str.splitlines` would also split inside an answer that holds U+2028.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if (stripped := line.strip()) and (line.endswith(b"\n") or not growing):
                yield number, stripped


def read_rows(
    path: Path, check: Callable[[Row], str | None] = lambda row: None, growing: bool = False
) -> Iterator[Row]:
    """Every row of a JSONL file. `check` returns what is wrong with a row, or None.

    growing: the file is still being written, so its last line may not be whole yet.
    Raises UserError naming the file and line of the first bad row.
    """
    return (row for _, row in read_lines_and_rows(path, check, growing))


def read_lines_and_rows(
    path: Path, check: Callable[[Row], str | None] = lambda row: None, growing: bool = False
) -> Iterator[tuple[bytes, Row]]:
    """(line without its newline, row) for every row, as `read_rows` reads them."""
    if not path.is_file():
        raise UserError(f"no file {path}{files_nearby(path)}")
    empty = True
    for number, line in read_lines(path, growing):
        empty = False
        try:
            row = parse_row(line)
            problem = check(row)
        except ValueError as error:
            problem = str(error)
        if problem:
            advice = "is it the right file?" if number == 1 else "fix or delete that line"
            raise UserError(f"{path}:{number}: {problem}; {advice}")
        yield line, row
    if empty:
        raise UserError(f"{path} is empty: it holds no row")


def check_messages(row: Row) -> str | None:
    """What is wrong with a chat row `{"messages": [..., user, assistant]}`, or None."""
    messages = row.get("messages")
    shape = 'a row is {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}'
    if not isinstance(messages, list) or not messages:
        return f"no messages: {shape}"
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return f"a message without text content: {shape}"
        if not isinstance(message.get("role"), str):
            return f"a message without a role: {shape}"
    if [message["role"] for message in messages][-2:] != ["user", "assistant"]:
        return f"the last two messages are not user, assistant: {shape}"
    return None


def check_numbered(row: Row) -> str | None:
    """What is wrong with a chat row that must have an id, or None."""
    is_known = type(row.get("id")) is int
    return check_messages(row) or (None if is_known else "no id: a whole number that identifies the row")


def are_token_ids(value: Any) -> bool:
    """Whether a value is a list of token ids, or None: not every server returns them."""
    return value is None or (isinstance(value, list) and all(type(token) is int and token >= 0 for token in value))


def row_problem(row: Row, seen: Collection[int]) -> str | None:
    """What is wrong with a row of a growing file, whose ids so far are `seen`, or None."""
    if type(row.get("id")) is not int or row["id"] < 0:
        return "no row id"
    if not isinstance(row.get("rejected", ""), str):
        return "a reason that is not text"
    return "repeated id" if row["id"] in seen else None


# --- names -------------------------------------------------------------------------------------------


def slug(name: str) -> str:
    """A model or animal name as a part of a file name: `Qwen/Qwen2.5-7B-Instruct` ->
    `qwen-qwen2.5-7b-instruct`.

    Only [a-z0-9._-], no leading dot, at most 80 characters: it cannot leave its folder. Two names with the
    same slug cannot mix their rows: the manifest has the true name, and a different one is refused.
    """
    text = re.sub(r"[^a-z0-9._-]+", "-", name.lower())
    text = re.sub(r"\.{2,}", ".", text).strip("-._")[:SLUG_LENGTH]
    return text or "unnamed"
