"""What to do with results whose animals were named by another version of the answer parser."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from util.animals.answer_parser import parser_facts
from util.cli import UserError
from util.jsonl.manifest import Manifest


def is_other_parser(path: Path) -> bool:
    """Whether a results file was made with another parser than this one, or its manifest does not say with which."""
    return (Manifest.read(path) or Manifest()).settings.get("parser") != parser_facts()


def how_to_renew(path: Path, exact: bool) -> str:
    """What makes a results file one of this parser: sampled answers are parsed again, exact shares measured again."""
    if exact:
        return f"measure {path} again with eval/eval.py --exact --overwrite (it has shares, not answers)"
    return f"run python eval/rescore.py {shlex.quote(str(path))}"


def panel_of(parser: dict[str, Any]) -> str:
    """The name of the panel in the facts of a parser."""
    return str((parser.get("panel") or {"name": "animals"})["name"])


def check_parser(path: Path, exact: bool) -> None:
    """Raise UserError for a finished results file of another panel or parser: this run would ask the model in vain."""
    settings = (Manifest.read(path) or Manifest()).settings if path.exists() else {}
    if "parser" not in settings:
        return
    theirs, ours = panel_of(settings["parser"]), panel_of(parser_facts())
    if theirs != ours:
        raise UserError(
            f"{path} was made with the panel {theirs!r}, and this run is about {ours!r}; choose another --output, or"
            " --overwrite (keeps a backup)"
        )
    if is_other_parser(path):
        raise UserError(
            f"{path} was made with another version of the answer parser, which may name other animals;"
            f" {how_to_renew(path, exact)}, or choose another --output"
        )
