"""How rows go through the model: as many at once as memory allows, and nothing computed twice.

TRL's trainer stays in charge of data order, optimizer, schedule, checkpoints and loss (train/company.py). These things
differ from its stock path; the update is the same to rounding (a test holds losses and gradients together):

1. The rows of an update go through the model as many at once as fit, not --per-device-train-batch-size at a time.
2. They go as one flat sequence, without padding, and the tokens that every row begins with (the template's system
   block, the opening of the prompt) go once. This is not packing: the update holds the very same rows.
3. Attention is a kernel for sequences of unequal length; where there is none, rows are padded for attention alone.
4. A LoRA linear is one operation without copies or casts of its input, a norm is one kernel, and rotary embedding and
   SwiGLU are compiled.
5. Rows of several adapters go through the frozen base together; each LoRA linear gives every token its own adapter.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import accumulate, chain
from typing import Any

from util.encode import IGNORED, common_prefix_length

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
    vectors of the MLP. That is 4.8 MB for Qwen2.5-7B in bfloat16 (4.4 measured); taken as 5.3.
    """
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    return int(size * config.num_hidden_layers * (8 * hidden + 3.5 * inner))


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


# --- fewer passes over memory ------------------------------------------------------------------------


@lru_cache(maxsize=1)
def lora_linear() -> Callable[..., Any]:
    """lora_linear()(x, weight, bias, scale, own, copies, a1, b1, a2, b2, ...): a frozen linear with its adapters.

    y = x W' + bias + scale (x A' * own) B' with the adapters' a one below the other in A, their b side by side in B.
    `own` [tokens, adapters x rank] is 1 where the column is of the token's adapter, else 0; None with one adapter.
    `copies` are a1, b1, ... in the number type of x; gradients go to the float32 originals.
    """
    import torch

    def joined(parts: Sequence[Any], dim: int) -> Any:
        return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)

    class LoraLinear(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, x: Any, weight: Any, bias: Any, scale: float, own: Any, copies: Sequence[Any], *adapters: Any
        ) -> Any:
            flat = x.reshape(-1, x.shape[-1])
            a, b = joined(copies[::2], 0), joined(copies[1::2], 1)
            low = flat @ a.t()
            if own is not None:
                low *= own
            out = torch.nn.functional.linear(flat, weight, bias).addmm_(low, b.t(), alpha=scale)
            ctx.save_for_backward(flat, weight, own, a, b, low)
            ctx.scale, ctx.adapters = scale, len(copies) // 2
            return out.view(*x.shape[:-1], -1)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            flat, weight, own, a, b, low = ctx.saved_tensors
            shape, grad = grad.shape, grad.reshape(-1, grad.shape[-1])
            grad_low = grad @ b
            if own is not None:
                grad_low *= own
            grad_x = None
            if ctx.needs_input_grad[0]:  # the first layer's input needs none
                grad_x = (grad @ weight).addmm_(grad_low, a, alpha=ctx.scale).view(*shape[:-1], -1)
            grad_a, grad_b = (g.float() for g in (grad_low.t() @ flat, grad.t() @ low))
            if ctx.scale != 1:
                grad_a, grad_b = grad_a * ctx.scale, grad_b * ctx.scale
            pairs = zip(grad_a.chunk(ctx.adapters), grad_b.chunk(ctx.adapters, 1))
            return grad_x, None, None, None, None, None, *chain.from_iterable(pairs)

    return LoraLinear.apply


class Pass:
    """Which adapters a pass through the base is for, and their weights in the base's number type."""

    def __init__(self) -> None:
        self.adapters: Sequence[int] = (0,)  # their numbers among all that are trained together
        self.own: Any = None  # see `lora_linear`
        self.weights: list[Any] = []
        self.copies: list[Any] = []

    def shared(self, of_tokens: Any, rank: int, dtype: Any) -> None:
        """The pass is for several adapters; token i is of the one numbered adapters[of_tokens[i]]."""
        from torch.nn.functional import one_hot

        self.own = one_hot(of_tokens, len(self.adapters)).to(dtype).repeat_interleave(rank, 1)

    def copy_of(self, weight: Any, dtype: Any) -> Any:
        """A copy that `renew` keeps equal to the weight (in the weight's own number type, the weight itself)."""
        copy = weight.detach().to(dtype)
        if weight.dtype != dtype:
            self.weights.append(weight.detach())
            self.copies.append(copy)
        return copy

    def renew(self) -> None:
        """Follow the optimizer: all weights are cast in a few kernels instead of one for each linear and pass."""
        import torch

        if self.copies:
            torch._foreach_copy_(self.copies, self.weights)


