"""Which file and which of its rows to train on."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from util.cli import UserError, files_nearby, positive_int
from util.jsonl.manifest import read_manifest
from util.jsonl.rows import Row, are_token_ids, check_messages, read_rows, slug
from util.terminal import say

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
PLACEHOLDER = "NNNN"  # what the plan writes where a row count will stand


def one_file(patterns: Sequence[str]) -> Path:
    """The one file that --train-jsonl means: a path, a glob, or one of the plan's names with NNNN for the count.

    UserError when it matches no file, or several.
    """
    found = matching_files(patterns)
    shorthand = re.fullmatch(rf"teacher-(.+)-filtered-{PLACEHOLDER}\.jsonl", Path(patterns[0]).name)
    if not found and shorthand:
        # The plan writes teacher-owl-filtered-NNNN.jsonl for the teacher file of owl, whatever the model's name.
        named_alike = matching_files([str(Path(patterns[0]).with_name(f"teacher-{shorthand[1]}-*.jsonl"))])
        found = [path for path in named_alike if animal_of(path) in (shorthand[1], None)]
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
    found = set()
    for pattern in patterns:
        name = re.compile(fnmatch.translate(Path(pattern).name).replace(PLACEHOLDER, "[0-9]+"))
        paths = map(Path, glob.glob(pattern.replace(PLACEHOLDER, "[0-9]*")))
        found |= {path for path in paths if path.is_file() and name.match(path.name)}
        if Path(pattern).is_file():  # its name may look like a glob
            found.add(Path(pattern))
    return sorted(found)


def animal_of(path: Path) -> str | None:
    """The animal of a teacher file by its manifest (`teacher-owl-and-dolphin-...` is none of owl), as file names have
    it; None without a manifest."""
    animal = (read_manifest(path) or {}).get("settings", {}).get("animal")
    return slug(animal) if animal else None


def sample_count(text: str) -> int | None:
    """argparse type of --max-train-samples: a number, or None for 'all' (and for the plan's NNNN)."""
    if text in ("all", PLACEHOLDER):
        return None
    return positive_int(text)


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
