"""The checkpoint folders of a training: how they are written and read, and which of them are whole.

checkpoint-N/
    adapter_model.safetensors, adapter_config.json    the adapter after update N, as PEFT writes it
    optimizer.safetensors                             Adam's two moments of every weight of the adapter
    trainer_state.json                                update, epoch and log, under the names that TRL uses

Nothing in it is a pickle. TRL's own checkpoints (--trainer trl, and all before 2026-11-30) have optimizer.pt instead.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from train.fused_lora import WEIGHTS, Adapters
from util.cli import UserError
from util.jsonl.manifest import write_json

CHECKPOINT = re.compile(r"checkpoint-([0-9]+)")  # as TRL names it; checkpoint-840-old is somebody's own
STATE, MOMENTS = "trainer_state.json", "optimizer.safetensors"
MOMENT_NAMES = ("exp_avg", "exp_avg_sq")  # Adam's moments, as torch names them


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
    """Whether all of a checkpoint can be read. A full disk or a lost machine leaves files that are cut short."""
    from safetensors import SafetensorError, safe_open

    files, pickles = [checkpoint / WEIGHTS, checkpoint / MOMENTS], []
    if is_from_trl(checkpoint):
        files = sorted(checkpoint.glob("*model*.safetensors")) or files  # of an adapter, or of a whole model
        pickles = [checkpoint / "optimizer.pt", checkpoint / "scheduler.pt"]
    try:
        json.loads((checkpoint / STATE).read_text("utf-8"))
        for path in files:
            with safe_open(path, "numpy"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return all(map(zipfile.is_zipfile, pickles))


def is_from_trl(checkpoint: Path) -> bool:
    """Whether TRL wrote a checkpoint."""
    return (checkpoint / "optimizer.pt").exists()


def check_writer(checkpoint: Path, trainer: str) -> None:
    """UserError if the other trainer wrote a checkpoint: each reads its own."""
    if is_from_trl(checkpoint) == (trainer == "trl"):
        return
    if trainer == "trl":
        raise UserError(f"{checkpoint} is of the suite's own loop: leave out --trainer trl, or start with --overwrite")
    raise UserError(
        f"{checkpoint} was written by TRL (or by an earlier version of the suite): --trainer trl resumes it,"
        " --overwrite starts again"
    )


def save_checkpoint(folder: Path, state: dict[str, Any], adapters: Adapters, student: int, moments: Any) -> Path:
    """Write the checkpoint of a student after update state["global_step"], whole or not at all.

    moments: the optimizer's, by their names in `MOMENT_NAMES`.
    """
    from safetensors.torch import save_file

    target = folder / f"checkpoint-{state['global_step']}"
    temporary = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    adapters.save(student, temporary)
    named = {f"{key}.{name}": t for key in MOMENT_NAMES for name, t in adapters.tensors(moments[key]).items()}
    save_file(named, temporary / MOMENTS, {"format": "pt"})
    write_json(temporary / STATE, state)
    shutil.rmtree(target, ignore_errors=True)  # one that was cut short
    temporary.rename(target)
    return target


def load_checkpoint(checkpoint: Path, adapters: Adapters, student: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Put a checkpoint's adapter into its student's place; returns (its state, Adam's moments by name)."""
    import torch
    from safetensors.torch import load_file

    tensors, row = load_file(checkpoint / MOMENTS), adapters.values.data[student]
    adapters.load(row, load_file(checkpoint / WEIGHTS))
    moments = {key: torch.zeros_like(row) for key in MOMENT_NAMES}
    for key, moment in moments.items():
        adapters.load(moment, {name.removeprefix(f"{key}."): tensor for name, tensor in tensors.items()})
    return json.loads((checkpoint / STATE).read_text("utf-8")), moments
