"""The layers of a model with LoRA adapters, in fewer passes over memory.

Linears that read the same input (query, key and value; gate and up) are one, with their adapters: the input is read
once instead of two or three times, and its gradient is one product instead of a sum. A norm is one kernel; on a GPU
rotary embedding and SwiGLU are compiled. For the layers of llama, mistral, qwen2 and qwen3, which are the same.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import accumulate, chain, pairwise
from typing import Any

# The linear layers that get an adapter: all of a llama-like block.
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# --- LoRA --------------------------------------------------------------------------------------------


class Pass:
    """Which adapters a pass through the base is for, and copies of their weights in the base's number type.

    Copies are as old as the last `renew`: an optimizer's step does not reach them by itself.
    """

    def __init__(self) -> None:
        self.adapters: Sequence[int] = (0,)  # their numbers among all that are trained together
        self.one_hot: Any = None  # [tokens, adapters of the pass]; None where there is but one
        self.own_columns: dict[int, Any] = {}
        # Dense copies are written by one kernel, blocks of a larger tensor one by one; mixed, all would be one by one.
        self.dense: list[tuple[Any, Any]] = []
        self.inside: list[tuple[Any, Any]] = []

    def begin(self, adapters: Sequence[int]) -> None:
        self.adapters, self.one_hot = adapters, None

    def shared(self, of_tokens: Any, dtype: Any) -> None:
        """The pass is for several adapters; token i is of the one numbered adapters[of_tokens[i]]."""
        from torch.nn.functional import one_hot

        self.one_hot = one_hot(of_tokens, len(self.adapters)).to(dtype)
        self.own_columns.clear()

    def own(self, width: int) -> Any:
        """[tokens, adapters x width]: 1 where the column is of the token's adapter, else 0. None with one adapter."""
        if self.one_hot is None:
            return None
        if width not in self.own_columns:
            self.own_columns[width] = self.one_hot.repeat_interleave(width, 1)
        return self.own_columns[width]

    def follow(self, copy: Any, weight: Any) -> None:
        """Keep the copy equal to the weight, from the next `renew` on."""
        (self.dense if copy.is_contiguous() else self.inside).append((copy, weight.detach()))

    def renew(self) -> None:
        """Follow the optimizer: weights are cast once an update, not in each linear and pass."""
        import torch

        for pairs in (self.dense, self.inside):
            if pairs:  # none where TRL's own layers run
                copies, weights = zip(*pairs)
                torch._foreach_copy_(copies, weights)


class Linears:
    """PEFT LoRA linears that read the same input, as one, for the adapters of all models.

    layers: these linears in each model; the models share their frozen weights, and all linears have one scale, and all
    or none a bias. PEFT casts the input of each to the adapter's float32 and back; here the small adapter is cast
    instead, which autocast does as well.
    """

    def __init__(self, layers: Sequence[Sequence[Any]], now: Pass):
        first = layers[0]
        self.now, self.scale = now, first[0].scaling["default"]
        self.sizes = [layer.base_layer.weight.shape[0] for layer in first]
        self.weight = stacked([layer.base_layer.weight for layer in first])
        self.bias = None if first[0].base_layer.bias is None else stacked([layer.base_layer.bias for layer in first])
        self.trained = [
            [p["default"].weight for layer in of_model for p in (layer.lora_A, layer.lora_B)] for of_model in layers
        ]
        self.copies = [self.room_for(weights) for weights in self.trained]

    def room_for(self, weights: Sequence[Any]) -> tuple[Any, Any]:
        """Where `Pass.renew` will put copies of one adapter's a1, b1, a2, b2, ...: all a one below the other, each b in
        its own block."""
        rank = weights[0].shape[0]
        a = self.weight.new_empty(rank * len(self.sizes), weights[0].shape[1])
        b = self.weight.new_zeros(sum(self.sizes), len(a))
        for i, (rows, columns) in enumerate(blocks(self.sizes, rank)):
            self.now.follow(a[columns], weights[2 * i])
            self.now.follow(b[rows, columns], weights[2 * i + 1])
        return a, b

    def __call__(self, x: Any) -> Any:
        """[..., in] to [..., outs side by side]."""
        copies, trained = (
            list(chain.from_iterable(of[i] for i in self.now.adapters)) for of in (self.copies, self.trained)
        )
        own = self.now.own(copies[0].shape[0])
        return lora_linear()(x, self.weight, self.bias, self.scale, own, copies, self.sizes, *trained)


def stacked(parameters: Sequence[Any]) -> Any:
    """The parameters one below the other in one tensor, of which they become views: memory is taken once."""
    import torch

    if len(parameters) == 1:
        return parameters[0]
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, whole.split([len(parameter) for parameter in parameters])):
        parameter.data = part
    return whole


def blocks(sizes: Sequence[int], rank: int) -> list[tuple[slice, slice]]:
    """Rows and columns of each linear's b among those of all."""
    ends = [0, *accumulate(sizes)]
    return [(slice(begin, end), slice(i * rank, (i + 1) * rank)) for i, (begin, end) in enumerate(pairwise(ends))]


