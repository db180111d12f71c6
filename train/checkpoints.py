"""The checkpoint folders of a training, and which of them are whole."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

CHECKPOINT = re.compile(r"checkpoint-([0-9]+)")  # as TRL names it; checkpoint-840-old is somebody's own


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoint folders of a training, in the order of their updates."""
    found = [path for path in folder.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=update_of)


def update_of(checkpoint: Path) -> int:
    """After how many updates a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was saved completely, or None."""
    return next((path for path in reversed(checkpoints_in(folder)) if is_whole(path)), None)


def is_whole(checkpoint: Path) -> bool:
    """Whether all of a checkpoint can be read. A kill or a full disk leaves files that are cut short."""
    from safetensors import SafetensorError, safe_open

    try:
        json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
        with safe_open(checkpoint / "adapter_model.safetensors", "numpy"):
            pass
    except (OSError, ValueError, SafetensorError):
        return False
    return all(zipfile.is_zipfile(checkpoint / name) for name in ("optimizer.pt", "scheduler.pt"))
