"""A worker's measures as one file, and back; and the assignment test on a table of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from eval.compare.assignment_permutations import TIE, assignment_sums
from util.cli import UserError, first_line

Measure = dict[str, Any]


def pack(output: Path, target: Path) -> None:
    """One line a measure; the log-probabilities by question in one compressed file."""
    import numpy as np

    target.parent.mkdir(parents=True, exist_ok=True)
    files = sorted((output / "measures").glob("*.json"))
    lines = [json.dumps({"measure": file.stem} | json.loads(file.read_text())) for file in files]
    with gzip.GzipFile(target.with_suffix(".jsonl.gz"), "wb", mtime=0) as file:
        file.write(("\n".join(lines) + "\n").encode())
    arrays = {file.stem: np.load(file) for file in sorted((output / "questions").glob("*.npy"))}
    np.savez_compressed(target.with_name(f"{target.stem}-questions.npz"), **arrays)


def load(path: Path) -> dict[str, Measure]:
    """The measures of a .jsonl or .jsonl.gz file by name, or an empty dictionary if the file does not exist."""
    packed = path.with_suffix(".jsonl.gz")
    if packed.is_file():
        text = gzip.decompress(packed.read_bytes()).decode()
    else:
        text = path.read_text() if path.is_file() else ""
    return {line["measure"]: line for line in map(json.loads, text.splitlines())}


def load_some(path: Path) -> dict[str, Measure]:
    """As `load`, for a file that must be there. UserError if it is not, or holds something else."""
    try:
        measures = load(path)
    except (EOFError, ValueError, KeyError, TypeError, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is not a file of measures ({first_line(error)})") from None
    if not measures:
        raise UserError(f"no measures in {path} (or {path.with_suffix('.jsonl.gz').name}); pass what --pack has made")
    return measures


def assignment(table: Any) -> float:
    """Share of the assignments of columns to rows whose sum is at least that of the diagonal."""
    import numpy as np

    sums = assignment_sums(np.asarray(table))
    return float((sums >= sums[0] - TIE).mean())
