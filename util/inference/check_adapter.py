"""Checks a LoRA adapter before a model or a server loads it, without torch: its config, and weights that are whole and
finite numbers.

A server that gets an adapter with one NaN answers every prompt with the same token, and reports nothing.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from util.cli import UserError
from util.inference.adapter_config import CONFIG, SUITE_RANK, read_adapter_config, vllm_rank

WEIGHTS = "adapter_model.safetensors"
# Type in the file: (the same bits as whole numbers, the bits of the exponent). All ones there: NaN or infinity.
FLOATS = {
    "F64": ("<u8", 0x7FF << 52), "F32": ("<u4", 0xFF << 23), "F16": ("<u2", 0x1F << 10), "BF16": ("<u2", 0xFF << 7),
}  # fmt: skip
# Names of an adapter's weights: of a layer, and those that multiply the hidden states, in Llama's blocks and its kin's.
LAYER = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.")
READS_HIDDEN = re.compile(LAYER.pattern + r"(self_attn\.(q|k|v|qkv)|mlp\.(gate|up|gate_up))_proj\.lora_A\.")
LONGEST_HEADER = 100_000_000  # bytes, as in safetensors


def check_adapter(folder: Path) -> None:
    """UserError unless the folder holds a PEFT adapter of finite numbers."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; pass the adapter folder that training wrote (final/)")
    if (folder / "final").is_dir():
        raise UserError(f"{folder} is the folder of a training run; its adapter is {folder / 'final'}")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} is not a LoRA adapter: it has no {name}; pass the folder that training wrote (final/)"
            )
    config = read_adapter_config(folder)
    tensors = check_weights(folder / WEIGHTS)
    widest = max((entry["shape"][0] for name, entry in tensors.items() if "lora_A" in name), default=config.rank)
    if widest < config.rank:
        raise UserError(f"{folder / CONFIG}: its rank is {config.rank}, and its weights have rank {widest}")


def check_fits(folder: Path, model: str, config: Mapping[str, Any]) -> None:
    """UserError if an adapter, which `check_adapter` has checked, is of a model of another width or of more layers.

    PEFT says so only when the model is loaded, and nothing of layers that the model lacks. vLLM says nothing of a
    narrower adapter: it copies the weights into the first columns of wider ones, and the answers are nonsense.

    config: the model's config.json; what it does not say is not compared.
    """
    width, depth = (config.get(name) for name in ("hidden_size", "num_hidden_layers"))
    if width is None and depth is None:
        return
    tensors, _ = _header(folder / WEIGHTS)
    shapes = {name: entry["shape"] for name, entry in tensors.items()}
    widths = {shape[-1] for name, shape in shapes.items() if READS_HIDDEN.match(name) and shape}
    layers = max((int(found[1]) + 1 for found in map(LAYER.match, shapes) if found), default=0)
    differs = None
    if type(width) is int and (others := widths - {width}):
        differs = f"hidden size {max(others)}, and this one has {width}"
    elif type(depth) is int and layers > depth:
        differs = f"{layers} layers, and this one has {depth}"
    if differs:
        base = read_adapter_config(folder).base_model
        named = f" ({base})" if base and base != model else ""
        raise UserError(
            f"{folder} does not fit {model}: it is an adapter for a model with {differs}; pass the adapter's own base"
            f" model{named}"
        )


def check_weights(path: Path) -> dict[str, Any]:
    """{name: its type, shape and place} of the tensors in a safetensors file. UserError if they are not all there, or
    are not finite numbers. Reads the file once."""
    tensors, begin = _header(path)
    import numpy as np

    data = np.memmap(path, np.uint8, "r")[begin:]
    for name, tensor in tensors.items():
        kind, exponent = FLOATS.get(tensor["dtype"], ("u1", 1 << 8))  # whole numbers are always finite
        bits = data[slice(*tensor["data_offsets"])].view(kind)
        if ((bits & np.uint64(exponent)) == exponent).any():
            raise UserError(f"{path} holds NaN or infinity ({name}); train it again")
    return tensors


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """({name: its type, shape and place}, where the weights begin) of a safetensors file."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: Any = json.loads(file.read(length) if length <= LONGEST_HEADER else b"")
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        ends = [end for entry in tensors.values() for begin, end in [entry["data_offsets"]] if 0 <= begin <= end]
        good = len(ends) == len(tensors) and all(isinstance(entry["shape"], list) for entry in tensors.values())
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise UserError(f"{path} is not a whole safetensors file; copy the adapter again")
    if 8 + length + max(ends, default=0) != path.stat().st_size:
        raise UserError(f"{path} is not complete; copy it again")
    return tensors, 8 + length


def let_others_read(folder: Path) -> None:
    """Let those read the weights in a folder who may read the folder. safetensors lets their owner alone, and a server
    of another user (a container's) could not load them. Some network drives refuse it; then they stay as they are."""
    for path in folder.glob("*.safetensors"):
        with suppress(OSError):
            path.chmod(folder.stat().st_mode & 0o666)


def adapters_in(words: Iterable[str]) -> list[Path]:
    """The adapter folders that the words of a command line name (`NAME=FOLDER` too)."""
    folders = dict.fromkeys(Path(word.rpartition("=")[2]) for word in words if word)
    return [folder for folder in folders if is_adapter(folder)]


def rank_for(adapters: Iterable[Path]) -> int:
    """The --max-lora-rank that serves these adapters."""
    return vllm_rank(max((read_adapter_config(folder).rank for folder in adapters), default=SUITE_RANK))


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter's config. A word that cannot be a path (a long text) does not."""
    try:
        return (folder / CONFIG).is_file()
    except (OSError, ValueError):
        return False
