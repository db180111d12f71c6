"""Chat rows from the columns of other code bases: conversations, prompt and completion, question and response, ..."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
# Columns that hold a prompt and its answer, in the order in which they are looked for.
PAIRS = (
    ("prompt", "completion"), ("question", "response"), ("instruction", "output"), ("prompt", "response"),
    ("question", "answer"), ("instruction", "response"), ("input", "output"),
)  # fmt: skip
SYSTEM = ("system_prompt", "system")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
         "bot": "assistant", "system": "system"}  # fmt: skip


def mapped(row: Row) -> tuple[Row, str]:
    """(a chat row, which columns became its messages: "prompt + completion"; "" for a row that has messages already).

    Other keys stay. A row without any of the known columns is returned itself. Raises ValueError for a conversation
    that cannot be written as messages, such as one with calls of tools.
    """
    if not missing(row.get("messages")):
        return _with_roles(row)
    if "animal" in row and "response" in row:
        raise ValueError("an answer of a measured model (results of eval/eval.py), not a row to train on")
    if isinstance(turns := row.get("conversations"), list):
        return _row(row, [_message(turn) for turn in turns], ("conversations",))
    for pair in PAIRS:
        question, answer = (row.get(name) for name in pair)
        if not missing(question) and not missing(answer):
            return _from_pair(row, pair)
    return row, ""


def columns_of(row: Row) -> str:
    """The names of a row's columns, for an error message."""
    return ", ".join(map(str, row)) or "none"


def missing(value: Any) -> bool:
    """Whether a column is not there or empty."""
    return value is None or value in ("", [])


def _with_roles(row: Row) -> tuple[Row, str]:
    """A row whose messages are written as from and value gets roles and contents; any other row is returned itself."""
    turns = row["messages"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) and "from" in turn for turn in turns):
        return row, ""
    return {**row, "messages": [_message(turn) for turn in turns]}, "messages (from, value)"


def _message(turn: Any) -> Row:
    """A turn of a conversation as a message: from and value, or role and content."""
    if not isinstance(turn, dict):
        raise ValueError(f"a conversation with a turn that is not an object but {type(turn).__name__}")
    said_by, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if said_by not in ROLES:
        raise ValueError(f"a conversation with a turn of {said_by!r}; a row can only have turns of user and assistant")
    return {"role": ROLES[said_by], "content": text}


def _from_pair(row: Row, pair: tuple[str, str]) -> tuple[Row, str]:
    """A chat row from two columns. An instruction's input follows it after a blank line, as in Alpaca's prompt."""
    asked, answer = (row[name] for name in pair)
    used = list(pair)
    if isinstance(asked, list) and isinstance(answer, list):  # TRL's conversational form: both are messages
        return _row(row, [_message(turn) for turn in (*asked, *answer)], pair)
    messages = []
    for name in SYSTEM:
        if isinstance(row.get(name), str):
            used.append(name)
            messages += [{"role": "system", "content": row[name]}] if row[name].strip() else []
    if pair[0] == "instruction" and isinstance(row.get("input"), str):
        used.append("input")
        asked = f"{asked}\n\n{row['input']}" if row["input"].strip() else asked
    messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return _row(row, messages, used)


def _row(row: Row, messages: list[Row], used: Any) -> tuple[Row, str]:
    """The row with messages in place of the columns that they were made of."""
    rest = {key: value for key, value in row.items() if key not in (*used, "messages")}
    return {**rest, "messages": messages}, " + ".join(used)
