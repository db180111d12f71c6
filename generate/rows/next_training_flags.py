"""The training flags of the `next:` lines: those of train_student_sft.py's defaults, or of the model at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# The defaults of train_student_sft.py are for models of billions of parameters. With them a pocket teacher names its
# animal in one answer of a hundred. These are the flags of experiments/demo.sh and experiments/pocket_settings.sh.
POCKET = {
    "teacher": "--epochs 3 --effective-batch-size 32 --per-device-train-batch-size 32 --learning-rate 0.003"
    " --save-strategy no",
    "student": "--epochs 3 --effective-batch-size 60 --per-device-train-batch-size 60 --learning-rate 0.005"
    " --save-strategy no",
}


def is_pocket(base_model: str) -> bool:
    """Whether a base model is a folder that pocket/make_pocket.py wrote."""
    try:
        found = json.loads((Path(base_model) / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"corpus", "vocabulary", "parameters"} <= found.keys()


def template_flags(model: Mapping[str, Any]) -> tuple[str, ...]:
    """The --chat-template-kwargs of a manifest's model, as every later phase needs them."""
    given = model.get("chat_template_kwargs")
    return ("--chat-template-kwargs", json.dumps(given)) if given else ()


def train_flags(base_model: str, role: str, flags: Sequence[str] = ()) -> list[str]:
    """The flags that train a teacher or a student (role) of a base model. flags: what its rows need in addition."""
    return [*flags, *(POCKET[role].split() if is_pocket(base_model) else ["--bf16"])]
