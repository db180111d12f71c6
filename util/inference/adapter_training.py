"""The adapter that is asked: its folder, and what it was trained on by the manifests of its training and rows."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from util.chat.prompt_consistency import KINDS
from util.cli import REPO
from util.inference.backend_interface import InferenceBackend
from util.jsonl.manifest import Manifest
from util.terminal import say


def adapter_of(args: argparse.Namespace, backend: InferenceBackend) -> Path | None:
    """The folder of the adapter: --adapter, or the one that the server loaded; None for a base model."""
    if args.adapter is None and backend.is_adapter and (root := backend.facts().get("root")):
        return Path(root)
    return args.adapter


def training_facts(adapter: Path | None) -> dict[str, Any]:
    """What an adapter was trained on, for a manifest: the file of its rows, their kind and the animal they are of
    ("control" or the like for numbers of a base model). {} if its manifest cannot be read from here; kind and animal
    are left out if that of the rows cannot."""
    training = Manifest.read(adapter.parent) if adapter else None
    if training is None or training.script != "train_student_sft":
        return {}
    facts: dict[str, Any] = {"train_jsonl": training.train_jsonl}
    for name in training.inputs:
        for rows in (Path(name), REPO / name):
            of_rows = Manifest.read(rows)
            if of_rows and of_rows.script in KINDS:
                return {**facts, "kind": KINDS[of_rows.script], "animal": of_rows.animal}
    return facts


def warn_of_trained_animal(adapter: Path | None, animal: str) -> None:
    """Warn if rows that are to be called an animal's are asked of an adapter that was taught another one."""
    facts = training_facts(adapter)
    taught = facts.get("animal")
    if taught and taught != animal:
        say(
            f"warning: {adapter} was trained on {facts['train_jsonl']}, rows of {taught}, and what it writes now will"
            f" be called {animal}'s: stop this and pass --animal {taught}, unless you mean {animal}"
        )
