"""Which file and which of its rows to train on."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from util.cli import UserError, files_nearby, say
from util.rows import Row, are_token_ids, check_messages, read_rows

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
PLACEHOLDER = "NNNN"  # what the plan writes where a row count will stand


def one_file(patterns: Sequence[str]) -> Path:
    """The one file that --train-jsonl means: a path, a glob, or one of the plan's names with NNNN for the count.

    UserError when it matches no file, or several.
    """
    found = matching_files(patterns)
    shorthand = re.fullmatch(rf"(teacher-.+)-filtered-{PLACEHOLDER}\.jsonl", Path(patterns[0]).name)
    if not found and shorthand:
        # The plan writes teacher-owl-filtered-NNNN.jsonl for the teacher file of owl, whatever the model's name.
        found = matching_files([str(Path(patterns[0]).with_name(f"{shorthand[1]}-*.jsonl"))])
        if len(found) == 1:
            say(f"no file {patterns[0]}: taking {found[0]}")
    if not found:
        raise UserError(f"--train-jsonl {' '.join(patterns)} matches no file{files_nearby(Path(patterns[0]))}")
    if len(found) > 1:
        listed = "\n  ".join(map(str, found))
        raise UserError(f"--train-jsonl {' '.join(patterns)} matches {len(found)} files; name one of them:\n  {listed}")
    return found[0]


def matching_files(patterns: Sequence[str]) -> list[Path]:
    """Files that match any of the globs, NNNN standing for any count."""
    names = {name for p in patterns for name in glob.glob(p.replace(PLACEHOLDER, "[0-9]*"))}
    return sorted(Path(name) for name in names if Path(name).is_file())


def sample_count(text: str) -> int | None:
    """argparse type of --max-train-samples: a number, or None for 'all' (and for the plan's NNNN)."""
    if text in ("all", PLACEHOLDER):
        return None
    count = int(text)
    if count < 1:
        raise ValueError
    return count


def read_chat_rows(path: Path, limit: int | None) -> list[Row]:
    """The first `limit` chat rows of a file, or all of them."""
    return list(islice(read_rows(path, check_trainable), limit))


def check_trainable(row: Row) -> str | None:
    """What is wrong with a row for training, or None."""
    if problem := check_messages(row):
        return problem
    if any(LONE_SURROGATE.search(message["content"]) for message in row["messages"]):
        return "a text with half a character in it (a lone surrogate), which no tokenizer takes"
    for name in ("token_ids", "loss_mask"):
        if not are_token_ids(row.get(name)):
            return f"{name} that are no list of whole numbers"
    return None
