"""How an update is computed: its rows in as few passes as memory allows, and nothing computed twice.

TRL's trainer stays in charge of data order, optimizer, schedule, checkpoints and loss. These things differ from its
stock path; the update is the same to rounding (a test holds losses and gradients together):

1. The rows of an update go through the model as many at once as fit, not --per-device-train-batch-size at a time;
   when memory runs out, half as many, and with one row left, with recompute.
2. They go as one flat sequence, without padding, and the tokens that every row begins with (the template's system
   block, the opening of the prompt) go once. This is not packing: the update holds the very same rows.
3. Attention is a kernel for sequences of unequal length; where there is none, rows are padded for attention alone.
4. A LoRA linear is one operation without copies or casts of its input, a norm is one kernel, and rotary embedding and
   SwiGLU are compiled.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import accumulate, chain
from typing import Any

from util.cli import UserError, say
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
    """How many leading tokens all rows share; the token before the first completion token is never one of them."""
    ids = [row["input_ids"] for row in rows]
    prompts = (next((i for i, label in enumerate(row["labels"]) if label != IGNORED), 10**9) for row in rows)
    return max(0, min(common_prefix_length(min(ids), max(ids)), min(prompts) - 1))


def flat_batch(rows: Sequence[EncodedRow], prefix: int) -> dict[str, Any]:
    """Whole rows end to end, their first `prefix` tokens (the same in all) once in front.

    The prefix is a sequence of its own; every other sequence asks with its own tokens (q) and sees the prefix and
    itself (k). `key_index` puts the keys in that order, from n copies of the prefix and then all other tokens.
    """
    import torch

    bodies = [row["input_ids"][prefix:] for row in rows]
    lengths = [len(body) for body in bodies]
    labels = chain.from_iterable([IGNORED, *row["labels"][prefix + 1 :]] for row in rows)
    own = [prefix, *lengths] if prefix else lengths
    seen = [prefix, *(prefix + length for length in lengths)] if prefix else lengths
    batch = {
        "input_ids": torch.tensor([rows[0]["input_ids"][:prefix] + list(chain.from_iterable(bodies))]),
        "labels": torch.tensor([[IGNORED] * prefix + list(labels)]),
        "position_ids": torch.cat([torch.arange(prefix), *(torch.arange(prefix, prefix + n) for n in lengths)])[None],
        "cu_seq_lens_q": torch.tensor([0, *accumulate(own)], dtype=torch.int32),
        "cu_seq_lens_k": torch.tensor([0, *accumulate(seen)], dtype=torch.int32),
        "max_length_q": max(own),
        "max_length_k": max(seen),
    }
    if prefix:
        copies = torch.arange(len(seen) * prefix).view(-1, prefix)
        tails = (torch.arange(sum(lengths)) + copies.numel()).split(lengths)
        batch["prefix_length"] = prefix
        batch["key_index"] = torch.cat([copies[0], *chain.from_iterable(zip(copies[1:], tails))])
    return batch


# --- attention over sequences of unequal length ------------------------------------------------------


def flat_attention(
    _module: Any, query: Any, key: Any, value: Any, _mask: Any, *, kernel: Kernel, scaling: float, cu_seq_lens_q: Any,
    cu_seq_lens_k: Any, max_length_q: int, max_length_k: int, prefix_length: int = 0, key_index: Any = None,
    sliding_window: int | None = None, **_: Any,
) -> tuple[Any, None]:  # fmt: skip
    """Attention as transformers calls it: [1, heads, tokens, size] in, [1, tokens, heads, size] out."""
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    if key_index is not None:
        key, value = (with_prefix(x, prefix_length, len(cu_seq_lens_k) - 1, key_index) for x in (key, value))
    window = (sliding_window - 1 if sliding_window else -1, 0)
    out = kernel(query, key, value, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, scaling, window)
    return out[None], None


def with_prefix(x: Any, prefix: int, copies: int, index: Any) -> Any:
    """Keys or values [tokens, heads, size] with the prefix before each sequence.

    Expanding sums the gradients of the copies in float32; the index takes each row once, so no sum is left to it.
    """
    import torch

    repeated = x[None, :prefix].expand(copies, -1, -1, -1).flatten(0, 1)
    return torch.cat([repeated, x[prefix:]]).index_select(0, index)


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
    """lora_linear()(x, weight, bias, a, b, scale) = x W' + bias + scale (x a') b', for a frozen W."""
    import torch

    class LoraLinear(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float) -> Any:
            flat, a, b = x.reshape(-1, x.shape[-1]), a.to(x.dtype), b.to(x.dtype)
            low = flat @ a.t()
            out = torch.nn.functional.linear(flat, weight, bias).addmm_(low, b.t(), alpha=scale)
            ctx.save_for_backward(flat, weight, a, b, low)
            ctx.scale = scale
            return out.view(*x.shape[:-1], -1)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            flat, weight, a, b, low = ctx.saved_tensors
            shape, grad = grad.shape, grad.reshape(-1, grad.shape[-1])
            grad_low = grad @ b
            grad_x = None
            if ctx.needs_input_grad[0]:  # the first layer's input needs none
                grad_x = (grad @ weight).addmm_(grad_low, a, alpha=ctx.scale).view(*shape[:-1], -1)
            grad_a, grad_b = (g.float() for g in (grad_low.t() @ flat, grad.t() @ low))
            return grad_x, None, None, grad_a.mul_(ctx.scale), grad_b.mul_(ctx.scale), None

    return LoraLinear.apply