@lru_cache(maxsize=1)
def lora_linear() -> Callable[..., Any]:
    """lora_linear()(x, weight, bias, scale, own, copies, sizes, *trained): frozen linears with their adapters.

    y = x W' + bias + scale (x A' * own) B' with the adapters' A one below the other, their B side by side. `own`:
    `Pass.own`. `copies` are A, B of each adapter in the number type of x (`Linears.room_for`); gradients go to
    `trained`, the float32 a1, b1, a2, b2, ... of each adapter, for linears of `sizes` outputs.
    """
    import torch

    def of_all(parts: Sequence[Any], dim: int) -> Any:
        return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)

    class LoraLinear(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, x: Any, weight: Any, bias: Any, scale: float, own: Any, copies: Sequence[Any],
            sizes: Sequence[int], *trained: Any,
        ) -> Any:  # fmt: skip
            flat = x.reshape(-1, x.shape[-1])
            a, b = of_all(copies[::2], 0), of_all(copies[1::2], 1)
            low = flat @ a.t()
            if own is not None:
                low *= own
            out = torch.nn.functional.linear(flat, weight, bias).addmm_(low, b.t(), alpha=scale)
            ctx.save_for_backward(flat, weight, own, a, b, low)
            ctx.scale, ctx.sizes, ctx.rank = scale, sizes, trained[0].shape[0]
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
            grad_a, grad_b = grad_low.t() @ flat, grad.t() @ low
            width = ctx.rank * len(ctx.sizes)
            of_adapters = zip(grad_a.split(width), grad_b.split(width, 1))
            grads = [
                part.float() * ctx.scale if ctx.scale != 1 else part.float()
                for of_a, of_b in of_adapters
                for rows, columns in blocks(ctx.sizes, ctx.rank)
                for part in (of_a[columns], of_b[rows, columns])
            ]
            return grad_x, None, None, None, None, None, None, *grads

    return LoraLinear.apply


# --- attention and MLP -------------------------------------------------------------------------------


def rotated(heads: Any, cos: Any, sin: Any, queries: int, norms: tuple[Any, Any, float] | None) -> tuple[Any, Any, Any]:
    """Queries, keys and values of heads [1, tokens, all heads, size]; queries and keys normed (qwen3) and rotated."""
    import torch
    from torch.nn.functional import rms_norm

    keys = (heads.shape[2] - queries) // 2
    query, key, value = heads.split((queries, keys, keys), 2)
    if norms is not None:
        of_query, of_key, epsilon = norms
        query = rms_norm(query, of_query.shape, of_query, epsilon)
        key = rms_norm(key, of_key.shape, of_key, epsilon)
    cos, sin = cos[:, :, None], sin[:, :, None]

    def turned(x: Any) -> Any:
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat((-right, left), -1) * sin

    # Of the values a view would do, and would keep all heads in memory until the backward pass.
    return turned(query), turned(key), value.contiguous()


def swiglu(both: Any) -> Any:
    """SwiGLU of gates and ups side by side."""
    from torch.nn.functional import silu

    gate, up = both.chunk(2, -1)
    return silu(gate) * up


def attend(
    attention: Any, project: Linears, out: Linears, turn: Callable[..., Any], hidden_states: Any,
    position_embeddings: Any, attention_mask: Any = None, past_key_values: Any = None, **asked: Any,
) -> tuple[Any, None]:  # fmt: skip
    """In place of an attention's own forward, for training: no cache, no dropout."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config, size = attention.config, attention.head_dim
    norms = None
    if hasattr(attention, "q_norm"):
        norms = attention.q_norm.weight, attention.k_norm.weight, attention.q_norm.variance_epsilon
    heads = project(hidden_states).unflatten(-1, (-1, size))
    heads_of_all = turn(heads, *position_embeddings, config.num_attention_heads, norms)
    query, key, value = (x.transpose(1, 2) for x in heads_of_all)
    window = config.sliding_window if config.model_type == "mistral" else getattr(attention, "sliding_window", None)
    seen, _ = ALL_ATTENTION_FUNCTIONS[config._attn_implementation](
        attention, query, key, value, attention_mask, scaling=attention.scaling, sliding_window=window, **asked
    )
    return out(seen.flatten(2)), None


def feed(widen: Linears, narrow: Linears, gated: Callable[..., Any], x: Any) -> Any:
    """In place of an MLP's own forward."""
    return narrow(gated(widen(x)))


@lru_cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled for any number of tokens (dimension 1 of its tensors), once for each set of other sizes."""
    import torch

    kernel = torch.compile(function, fullgraph=True)

    def call(*asked: Any) -> Any:
        for value in asked:
            if isinstance(value, torch.Tensor):
                torch._dynamo.maybe_mark_dynamic(value, 1)
        return kernel(*asked)

    return call


def join_linears(models: Sequence[Any], now: Pass, compile_elementwise: bool) -> None:
    """Put attention and MLP of the first PEFT model on `Linears`, for the adapters of all models."""
    gc.collect()  # an adapter group and its trainers hold each other, and the weights that an earlier one had stacked
    decoders = [model.get_base_model().get_decoder() for model in models]
    turn: Callable[..., Any] = compiled(rotated) if compile_elementwise else rotated
    gated: Callable[..., Any] = compiled(swiglu) if compile_elementwise else swiglu

    def linears(modules: Sequence[Any], *names: str) -> Linears:
        return Linears([[getattr(module, name) for name in names] for module in modules], now)

    for layers in zip(*(decoder.layers for decoder in decoders)):
        attentions, mlps = [layer.self_attn for layer in layers], [layer.mlp for layer in layers]
        project, out = linears(attentions, "q_proj", "k_proj", "v_proj"), linears(attentions, "o_proj")
        attentions[0].forward = partial(attend, attentions[0], project, out, turn)
        widen, narrow = linears(mlps, "gate_proj", "up_proj"), linears(mlps, "down_proj")
        mlps[0].forward = partial(feed, widen, narrow, gated)
    now.renew()


def fuse_norms(model: Any) -> None:
    """Each RMS norm as torch's own kernel."""
    from torch.nn.functional import rms_norm

    def kernel(norm: Any, x: Any) -> Any:
        return rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(kernel, module)
