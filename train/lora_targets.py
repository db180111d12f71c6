"""Chooses the linear layers of a model that a LoRA adapter is put on, and names what would be left without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from train.fused_lora import LORA_TARGETS
from train.padding_free import FAMILIES
from util.cli import UserError, first_line
from util.terminal import say


def lora_targets(config: Any, asked: Sequence[str] = ()) -> list[str]:
    """Names of the linear layers of each block that get an adapter: those asked for (--lora-targets), or the seven of
    Llama, or the family's own.

    PEFT adapts the names that it finds and is silent about the others. Phi-3, for example, has two of the seven, and
    joins the rest in qkv_proj and gate_up_proj. UserError for a model whose blocks hold weights of another kind, and
    for a name that no linear layer of its blocks has.

    config: the model's config. The model is built from it without weights.
    """
    if asked:
        return checked_targets(config, asked)
    if config.model_type in FAMILIES:
        return LORA_TARGETS
    linear, other = layer_weights(config)
    if not linear:
        raise UserError(f"{config.model_type} models have no linear layers in their blocks, and LoRA needs them")
    missing = [name for name in LORA_TARGETS if name not in linear]
    if not missing:
        if not_adapted := sorted(set(linear) - set(LORA_TARGETS)) + other:
            also = ", ".join(not_adapted)
            say(f"LoRA on {', '.join(LORA_TARGETS)}; {config.model_type} also has {also}: not adapted")
        return LORA_TARGETS
    if other:
        raise UserError(
            f"{config.model_type} has no {', '.join(missing)}, and its blocks hold weights that LoRA does not reach:"
            f" {', '.join(other)}; take a model whose blocks are linear layers, such as Qwen2.5, Llama, Gemma or Phi-3"
        )
    say(f"LoRA on {', '.join(linear)}: {config.model_type} has no {', '.join(missing)}")
    return linear


def checked_targets(config: Any, asked: Sequence[str]) -> list[str]:
    """The names asked for, in the order of the model. UserError for one that the model's blocks do not have."""
    linear = LORA_TARGETS if config.model_type in FAMILIES else layer_weights(config)[0]
    if unknown := [name for name in asked if name not in linear]:
        raise UserError(
            f"--lora-targets {', '.join(unknown)}: a {config.model_type} block has no such linear layer (it has:"
            f" {', '.join(linear)})"
        )
    return [name for name in linear if name in asked]


def check_rank(rank: int, config: Any) -> None:
    """UserError for a rank above the model's width: the adapter would be larger than the layers it changes."""
    width = getattr(config, "hidden_size", None)
    if type(width) is int and rank > width:
        raise UserError(f"--lora-rank {rank:,} is above the width of the model ({width:,}); 8 is the plan's")


def layer_weights(config: Any) -> tuple[list[str], list[str]]:
    """(names of the linear layers, names of other matrices) in the blocks of a model's decoder, in order."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        blocks = decoder_blocks(model)
    except (ValueError, AttributeError, NotImplementedError) as error:
        raise UserError(f"cannot train a {config.model_type} model: {first_line(error)}") from None
    linear, other = [], []
    for name, module in blocks.named_modules():
        if isinstance(module, torch.nn.Linear):
            linear.append(name.rpartition(".")[2])
        else:
            weights = module.named_parameters(recurse=False)
            other += [f"{name.partition('.')[2]}.{key}" for key, weight in weights if weight.ndim > 1]
    return list(dict.fromkeys(linear)), list(dict.fromkeys(other))  # once each: every block has them


def decoder_blocks(model: Any) -> Any:
    """The module list of a causal language model's blocks. (Its name differs: layers, h, blocks.)"""
    from torch.nn import ModuleList

    decoder = model.get_decoder()
    lists: Sequence[Any] = [child for child in decoder.children() if isinstance(child, ModuleList)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of blocks")
    return max(lists, key=len)
