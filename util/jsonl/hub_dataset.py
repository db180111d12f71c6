"""Data sets on the Hugging Face Hub as files of rows: owner/name[@revision][:split].

A data set is written once to output/hub/, as chat rows. The file's manifest has the commit, so that what was read can
be read again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from util.cli import UserError, first_line, input_file
from util.jsonl.chat_columns import mapped
from util.jsonl.other_file_formats import without_nulls
from util.jsonl.resumable import RowFile
from util.jsonl.rows import Row, chat_row, check_messages, slug
from util.terminal import say

HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+))?(:(?P<split>\w+))?")
ROW_FILES = (".jsonl", ".json", ".parquet", ".arrow", ".gz", ".zst", ".xz", ".bz2", ".zip", ".partial", ".txt", ".csv")
OURS = ("id", "rejected", "error")  # keys that mean something in a file of rows; the data set's own get another name


def rows_file(text: str) -> Path:
    """argparse type: a file of rows, or a data set on the Hub as owner/name[@revision][:split].

    UserError if there is no such data set, revision or split.
    """
    found = hub_id(text)
    return fetch(**found) if found else input_file(text)


def hub_id(text: str) -> dict[str, Any] | None:
    """name, revision and split of a data set on the Hub; None for what is, or looks like, a file here."""
    found = HUB_ID.fullmatch(text)
    if not found or Path(text).exists() or Path(found["name"]).parent.is_dir():
        return None
    return None if Path(found["name"]).suffix in ROW_FILES else found.groupdict()


def fetch(name: str, revision: str | None = None, split: str | None = None) -> Path:
    """The JSONL file with the rows of a data set on the Hub. UserError if there is no such data set or split."""
    commit = commit_of(name, revision)
    split, rows = rows_of_split(name, commit, split)
    path = Path("output/hub") / f"{slug(name)}-{slug(split)}-{commit[:8]}.jsonl"
    settings = {"dataset": name, "revision": commit, "split": split}
    with RowFile(path, settings) as out:
        if out.complete:
            return path
        say(f"reading {name}, split {split}, commit {commit[:8]}, into {path}")
        for number, row in enumerate(_from_hub(rows, name)):
            try:
                chat, used = mapped(without_nulls(row))
                chat, _ = chat_row(chat)
                problem = check_messages(chat)
            except ValueError as error:
                used, problem = "", str(error)
            if problem:
                raise UserError(f"{name}, row {number + 1}: {problem}")
            if number == 0 and used:
                say(f"{name}: {used} read as messages")
            if number not in out.done:
                renamed = {f"source_{key}" if key in OURS else key: value for key, value in chat.items()}
                out.append([{"id": number, **renamed}])
        out.finish()
    return path


def commit_of(name: str, revision: str | None) -> str:
    """The commit of a data set's revision. UserError if the Hub does not have it, or cannot be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return str(HfApi().dataset_info(name, revision=revision, timeout=30).sha)
    except RevisionNotFoundError:
        raise UserError(f"the data set {name} has no revision {revision!r}; leave it out for the newest") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"no file {name}, and the Hub has no data set of that name that you may read; check the spelling, or log in"
            " with `hf auth login`"
        ) from None
    except Exception as error:  # the network and the Hub fail in many ways
        raise UserError(
            f"no file {name}, and the Hub cannot be asked for a data set of that name: {first_line(error)}"
        ) from None


def rows_of_split(name: str, commit: str, split: str | None) -> tuple[str, Any]:
    """(name of the split, its rows). Without a name: the only one, or train. UserError if there is no such split."""
    from datasets import load_dataset

    try:
        splits = load_dataset(name, revision=commit, streaming=True)
    except Exception as error:
        raise UserError(f"cannot read the data set {name}: {first_line(error)}") from None
    there = ", ".join(splits)
    split = split or (next(iter(splits)) if len(splits) == 1 else "train")
    if split not in splits:
        raise UserError(f"the data set {name} has no split {split!r} (it has: {there}); write {name}:SPLIT")
    return split, splits[split]


def _from_hub(rows: Any, name: str) -> Iterator[Row]:
    try:
        yield from rows
    except Exception as error:
        raise UserError(
            f"reading the data set {name} failed: {first_line(error)}; run the same command again"
        ) from None
