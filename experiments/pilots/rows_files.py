"""Rows of the pilots as files: DIR/rows/FILE.CHANNEL.json, with counts in DIR/measures/rows-FILE.CHANNEL.json."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.pilots.word_filters import Forbidden, why_dropped
from util.cli import UserError, first_line

LONGEST = {"text": 64, "code": 64, "digits": 48, "words": 72, "questions": 24, "open": 64, "everyday": 64}
Row = dict[str, Any]  # prompt, ids (the answer's tokens), text


def seed_of(what: str, job: dict[str, Any]) -> int:
    return int(hashlib.sha256(f"{what}{job.get('seed', 1)}".encode()).hexdigest()[:8], 16)


def write(path: Path, content: Any) -> None:
    """Whole or not at all: another worker may wait for the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_text(json.dumps(content))
    path.with_suffix(".part").rename(path)


def read_rows(output: Path, name: str) -> list[Row]:
    rows: list[Row] = json.loads((output / f"rows/{name}.json").read_text())
    return rows


def packed_rows(paths: Sequence[Path]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(file without .json, its prompts and answers) from packed rows (.jsonl.gz, .jsonl.xz). UserError for others."""
    for path in paths:
        try:
            unpack = lzma.open if path.suffix == ".xz" else gzip.open
            with unpack(path, "rt", encoding="utf-8") as file:
                for line in map(json.loads, file):
                    yield line["file"].removesuffix(".json"), [(prompt, answer) for prompt, answer in line["rows"]]
        except (
            gzip.BadGzipFile,
            zlib.error,
            lzma.LZMAError,
            EOFError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ) as error:
            raise UserError(f"{path} is not a file of packed rows ({first_line(error)})") from None


def store_rows(output: Path, name: str, rows: list[Row], forbidden: Forbidden | None, **about: Any) -> dict[str, Any]:
    """Keep the clean rows (all, if nothing is forbidden) and what is known of them; returns the latter."""
    channel = name.rpartition(".")[2]
    reasons = [why_dropped(channel, row["text"], forbidden) if forbidden else "" for row in rows]
    kept = [row for row, reason in zip(rows, reasons) if not reason and len(row["ids"]) > 1]
    text = "\n".join(row["text"] for row in kept)
    counts = about | {
        "asked": len(rows),
        "rows": len(kept),
        "clean": round(len(kept) / len(rows), 4),
        "tokens_a_row": round(sum(len(row["ids"]) for row in kept) / max(len(kept), 1), 2),
        "dropped": dict(Counter(reason for reason in reasons if reason).most_common(12)),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    write(output / f"measures/rows-{name}.json", counts)
    write(output / f"rows/{name}.json", kept)
    return counts
