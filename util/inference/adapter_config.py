"""Reads the config of a LoRA adapter as strictly as a row, and names the rank with which vLLM serves it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from util.cli import UserError
from util.jsonl.rows import parse_row

CONFIG = "adapter_config.json"
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values of vLLM's --max-lora-rank (vllm/config/lora.py)
SUITE_RANK = 8  # the plan's rank, and what a server is started with if no adapter asks for more


@dataclass(frozen=True)
class AdapterConfig:
    """What the suite reads of an adapter's config. PEFT fills in what is missing."""

    rank: int
    base_model: str
    """as the adapter names it: a hub id or a folder; "" if it does not say"""


def read_adapter_config(folder: Path) -> AdapterConfig:
    """The config of a PEFT LoRA adapter. UserError, in one line, for one that PEFT would misread or stumble over."""
    path = folder / CONFIG
    try:
        found = parse_row(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}; copy the adapter again") from None
    if problem := config_problem(found):
        raise UserError(f"{path}: {problem}; is it the adapter that training wrote?")
    ranks = [found.get("r", SUITE_RANK), *(found.get("rank_pattern") or {}).values()]
    return AdapterConfig(max(ranks), found.get("base_model_name_or_path") or "")


def config_problem(config: dict[str, Any]) -> str | None:
    """What is wrong with an adapter's config, or None."""
    if config.get("peft_type", "LORA") != "LORA":
        return f"peft_type is {config['peft_type']!r}, and only LORA adapters are used here"
    ranks, scales = ({name: config[name] for name in names if name in config} for names in (("r",), ("lora_alpha",)))
    for name, values in (("rank_pattern", ranks), ("alpha_pattern", scales)):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict):
            return f"{name} is not an object"
        values |= {f"{name} of {layer}": value for layer, value in pattern.items()}
    for name, value in ranks.items():
        if type(value) is not int or value < 1:
            return f"{name} is {value!r}, not a whole number of at least 1"
    for name, value in scales.items():
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            return f"{name} is {value!r}, not a number above 0"
    if not isinstance(config.get("base_model_name_or_path") or "", str):
        return "base_model_name_or_path is not text"
    targets = config.get("target_modules") or []
    if not isinstance(targets, str) and not (isinstance(targets, list) and all(isinstance(t, str) for t in targets)):
        return "target_modules is neither text nor a list of texts"
    return None


def vllm_rank(rank: int) -> int:
    """The smallest --max-lora-rank of vLLM, of at least 8, that serves adapters of this rank. UserError above 512."""
    for served in VLLM_RANKS:
        if served >= max(rank, SUITE_RANK):
            return served
    raise UserError(f"vLLM serves adapters up to rank {VLLM_RANKS[-1]}, and this one has rank {rank}")