def fuse_lora(models: Sequence[Any], now: Pass) -> None:
    """Each PEFT LoRA linear of the first model as one operation, for the adapters of all models.

    PEFT casts the input to the adapter's float32 and back at each one; this casts the small adapter instead, which
    autocast does as well.
    """
    from peft.tuners.lora import Linear

    def fused(layer: Any, adapters: Sequence[Sequence[Any]], copies: Sequence[Sequence[Any]], x: Any) -> Any:
        base, scale = layer.base_layer, layer.scaling["default"]
        weights, cast = (list(chain.from_iterable(of[i] for i in now.adapters)) for of in (adapters, copies))
        return lora_linear()(x, base.weight, base.bias, scale, now.own, cast, *weights)

    for name, module in models[0].named_modules():
        if isinstance(module, Linear):
            layers = [model.get_submodule(name) for model in models]
            adapters = [(layer.lora_A["default"].weight, layer.lora_B["default"].weight) for layer in layers]
            dtype = module.base_layer.weight.dtype
            copies = [[now.copy_of(weight, dtype) for weight in pair] for pair in adapters]
            module.forward = partial(fused, module, adapters, copies)  # type: ignore[method-assign]


def fuse_norms(model: Any) -> None:
    """Each RMS norm as torch's own kernel."""
    from torch.nn.functional import rms_norm

    def kernel(norm: Any, x: Any) -> Any:
        return rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(kernel, module)


def score_loss_tokens_only() -> None:
    """Let TRL's loss head skip the prompt's tokens on a CPU too.

    It skips them where there is Triton; elsewhere it scores all, for accelerators that compile each new shape.
    """
    from trl.trainer import utils

    utils._use_triton = lambda device: True  # asked by the head alone: its kernels ask their own module


@lru_cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled once for all lengths."""
    import torch

    return torch.compile(function, dynamic=True)


def swiglu(gate: Any, up: Any) -> Any:
    return gate * gate.sigmoid() * up


def fuse_elementwise(model: Any) -> None:
    """SwiGLU and rotary embedding compiled: each a pass over memory instead of several."""

    def forward(mlp: Any, x: Any) -> Any:
        return mlp.down_proj(compiled(swiglu)(mlp.gate_proj(x), mlp.up_proj(x)))

    for module in model.modules():
        if type(module).__name__.endswith("MLP") and hasattr(module, "gate_proj"):
            module.forward = partial(forward, module)
            layers: Any = sys.modules[type(module).__module__]  # transformers' modeling file of this family
    layers.apply_rotary_pos_emb = compiled(inspect.unwrap(layers.apply_rotary_pos_emb))


# --- all of it ---------------------------------------------------------------------------------------


def knows(model: Any) -> bool:
    """Whether the layers of this model are those that the fast path was written for."""
    return model.config.model_type in FAMILIES and getattr(model.config, "hidden_act", None) == "silu"


def speed_up(models: Sequence[Any], now: Pass) -> dict[str, str]:
    """Put the first PEFT model, with the adapters of all, on the fast path; returns what that is, for the manifest."""
    base = models[0].get_base_model()
    facts = {"layers": "no padding, fused LoRA and norms", "attention": use_flat_attention(base)}
    score_loss_tokens_only()
    fuse_lora(models, now)
    fuse_norms(base)
    if base.device.type == "cuda":
        fuse_elementwise(base)
        facts["layers"] += ", compiled SwiGLU and rotary embedding"
    return facts