def fuse_lora(model: Any) -> None:
    """Each PEFT LoRA linear as one operation. PEFT casts the input to the adapter's float32 and back at each one; this
    casts the small adapter instead, which autocast does as well."""
    from peft.tuners.lora import Linear

    def fused(layer: Any, x: Any) -> Any:
        (adapter,) = layer.active_adapters
        a, b = (part[adapter].weight for part in (layer.lora_A, layer.lora_B))
        return lora_linear()(x, layer.base_layer.weight, layer.base_layer.bias, a, b, layer.scaling[adapter])

    for module in model.modules():
        if isinstance(module, Linear):
            module.forward = partial(fused, module)  # type: ignore[method-assign]


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


# --- the trainer -------------------------------------------------------------------------------------


class Rows:
    """The rows of one update, opaque to what walks through batches."""

    def __init__(self, rows: Sequence[EncodedRow]):
        self.rows = rows
        self.tokens = sum(len(row["input_ids"]) for row in rows)
        self.loss_tokens = sum(len(row["labels"]) - row["labels"].count(IGNORED) for row in rows)


def one_update(rows: Sequence[EncodedRow]) -> dict[str, Any]:
    """Data collator: the rows as they are, and the labels by which the trainer counts the update's loss tokens."""
    import torch

    return {"rows": Rows(rows), "labels": torch.tensor([[IGNORED, *chain.from_iterable(r["labels"] for r in rows)]])}


