"""How rows go through the model: as many at once as memory allows, and nothing computed twice.

TRL's trainer stays in charge of data order, optimizer, schedule, checkpoints and loss
(train/multi_adapter_trainer.py). These things
differ from its stock path; the update is the same to rounding (a test holds losses and gradients together):

1. The rows of an update go through the model as many at once as fit, not --per-device-train-batch-size at a time.
2. They go as one flat sequence, without padding, and the tokens that every row begins with (the template's system
   block, the opening of the prompt) go once. This is not packing: the update holds the very same rows.
3. Attention is a kernel for sequences of unequal length; where there is none, rows are padded for attention alone.
4. Layers make fewer passes over memory (train/fused_lora.py).
5. Rows of several adapters go through the frozen base together; each LoRA linear gives every token its own adapter.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, chain
from typing import Any

from train.fused_lora import Pass, fuse_norms, join_linears
from util.chat.chat_tokens import IGNORED, common_prefix_length

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # the same layers under four names; another model takes TRL's path
ATTENTION = "flat"  # our name in transformers' AttentionInterface
HEAD_BYTES = 3 << 29  # tiles of the loss head and what the allocator leaves unused
CPU_MEMORY = 3 << 30  # a share for a step on a CPU: plenty for small models, harmless to the machine with large ones
MEMORY_SHARE = 0.9  # of what is free; the rest is fragmentation

EncodedRow = dict[str, list[int]]
Kernel = Callable[..., Any]


# --- how many rows at once ---------------------------------------------------------------------------


def divisors(count: int) -> list[int]:
    """Divisors of a number, largest first."""
    return [n for n in range(count, 0, -1) if count % n == 0]


def bytes_per_token(config: Any, size: int) -> int:
    """Estimate of what one token keeps in memory from forward to backward pass, for numbers of `size` bytes.

    A layer keeps its inputs, norms, queries, keys, values and attention (about eight of the hidden size) and three
    vectors of the MLP: 4.8 MB for Qwen2.5-7B in bfloat16 (4.6 measured, with all else that grows with the rows).
    """
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    return int(size * config.num_hidden_layers * (8 * hidden + 3 * inner))


def rows_that_fit(lengths: Sequence[int], prefix: int, effective: int, token_bytes: float, free_bytes: float) -> int:
    """The largest divisor of the effective batch whose longest possible micro-batch fits, or 1."""
    longest = sorted((length - prefix for length in lengths), reverse=True)
    room = (MEMORY_SHARE * free_bytes - HEAD_BYTES) / token_bytes - prefix
    return next((n for n in divisors(effective) if sum(longest[:n]) <= room), 1)


def free_memory(device: Any) -> int:
    """Bytes that a training step may still take."""
    import torch

    if device.type != "cuda":
        return CPU_MEMORY
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


# --- rows as one flat sequence -----------------------------------------------------------------------


def shared_prefix(rows: Sequence[EncodedRow]) -> int:
    """How many leading tokens all rows share; the token before a row's first trained one is never among them."""
    ids = [row["input_ids"] for row in rows]
    starts = (
        next((i for i, label in enumerate(row["labels"]) if label != IGNORED), len(row["labels"])) for row in rows
    )
    return max(0, min(common_prefix_length(min(ids), max(ids)), min(starts) - 1))


def flat_batch(rows: Sequence[EncodedRow], prefix: int, adapters: Sequence[int] | None = None) -> dict[str, Any]:
    """Whole rows end to end; in front, once for each adapter, their first `prefix` tokens, the same in all rows.

    `adapters` are the rows' adapters, 0 to n - 1 in ascending order (default: one adapter). A prefix is a sequence of
    its own; every other sequence asks with its own tokens (q) and sees its adapter's prefix and itself (k).
    `key_index` puts the keys in that order, from `prefix_copies` of each prefix and then all tokens.
    """
    import torch

    counts = list(Counter(adapters or [0] * len(rows)).values())
    bodies = [row["input_ids"][prefix:] for row in rows]
    lengths = [len(body) for body in bodies]
    labels = chain.from_iterable([IGNORED, *row["labels"][prefix + 1 :]] for row in rows)
    fronts = [prefix] * len(counts) if prefix else []
    own, seen = fronts + lengths, fronts + [prefix + length for length in lengths]
    positions = [torch.arange(prefix)] * len(fronts) + [torch.arange(prefix, prefix + n) for n in lengths]
    batch = {
        "input_ids": torch.tensor([rows[0]["input_ids"][:prefix] * len(fronts) + list(chain.from_iterable(bodies))]),
        "labels": torch.tensor([[IGNORED] * sum(fronts) + list(labels)]),
        "position_ids": torch.cat(positions)[None],
        "cu_seq_lens_q": torch.tensor([0, *accumulate(own)], dtype=torch.int32),
        "cu_seq_lens_k": torch.tensor([0, *accumulate(seen)], dtype=torch.int32),
        "max_length_q": max(own),
        "max_length_k": max(seen),
    }
    if prefix:
        copies = 1 + max(counts)  # one for itself and one for each of its rows
        front = torch.arange(len(counts) * copies * prefix).view(len(counts), copies, prefix)
        tails = (torch.arange(sum(lengths)) + front.numel() + sum(fronts)).split(lengths)
        before_each_row = chain.from_iterable(front[i, 1 : n + 1] for i, n in enumerate(counts))
        batch["prefix_copies"] = front.shape
        batch["key_index"] = torch.cat([*front[:, 0], *chain.from_iterable(zip(before_each_row, tails))])
    if adapters is not None:
        numbers = torch.arange(len(counts))
        of_rows = numbers.repeat_interleave(torch.tensor(counts)).repeat_interleave(torch.tensor(lengths))
        batch["adapters"] = torch.cat([numbers.repeat_interleave(prefix), of_rows])
    return batch


