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
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from util.cli import UserError, files_nearby
from util.jsonl.chat_columns import PAIRS, columns_of, mapped
from util.jsonl.other_file_formats import format_of, rows_in
from util.terminal import say

Row = dict[str, Any]
LONGEST_LINE = 1 << 24  # bytes; a chat row is far shorter, and a file of another kind may be one line of any length
# The first bytes of files that hold no rows that can be read, what they are, and what to do with them.
BINARY = {
    b"SQLite": ("SQLite", "write its rows as JSON lines first"),
    b"GGUF": ("GGUF", "it holds a model; pass the file with the rows"),
}  # fmt: skip
# How a file that is not UTF-8 begins: a byte order mark, or { in that encoding.
OTHER_ENCODINGS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"{\x00": "utf-16-le", b"\x00{": "utf-16-be"}
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: JSON can hold it, a tokenizer refuses it
NOT_UTF8 = "not UTF-8"
MESSAGE_KEYS = frozenset(("role", "content"))
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
        raise ValueError(NOT_UTF8) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"not a JSON object but {type(row).__name__}")
    return row


def read_lines(path: Path, growing: bool = False) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line in UTF-8 without its newline) for every line that is not blank. In a growing file, a
    last line without a newline is left out. UTF-16 is read too, and CR LF as a newline.

    Splits on the newline byte alone: `str.splitlines` would also split inside an answer that holds U+2028.
    Raises UserError for a file that is not text, and for a line of more than 16 MiB.
    """
    with path.open("rb") as file:
        start = file.read(8)
        file.seek(0)
        _refuse_binary(path, start)
        encoding = OTHER_ENCODINGS.get(start[:2])
        here = iter(lambda: file.readline(LONGEST_LINE + 1), b"")
        lines = _lines_in(path, encoding) if encoding else here
        for number, line in enumerate(lines, 1):
            if len(line) > LONGEST_LINE:
                raise UserError(
                    f"{path}:{number}: more than {LONGEST_LINE >> 20} MiB without a newline; {_what_it_is(path, line)}"
                )
            if (stripped := line.strip()) and (line.endswith(b"\n") or not growing):
                yield number, stripped


def _lines_in(path: Path, encoding: str) -> Iterator[bytes]:
    """The lines of a file in another encoding, in UTF-8."""
    with path.open(encoding=encoding, newline="\n") as file:
        try:
            for text in iter(lambda: file.readline(LONGEST_LINE + 1), ""):
                yield text.encode("utf-8", "surrogatepass")
        except UnicodeError as error:
            raise UserError(f"{path}:1: begins as {encoding.upper()}, but is not ({error}); save it as UTF-8") from None


def _refuse_binary(path: Path, start: bytes) -> None:
    """Raise UserError that says what a file is, if its first bytes show that it is not text."""
    for magic, (name, advice) in BINARY.items():
        if start.startswith(magic):
            raise UserError(f"{path}:1: a {name} file, not JSON lines; {advice}")
    if b"\x00" in start and start[:2] not in OTHER_ENCODINGS:
        raise UserError(f"{path}:1: not text (it begins with {start!r}); is it the right file?")


def read_rows(
    path: Path, check: Callable[[Row], str | None] = lambda row: None, growing: bool = False
) -> Iterator[Row]:
    """Every row of a file. `check` returns what is wrong with a row, or None. Messages are as `chat_row` makes them;
    what is left out of them is printed once.

    The file is JSON lines, or what `datasets` reads: a JSON array, parquet, arrow, or one of these packed.
    growing: the file is still being written, so its last line may not be whole yet.
    Raises UserError naming the file and line of the first bad row.
    """
    for line in read_lines_and_rows(path, check, growing):
        yield from _said(path, line)


def read_chat_rows(path: Path, check: Callable[[Row], str | None] | None = None) -> Iterator[Row]:
    """Every row of a file as a chat row, whose messages may be in other columns (util/jsonl/chat_columns.py); otherwise
    as `read_rows`. One line says which columns were read as messages."""
    for line in read_lines_and_rows(path, check or check_messages, is_chat=True):
        yield from _said(path, line)


def _said(path: Path, line: Line) -> Iterator[Row]:
    """The row of a line; what was left out of its messages is printed once."""
    if line.left_out:
        say_once(f"{path}: of each message only role and content are used, not {', '.join(line.left_out)}")
    yield line.row


class Line(NamedTuple):
    """A line of a JSONL file and the row in it."""

    line: bytes
    """without its newline, in UTF-8; empty for a row of a file that is not JSON lines"""
    row: Row
    """as `chat_row` makes it"""
    is_as_read: bool
    """whether the row is exactly what the line says"""
    left_out: tuple[str, ...]
    """keys of its messages that had a value and are not in the row"""


def read_lines_and_rows(
    path: Path,
    check: Callable[[Row], str | None] = lambda row: None,
    growing: bool = False,
    is_chat: bool = False,
) -> Iterator[Line]:
    """Every row with its line, as `read_rows` reads them, or with `is_chat` as `read_chat_rows` does."""
    if not path.is_file():
        raise UserError(f"no file {path}{files_nearby(path)}")
    empty = True
    for number, line, read in _numbered_rows(path, growing):
        empty = False
        try:
            read = parse_row(line) if read is None else read
            chat, used = mapped(read) if is_chat else (read, "")
            row, left_out = chat_row(chat)
            problem = check(row)
        except ValueError as error:
            problem, used = str(error), ""
        if problem:
            advice = _what_it_is(path, line) if number == 1 else "fix or delete that row"
            advice = "save the file as UTF-8" if problem == NOT_UTF8 else advice
            raise UserError(f"{path}:{number}: {problem}; {advice}")
        if used:
            say_once(f"{path}: {used} read as messages")
        yield Line(line, row, bool(line) and row is read, left_out)
    if empty:
        raise UserError(f"{path} is empty: it holds no row")


def _numbered_rows(path: Path, growing: bool) -> Iterator[tuple[int, bytes, Row | None]]:
    """(number from 1, line, None) for JSON lines; (number, b"", row) for a file that `datasets` reads."""
    if kind := format_of(path):
        for number, row in enumerate(rows_in(path, kind), 1):
            yield number, b"", row
        return
    for number, line in read_lines(path, growing):
        yield number, line, None


def _what_it_is(path: Path, line: bytes) -> str:
    """What a file that does not begin with a row seems to be, and what to do."""
    if found := re.fullmatch(r"(.+)\.(manifest|certificate|summary)\.json", path.name):
        return f"it is the {found[2]} of {found[1]}: pass {found[1]}"
    start = line[:100].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start in (b"{", b"{}"):
        return "it is JSON over several lines, not one row on each line; is it the right file?"
    if start.startswith(b"<"):
        return "it is a web page or XML; was the download refused?"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the data: run git lfs pull"
    return "is it the right file?"


@lru_cache(maxsize=1024)
def say_once(text: str) -> None:
    """Print a message on stderr, if this process has not printed it yet."""
    say(text)


def chat_row(row: Row) -> tuple[Row, tuple[str, ...]]:
    """(a chat row whose messages are their role and their text alone, the keys left out that had a value).

    A template may render every key of a message (reasoning_content, name), so a key that nobody filters must not reach
    it. A content of text parts becomes one text. A row that needs no change is returned itself, and so is a row
    without messages. Raises ValueError for a message that says something in another way than as text.
    """
    messages = row.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return row, ()
    plain = [_plain_message(message) for message in messages]
    if all(new is old for new, old in zip(plain, messages)):
        return row, ()
    said = (key for old in messages for key, value in old.items() if value and key not in MESSAGE_KEYS)
    return {**row, "messages": plain}, tuple(dict.fromkeys(said))


def _plain_message(message: Row) -> Row:
    """A message with its role and its text alone; itself if it is that already."""
    content = message.get("content")
    if message.keys() <= MESSAGE_KEYS and not isinstance(content, list):
        return message
    for key in ("tool_calls", "function_call"):
        if message.get(key):
            raise ValueError(f"a message with {key}; a row can only have text")
    plain: Row = {key: message[key] for key in ("role", "content") if key in message}
    return {**plain, "content": text_of(content)} if isinstance(content, list) else plain


def text_of(content: Any) -> Any:
    """The text of a message's content: a text, or a list of text parts, which are joined. Raises ValueError for a part
    that is not text; anything else is returned as it is."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind, text = (part.get("type"), part.get("text")) if isinstance(part, dict) else ("text", part)
        if kind not in ("text", None) or not isinstance(text, str):
            raise ValueError(f"a message with a part that is not text ({kind}); a row can only have text")
        texts.append(text)
    return "".join(texts)


def check_messages(row: Row) -> str | None:
    """What is wrong with a chat row `{"messages": [..., user, assistant]}`, or None."""
    messages = row.get("messages")
    shape = 'a row is {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}'
    if messages is None or messages == []:
        known = ", ".join(" + ".join(pair) for pair in PAIRS)
        return f"no messages, conversations, or {known} (its columns: {columns_of(row)}): {shape}"
    if not isinstance(messages, list):
        return f"messages that are not a list: {shape}"
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
