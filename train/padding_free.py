"""Rows without padding: batches as one flat sequence, and attention over sequences of unequal length.

TRL pads every row to the longest one. Here the rows of an update take another path through the model. The result is
the same to rounding, and tests compare losses and gradients with TRL's:

1. `flat_batch` puts the rows end to end. The tokens that all rows begin with (the template's system block, the opening
   of the prompt) come once, in front. This is not packing: the update has the same rows, and no row sees another.
2. `flat_attention` lets every row see itself and that prefix, with a kernel for sequences of unequal length. Where
   there is no such kernel, rows are padded for attention alone.
3. The layers make fewer passes over memory (train/fused_lora.py).
4. Rows of several adapters go through the frozen base together. Each LoRA layer gives every token its own adapter.

How many rows go at once is estimated in train/rows_at_once.py.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, chain
from typing import Any

from train.fused_lora import PassState, fuse_linears, fuse_norms
from util.chat.chat_tokens import IGNORED, common_prefix_length

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # they share one layer design; other models use TRL's layers
ATTENTION = "flat"  # the name under which transformers finds flat_attention

EncodedRow = dict[str, list[int]]
Kernel = Callable[..., Any]


# --- rows as one flat sequence -----------------------------------------------------------------------


def shared_prefix(rows: Sequence[EncodedRow]) -> int:
    """How many leading tokens all rows share. The token before a row's first trained token is never one of them."""
    ids = [row["input_ids"] for row in rows]
    starts = (
        next((i for i, label in enumerate(row["labels"]) if label != IGNORED), len(row["labels"])) for row in rows
    )
    return max(0, min(common_prefix_length(min(ids), max(ids)), min(starts) - 1))


def flat_batch(rows: Sequence[EncodedRow], prefix: int, adapters: Sequence[int] | None = None) -> dict[str, Any]:
    """One flat sequence: first the shared prefix, once for each adapter, then the rest of every row, end to end.

    prefix: how many leading tokens are the same in all rows.
    adapters: the adapter of each row, 0 to n - 1 in ascending order (default: one adapter).

    Returns the arguments of the model's forward: input_ids, labels and position_ids, each [1, tokens], and for
    `flat_attention` the bounds of the sequences. A prefix is a sequence of its own. Every other sequence is a row: its
    queries (q) are its own tokens, its keys (k) are its adapter's prefix and its own tokens. `key_index` brings the
    keys into that order, from `prefix_copies` of each prefix followed by all tokens. With several adapters, "adapters"
    has the adapter of each token.
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
    """The batch on the device, sent without waiting for a GPU that is still busy with the update before."""
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
    """Attention within the sequences of `flat_batch`, as transformers calls it.

    query, key, value: [1, heads, tokens, size]. Returns [1, tokens, heads, size] and no attention weights.
    """
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    if key_index is not None:
        key, value = (with_prefix(x, prefix_copies, key_index) for x in (key, value))
    window = (sliding_window - 1 if sliding_window else -1, 0)
    out = kernel(query, key, value, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, scaling, window)
    return out[None], None


def with_prefix(x: Any, shape: Sequence[int], index: Any) -> Any:
    """Keys or values [tokens, heads, size] with the prefix before each sequence.

    shape: number of adapters, copies of each prefix, length of the prefix. index: `flat_batch`'s key_index.
    """
    import torch

    adapters, copies, length = shape
    # expand, not a repeated index: its backward pass sums the gradients of the copies in float32
    fronts = x[: adapters * length].unflatten(0, (adapters, 1, length))
    repeated = fronts.expand(-1, copies, -1, -1, -1).flatten(0, 2)
    return torch.cat([repeated, x]).index_select(0, index)


def attention_kernel(model: Any) -> tuple[str, Kernel]:
    """(name for the manifest, attention kernel) for this model and device."""
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
    """torch's kernel. Where a sequence has more keys than queries, the last query sees the last key."""
    # fewer key heads than query heads: torch 2.11 accepts them, torch 2.12 needs enable_gqa
    options = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    return varlen_attn(query, key, value, cu_q, cu_k, max_q, max_k, scale=scale, window_size=window, **options)


def padded_attention(
    query: Any, key: Any, value: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, scale: float,
    window: tuple[int, int],
) -> Any:  # fmt: skip
    """The same with torch's scaled_dot_product_attention on padded sequences, for any device and number type."""
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
    """Make the model use `flat_attention`; returns the kernel's name."""
    from transformers import AttentionInterface

    name, kernel = attention_kernel(model)
    AttentionInterface.register(ATTENTION, partial(flat_attention, kernel=kernel))
    model.set_attn_implementation(ATTENTION)
    return name


# --- the fast path as a whole ------------------------------------------------------------------------


def score_loss_tokens_only() -> None:
    """Make TRL's loss head skip the prompt's tokens on a CPU too.

    TRL skips them where there is Triton. Elsewhere it scores all tokens, for accelerators that compile each new shape.
    """
    from trl.trainer import utils

    utils._use_triton = lambda device: True  # only the loss head asks this; TRL's kernels ask their own module


def has_fast_path(model: Any) -> bool:
    """Whether this model's layers are the ones that the fast path is written for."""
    return model.config.model_type in FAMILIES and getattr(model.config, "hidden_act", None) == "silu"


def use_fast_path(models: Sequence[Any], state: PassState) -> dict[str, str]:
    """Change the layers of the first PEFT model so that it serves the adapters of all models.

    Returns what was changed, for the manifest.
    """
    base = models[0].get_base_model()
    cuda = base.device.type == "cuda"
    facts = {"layers": "no padding, joined LoRA linears, fused norms", "attention": use_flat_attention(base)}
    score_loss_tokens_only()
    fuse_linears(models, state, compile_elementwise=cuda)
    fuse_norms(base)
    facts["layers"] += ", compiled SwiGLU and rotary embedding" if cuda else ""
    return facts
