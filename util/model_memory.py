"""How much memory of a GPU a model needs, by estimates from its config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

HEAD_BYTES = 3 << 29  # training: tiles of the loss head, and what the allocator leaves unused
MEMORY_SHARE = 0.9  # of what is free; the rest is fragmentation
GIB = 2**30
CARDS = (24, 40, 48, 80, 141)
COUNTS = (1, 2, 4, 8)
SERVER_GIB = 5  # of a vLLM server on each card beside the weights: CUDA graphs, and the cache of some hundred answers
ROW_TOKENS = 256
HALF = 2  # bytes of a number in bfloat16


def bytes_per_token(config: Any, size: int) -> int:
    """Estimate of the memory that one token holds from the forward to the backward pass of a training.

    A layer keeps its inputs, norms, queries, keys, values and attention (about eight vectors of the hidden size) and
    three vectors of the MLP. For Qwen2.5-7B in bfloat16 that is 4.8 MB (measured, with all else that grows with the
    rows: 4.6 MB).

    size: bytes of one number.
    """
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    return int(size * config.num_hidden_layers * (8 * hidden + 3 * inner))


def weight_counts(config: Any) -> tuple[int, int]:
    """(weights of the model, those of its largest piece that is gathered at once when it is sharded: a layer, or the
    embedding)."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    pieces = [*(block for blocks in lists for block in blocks), model.get_input_embeddings()]
    return model.num_parameters(), max(sum(weight.numel() for weight in piece.parameters()) for piece in pieces)


def serves(config: Any, weights: int, cards: int, gib: float) -> bool:
    """Whether vLLM (tensor parallel, 95% of each card) can serve the model with an adapter."""
    heads: int = config.num_attention_heads
    return heads % cards == 0 and HALF * weights / cards + SERVER_GIB * GIB <= 0.95 * gib * GIB


def trains(config: Any, weights: int, largest: int, cards: int, gib: float) -> bool:
    """Whether a LoRA can be trained on rows of 256 tokens, one at a time: on one card by the suite's loop, on several
    by TRL over a sharded base model (experiments/fsdp.yaml)."""
    row = ROW_TOKENS * bytes_per_token(config, HALF)
    if cards == 1:
        return HALF * weights + (HEAD_BYTES + row) / MEMORY_SHARE <= (gib - 1) * GIB
    logits = 3 * 4 * ROW_TOKENS * config.vocab_size  # float32, with their gradient
    return HALF * (weights / cards + 3 * largest) + (2 * row + logits) / MEMORY_SHARE <= (gib - 1) * GIB


def fewest(fits: Callable[[int], bool]) -> str:
    """The smallest number of cards that fits, or a dash."""
    return next((str(count) for count in COUNTS if fits(count)), "-")
