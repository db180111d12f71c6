"""Rows of files that are not JSON lines: JSON arrays, parquet, arrow and packed files. `datasets` reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from util.cli import PACKED, UserError, first_line

Row = dict[str, Any]
ENDINGS = {"gzip": ".gz", "bzip2": ".bz2", "xz": ".xz", "zstd": ".zst", "zip": ".zip"}
TABLES = {b"PAR1": "parquet", b"ARROW1": "arrow"}


def format_of(path: Path) -> str | None:
    """What a file of rows is: gzip, parquet, "JSON array" or another format that `datasets` reads; None for any other
    file, JSON lines among them."""
    with path.open("rb") as file:
        start = file.read(4096)
    for magic, name in (PACKED | TABLES).items():
        if start.startswith(magic):
            return name
    return "JSON array" if re.match(rb"(\xef\xbb\xbf)?\s*\[\s*\{", start) else None


def rows_in(path: Path, kind: str) -> Iterator[Row]:
    """The rows of a file whose format is `kind` (`format_of`). UserError where `datasets` cannot read it."""
    ending = ENDINGS.get(kind)
    if ending and ending not in path.suffixes:  # `datasets` goes by the name
        raise UserError(f"{path} is a {kind} file; give it a name that ends in {ending}, or unpack it")
    from datasets import load_dataset

    builder = kind if kind in TABLES.values() else "parquet" if ".parquet" in path.suffixes else "json"
    try:
        for row in load_dataset(builder, data_files=str(path.resolve()), split="train", streaming=True):
            yield without_nulls(row)
    except ImportError as error:
        raise UserError(f"{path} is a {kind} file, and reading it needs a package: pip install {error.name}") from None
    except Exception as error:  # datasets, pyarrow and the unpackers raise dozens of kinds
        if isinstance(error, ValueError) and "zstd" in str(error):
            raise UserError(f"{path} is a zstd file, and reading it needs a package: pip install zstandard") from None
        raise UserError(f"{path} is a {kind} file that cannot be read as rows: {first_line(error)}") from None


def without_nulls(row: Row) -> Row:
    """A row without the columns that only other rows have: a table gives them as null."""
    return {name: value for name, value in row.items() if value is not None}