def on_device(batch: dict[str, Any], device: Any) -> dict[str, Any]:
    """The batch on the device. A GPU still at the update before is not waited for: launches run ahead of it."""
    import torch

    if device.type != "cuda":
        return batch
    return {
        name: value.pin_memory().to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


# --- attention over sequences of unequal length ------------------------------------------------------


def flat_attention(
    _module: Any, query: Any, key: Any, value: Any, _mask: Any, *, kernel: Kernel, scaling: float, cu_seq_lens_q: Any,
    cu_seq_lens_k: Any, max_length_q: int, max_length_k: int, prefix_copies: Sequence[int] = (),
    key_index: Any = None, sliding_window: int | None = None, **_: Any,
) -> tuple[Any, None]:  # fmt: skip
    """Attention as transformers calls it: [1, heads, tokens, size] in, [1, tokens, heads, size] out."""
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    if key_index is not None:
        key, value = (with_prefix(x, prefix_copies, key_index) for x in (key, value))
    window = (sliding_window - 1 if sliding_window else -1, 0)
    out = kernel(query, key, value, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, scaling, window)
    return out[None], None


def with_prefix(x: Any, shape: Sequence[int], index: Any) -> Any:
    """Keys or values [tokens, heads, size] with the prefix before each sequence; shape: adapters, copies, length.

    Expanding sums the gradients of the copies in float32; the index takes each row once, so no sum is left to it.
    """
    import torch

    adapters, copies, length = shape
    fronts = x[: adapters * length].unflatten(0, (adapters, 1, length))
    repeated = fronts.expand(-1, copies, -1, -1, -1).flatten(0, 2)
    return torch.cat([repeated, x]).index_select(0, index)


def attention_kernel(model: Any) -> tuple[str, Kernel]:
    """The attention kernel for this model, and its name for the manifest."""
    import torch

    half = model.dtype in (torch.bfloat16, torch.float16)
    if model.device.type == "cuda" and half and torch.cuda.get_device_capability() >= (8, 0):
        try:
            from torch.nn.attention.varlen import varlen_attn  # FlashAttention-2, inside torch since 2.10
        except ImportError:
            return "padded for attention only (this torch has no varlen_attn)", padded_attention
        return "torch varlen_attn", partial(varlen_attention, varlen_attn)
    return f"padded for attention only ({model.dtype} on {model.device.type})".replace("torch.", ""), padded_attention


def varlen_attention(
    varlen_attn: Callable[..., Any], query: Any, key: Any, value: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int,
    scale: float, window: tuple[int, int],
) -> Any:  # fmt: skip
    """torch's kernel; where a sequence has more keys than queries, the last query sees the last key."""
    # torch 2.11 takes fewer key heads than query heads as it is, 2.12 wants to be told
    options = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    return varlen_attn(query, key, value, cu_q, cu_k, max_q, max_k, scale=scale, window_size=window, **options)


def padded_attention(
    query: Any, key: Any, value: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, scale: float,
    window: tuple[int, int],
) -> Any:  # fmt: skip
    """The same by torch's sdpa on padded sequences: any device, any number type."""
    import torch

    place_q, place_k = (torch.arange(width, device=query.device) for width in (max_q, max_k))
    length_q, length_k = cu_q.diff()[:, None], cu_k.diff()[:, None]
    inside_q = place_q < length_q
    at_q, at_k = (
        (start[:-1, None] + place.minimum(length - 1)).long()
        for start, place, length in ((cu_q, place_q, length_q), (cu_k, place_k, length_k))
    )
    last = (place_q + length_k - length_q)[:, :, None]  # the key at each query's own token
    seen = place_k <= last
    if window[0] >= 0:
        seen &= place_k >= last - window[0]
    groups = query.shape[1] // key.shape[1]
    key, value = (x[at_k].repeat_interleave(groups, 2).transpose(1, 2) for x in (key, value))
    out = torch.nn.functional.scaled_dot_product_attention(
        query[at_q].transpose(1, 2), key, value, attn_mask=seen[:, None], scale=scale
    )
    return out.transpose(1, 2)[inside_q]


def use_flat_attention(model: Any) -> str:
    """Let the model attend within the sequences of `flat_batch`; returns the kernel's name."""
    from transformers import AttentionInterface

    name, kernel = attention_kernel(model)
    AttentionInterface.register(ATTENTION, partial(flat_attention, kernel=kernel))
    model.set_attn_implementation(ATTENTION)
    return name


# --- all of it ---------------------------------------------------------------------------------------


def score_loss_tokens_only() -> None:
    """Let TRL's loss head skip the prompt's tokens on a CPU too.

    It skips them where there is Triton; elsewhere it scores all, for accelerators that compile each new shape.
    """
    from trl.trainer import utils

    utils._use_triton = lambda device: True  # asked by the head alone: its kernels ask their own module


def knows(model: Any) -> bool:
    """Whether the layers of this model are those that the fast path was written for."""
    return model.config.model_type in FAMILIES and getattr(model.config, "hidden_act", None) == "silu"


def speed_up(models: Sequence[Any], now: Pass) -> dict[str, str]:
    """Put the first PEFT model, with the adapters of all, on the fast path; returns what that is, for the manifest."""
    base = models[0].get_base_model()
    cuda = base.device.type == "cuda"
    facts = {"layers": "no padding, joined LoRA linears, fused norms", "attention": use_flat_attention(base)}
    score_loss_tokens_only()
    join_linears(models, now, compile_elementwise=cuda)
    fuse_norms(base)
    facts["layers"] += ", compiled SwiGLU and rotary embedding" if cuda else ""
    return facts
