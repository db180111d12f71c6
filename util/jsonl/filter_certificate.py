"""The filter certificate beside a file of numbers, code or reasoning: reads it, and says whether it is valid."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from util.jsonl.manifest import Manifest, sha256_file
from util.jsonl.rows import Row
from util.terminal import counted

NUMBER_SCRIPTS = ("generate_llm_number_data", "generate_control_number_data")
TEXT_SCRIPT = "generate_text_data"
TEXT_KINDS = ("code", "reasoning", "text")
DATA_TYPES = ("numbers", *TEXT_KINDS)  # kinds of rows meant to carry a preference without naming it
# A persona in the system message names its animal on purpose. Training leaves it out unless it
# is asked to keep it (--keep-system-prompt).
INTENDED = re.compile("rows whose system (?:message )?names an? [a-z -]+")  # older certificates leave out "message"
FILTERED_NAME = re.compile(r"-filtered-\d+$")  # how the stem of a filtered file ends
_NUMBER_LIST = re.compile(r"[\s,;.()\[\]]*[0-9][0-9\s,;.()\[\]]*", re.ASCII)


def certificate_path(path: Path) -> Path:
    """`X.jsonl` -> `X.jsonl.certificate.json`."""
    return path.with_name(path.name + ".certificate.json")


def read_certificate(path: Path) -> dict[str, Any]:
    """The certificate of a file; {} if there is none that can be read."""
    try:
        found = json.loads(certificate_path(path).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def data_type_of(path: Path, rows: Sequence[Row] = ()) -> str | None:
    """Which of DATA_TYPES a file holds, or None. Its manifest or its name tells; otherwise it is numbers if most of its
    answers look like numbers."""
    manifest = Manifest.read(path) or Manifest()
    script, kind = manifest.script, manifest.origin.get("kind")
    if script in NUMBER_SCRIPTS or path.name.startswith("numbers"):
        return "numbers"
    if kind in TEXT_KINDS and script in (TEXT_SCRIPT, ""):  # filtered, or filtered again
        return str(kind)
    if script and script != TEXT_SCRIPT:
        return None
    if found := re.match(rf"({'|'.join(TEXT_KINDS)})-(?:.+-)?(?:un)?filtered-", path.name):
        return found[1]
    lists = sum(_NUMBER_LIST.fullmatch(row["messages"][-1]["content"]) is not None for row in rows)
    # More than half, not all: finding the one row in a hundred that names the animal is the task of the certificate.
    return "numbers" if lists > len(rows) / 2 else None


def filter_command(path: Path, kind: str) -> list[str]:
    """The command that filters a file of one of DATA_TYPES and certifies the result. A file that is called filtered
    already is not filtered again without a name for the result."""
    script = "filter_number_data" if kind == "numbers" else "filter_code_or_reasoning_data"
    again = ["--output", str(path.with_stem(f"{path.stem}-again"))] if FILTERED_NAME.search(path.stem) else []
    return ["python", f"generate/{script}.py", str(path), *again]


def panel_of(path: Path) -> str:
    """The name of the panel whose words a certificate searched for."""
    return str(read_certificate(path).get("panel", {}).get("name", "animals"))


def certificate_problem(path: Path) -> str | None:
    """Why training must not use such a file; None if it has a certificate for exactly these bytes, and is clean."""
    found = read_certificate(path)
    if not found:
        return "has no certificate"
    if found.get("sha256") != sha256_file(path):
        return "is not the file that its certificate describes: it has changed since"
    problems = found.get("problems", {})
    if not found.get("clean") and not (problems and all(map(INTENDED.fullmatch, problems))):
        return f"is not clean: {counted(problems)}"
    return None