@lru_cache(maxsize=1)
def update_trainer() -> Any:
    """The class of TRL trainers whose batch is an update."""
    import torch
    from trl import SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from util.embedded import batched

    class UpdateTrainer(SFTTrainer):
        """One training step is one update, in as many passes as memory asks for.

        The loss is a sum over the update's tokens divided by their number, so that any split gives the same gradient,
        and an update that ran out of memory can be made again in smaller parts.
        """

        def __init__(self, *, rows_at_once: int, **options: Any):
            super().__init__(data_collator=one_update, **options)
            self.collate: Any = DataCollatorForLanguageModeling(options["processing_class"].pad_token_id)
            self.rows_at_once, self.prefix = rows_at_once, 0
            self.may_shrink, self.recompute = True, False
            self.computed_tokens = self.loss_tokens = 0

        def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
            update, step = inputs["rows"], super().training_step
            while True:
                parts = list(batched(update.rows, self.rows_at_once))
                try:
                    loss = sum(step(model, self.collate(part), num_items_in_batch) for part in parts)
                    break
                except torch.OutOfMemoryError:
                    if not self.may_shrink:
                        raise
                self.shrink(update.rows)  # outside of `except`, which holds on to what the failed pass had computed
                model.zero_grad()
                torch.cuda.empty_cache()
            self.computed_tokens += update.tokens - self.prefix * (len(update.rows) - len(parts))
            self.loss_tokens += update.loss_tokens
            return loss

        def shrink(self, rows: Sequence[EncodedRow]) -> None:
            """Ask for less memory: half the rows at once; with one row, recompute."""
            before, self.rows_at_once = self.rows_at_once, max(1, self.rows_at_once // 2)
            if before > 1:
                say(f"out of GPU memory with {before} rows at once: going on with {self.rows_at_once}")
            elif not self.recompute:
                base: Any = self.model
                base.gradient_checkpointing_enable({"use_reentrant": False})
                self.recompute = True
                say("out of GPU memory with one row at once: going on with recompute (gradient checkpointing)")
            else:
                longest = max(len(row["input_ids"]) for row in rows)
                raise UserError(
                    f"out of GPU memory with one row of up to {longest} tokens, even with recompute: lower"
                    " --max-seq-length, or take a larger GPU or a smaller base model; checkpoints are kept"
                )

        def floating_point_ops(self, inputs: dict[str, Any]) -> int:
            return 0  # useful_flops counts them

    return UpdateTrainer


def knows(model: Any) -> bool:
    """Whether the layers of this model are those that the fast path was written for."""
    return model.config.model_type in FAMILIES and getattr(model.config, "hidden_act", None) == "silu"


def speed_up(trainer: Any, rows: Sequence[EncodedRow], exact: bool) -> dict[str, Any]:
    """Put an `update_trainer` on the fast path; returns which path that is, and why, for the manifest."""
    model = trainer.model.get_base_model()
    model.gradient_checkpointing_disable()  # the seed before may have needed it
    facts: dict[str, Any] = {"layers": f"TRL's own (fast ones exist for {', '.join(FAMILIES)})"}
    if knows(model):
        trainer.prefix = shared_prefix(rows)
        trainer.collate = partial(flat_batch, prefix=trainer.prefix)
        facts = {"layers": "no padding, fused LoRA and norms", "attention": use_flat_attention(model)}
        score_loss_tokens_only()
        fuse_lora(model)
        fuse_norms(model)
        if model.device.type == "cuda":
            fuse_elementwise(model)
            facts["layers"] += ", compiled SwiGLU and rotary embedding"
    facts |= {"shared_prefix_tokens": trainer.prefix, "rows_at_once_asked": trainer.rows_at_once}
    trainer.may_shrink = not exact
    effective, asked = trainer.args.per_device_train_batch_size, trainer.rows_at_once
    facts["rows_at_once_why"] = "--micro-batch exact"
    if not exact:
        trainer.rows_at_once, facts["rows_at_once_why"] = choose_rows(model, rows, trainer.prefix, effective, asked)
    say(
        f"each update of {effective} rows: {trainer.rows_at_once} at once ({facts['rows_at_once_why']});"
        f" {facts['layers']}; attention: {facts.get('attention', 'as loaded')};"
        f" first {trainer.prefix} tokens, the same in all rows, computed once"
    )
    return facts


def choose_rows(model: Any, rows: Sequence[EncodedRow], prefix: int, effective: int, asked: int) -> tuple[int, str]:
    """How many rows go at once, and why."""
    lengths = [len(row["input_ids"]) for row in rows]
    each = bytes_per_token(model.config.get_text_config(), model.dtype.itemsize) * (1 if knows(model) else 1.5)
    free = free_memory(model.device)
    fitting = rows_that_fit(lengths, prefix, effective, each, free)
    if fitting <= asked:
        return asked, f"{asked} asked, room for {fitting} by an estimate for {free / 2**30:.0f} GiB"
    return fitting, f"{asked} asked, room for {fitting} in {free / 2**30:.0f} GiB; --micro-batch exact keeps {asked}"


# --- what it came to ---------------------------------------------------------------------------------

FLOPS = (
    "4 x linear parameters of the frozen layers a token computed + 4 x output head a loss token:"
    " forward and input gradient; LoRA, attention, recompute and padding not counted"
)


def useful_flops(trainer: Any) -> float:
    """Arithmetic that the updates so far could not do without, by the formula `FLOPS`."""
    model = trainer.model.get_base_model()
    head = model.get_output_embeddings().weight
    outer = {id(head), id(model.get_input_embeddings().weight)}
    layers = sum(p.numel() for p in model.parameters() if p.ndim == 2 and not p.requires_grad and id(p) not in outer)
    return 4.0 * (layers * trainer.computed_tokens + head.numel() * trainer.loss_tokens)


def speed_report(trainer: Any, facts: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What the run's manifest says about its speed, beside tokens/s and peak memory."""
    return {
        **facts,
        "rows_at_once": trainer.rows_at_once,
        "recompute": trainer.recompute,
        "useful_tflops": round(useful_flops(trainer) / max(seconds, 1e-9) / 1e12, 4),
        "useful_flops_formula": FLOPS,
    }
