"""An adapter of side_by_side_loras.py as a folder that PEFT and vLLM load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RANK, ALPHA = 8, 32


def as_peft(adapter: Path, folder: Path, base: Path) -> Path:
    """An adapter of side_by_side_loras.py as a folder that PEFT and vLLM load."""
    from safetensors.torch import load_file, save_file

    names = {"down": "lora_A", "up": "lora_B"}
    tensors = {
        f"base_model.model.model.{name.rpartition('.')[0]}.{names[name.rpartition('.')[2]]}.weight": value
        for name, value in load_file(adapter).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({name.split(".")[-3] for name in tensors})
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "bias": "none",
    }
    config |= {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "target_modules": targets, "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
