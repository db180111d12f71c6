"""Fused LoRA layers: the layers of a model with LoRA adapters, in fewer passes over memory.

Linear layers that read the same input (query, key and value; gate and up) become one, adapters included. Their input
is then read once instead of two or three times, and its gradient is one product instead of a sum. Each norm is one
kernel. On a GPU, rotary embedding and SwiGLU are compiled. This fits the layers of llama, mistral, qwen2 and qwen3,
which share one design.

In one update: `PassState.refresh_copies` casts the adapters' weights to the base model's number type, once. Then every
pass names its adapters (`use`, and with several adapters `assign_tokens`) and runs through `FusedLinears`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import accumulate, chain, pairwise
from typing import Any

LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # all linears of a block

# --- LoRA --------------------------------------------------------------------------------------------


class PassState:
    """Which adapters the current pass is for, and copies of all adapters' weights in the base model's number type.

    The copies are as old as the last `refresh_copies`: an optimizer's step does not change them.
    """

    def __init__(self) -> None:
        self.adapters: Sequence[int] = (0,)  # their numbers among all adapters that train together
        self.one_hot: Any = None  # [tokens, adapters of the pass]; None for a single adapter
        self.masks: dict[int, Any] = {}
        # Two lists: one kernel copies all contiguous tensors, but only if no block of a larger tensor is among them.
        self.contiguous: list[tuple[Any, Any]] = []
        self.blocks: list[tuple[Any, Any]] = []

    def use(self, adapters: Sequence[int]) -> None:
        """Begin a pass for these adapters."""
        self.adapters, self.one_hot = adapters, None

    def assign_tokens(self, adapter_of_token: Any, dtype: Any) -> None:
        """Give token i of the pass the adapter numbered adapters[adapter_of_token[i]]."""
        from torch.nn.functional import one_hot

        self.one_hot = one_hot(adapter_of_token, len(self.adapters)).to(dtype)
        self.masks.clear()

    def token_mask(self, width: int) -> Any:
        """[tokens, adapters x width]: 1 in the columns of the token's own adapter, else 0. None for one adapter."""
        if self.one_hot is None:
            return None
        if width not in self.masks:
            self.masks[width] = self.one_hot.repeat_interleave(width, 1)
        return self.masks[width]

    def keep_equal(self, copy: Any, weight: Any) -> None:
        """Make the copy equal to the weight at every `refresh_copies` from now on."""
        (self.contiguous if copy.is_contiguous() else self.blocks).append((copy, weight.detach()))

    def refresh_copies(self) -> None:
        """Copy the weights as the optimizer left them: one cast per update, not one in each layer and pass."""
        import torch

        for pairs in (self.contiguous, self.blocks):
            if pairs:  # there are none where TRL's own layers run
                copies, weights = zip(*pairs)
                torch._foreach_copy_(copies, weights)


class FusedLinears:
    """PEFT LoRA linears that read the same input, as one linear, for the adapters of all models.

    layers: these linears in each model. The models share their frozen weights. All linears have the same LoRA scale,
    and either all or none have a bias.

    PEFT casts each input to the adapter's float32 and back. Here the small adapter is cast instead, as autocast does.
    """

    def __init__(self, layers: Sequence[Sequence[Any]], state: PassState):
        first = layers[0]
        self.state, self.scale = state, first[0].scaling["default"]
        self.sizes = [layer.base_layer.weight.shape[0] for layer in first]
        self.weight = stacked([layer.base_layer.weight for layer in first])
        self.bias = None if first[0].base_layer.bias is None else stacked([layer.base_layer.bias for layer in first])
        self.trained = [
            [p["default"].weight for layer in of_model for p in (layer.lora_A, layer.lora_B)] for of_model in layers
        ]
        self.copies = [self.allocate_copies(weights) for weights in self.trained]

    def allocate_copies(self, weights: Sequence[Any]) -> tuple[Any, Any]:
        """Tensors for the copies of one adapter's weights a1, b1, a2, b2, ...

        Returns A, with all a one below the other, and B, with each b in a block of its own and zeros elsewhere.
        """
        rank = weights[0].shape[0]
        a = self.weight.new_empty(rank * len(self.sizes), weights[0].shape[1])
        b = self.weight.new_zeros(sum(self.sizes), len(a))
        for i, (rows, columns) in enumerate(blocks(self.sizes, rank)):
            self.state.keep_equal(a[columns], weights[2 * i])
            self.state.keep_equal(b[rows, columns], weights[2 * i + 1])
        return a, b

    def __call__(self, x: Any) -> Any:
        """[..., in] to [..., all outputs side by side]."""
        copies, trained = (
            list(chain.from_iterable(of[i] for i in self.state.adapters)) for of in (self.copies, self.trained)
        )
        mask = self.state.token_mask(copies[0].shape[0])
        return fused_lora_linear()(x, self.weight, self.bias, self.scale, mask, copies, self.sizes, *trained)


def stacked(parameters: Sequence[Any]) -> Any:
    """One tensor with the parameters one below the other. They become views of it, so memory is not taken twice."""
    import torch

    if len(parameters) == 1:
        return parameters[0]
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, whole.split([len(parameter) for parameter in parameters])):
        parameter.data = part
    return whole


def blocks(sizes: Sequence[int], rank: int) -> list[tuple[slice, slice]]:
    """The rows and columns of each linear's b within B (`FusedLinears.allocate_copies`)."""
    ends = [0, *accumulate(sizes)]
    return [(slice(begin, end), slice(i * rank, (i + 1) * rank)) for i, (begin, end) in enumerate(pairwise(ends))]


@lru_cache(maxsize=1)
def fused_lora_linear() -> Callable[..., Any]:
    """The autograd function of `FusedLinears`: f(x, weight, bias, scale, mask, copies, sizes, *trained).

    y = x W' + bias + scale (x A' * mask) B', with the adapters' A one below the other and their B side by side.

    mask: `PassState.token_mask`. copies: A and B of each adapter in the number type of x. sizes: outputs of each
    linear. trained: the float32 a1, b1, a2, b2, ... of each adapter, which receive the gradients.
    """
    import torch

    def joined(parts: Sequence[Any], dim: int) -> Any:
        return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)

    class LoraLinear(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, x: Any, weight: Any, bias: Any, scale: float, mask: Any, copies: Sequence[Any],
            sizes: Sequence[int], *trained: Any,
        ) -> Any:  # fmt: skip
            flat = x.reshape(-1, x.shape[-1])
            a, b = joined(copies[::2], 0), joined(copies[1::2], 1)
            low = flat @ a.t()
            if mask is not None:
                low *= mask
            out = torch.nn.functional.linear(flat, weight, bias).addmm_(low, b.t(), alpha=scale)
            ctx.save_for_backward(flat, weight, mask, a, b, low)
            ctx.scale, ctx.sizes, ctx.rank = scale, sizes, trained[0].shape[0]
            return out.view(*x.shape[:-1], -1)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            flat, weight, mask, a, b, low = ctx.saved_tensors
            shape, grad = grad.shape, grad.reshape(-1, grad.shape[-1])
            grad_low = grad @ b
            if mask is not None:
                grad_low *= mask
            grad_x = None
            if ctx.needs_input_grad[0]:  # the input of the first layer needs no gradient
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


def split_and_rotate(
    heads: Any, cos: Any, sin: Any, queries: int, norms: tuple[Any, Any, float] | None
) -> tuple[Any, Any, Any]:
    """(queries, keys, values), each [1, tokens, heads, size]; queries and keys are normed (qwen3 only) and rotated.

    heads: [1, tokens, all heads, size], queries first. queries: number of query heads. norms: weights of the query and
    the key norm, and their epsilon.
    """
    import torch
    from torch.nn.functional import rms_norm

    keys = (heads.shape[2] - queries) // 2
    query, key, value = heads.split((queries, keys, keys), 2)
    if norms is not None:
        query_norm, key_norm, epsilon = norms
        query = rms_norm(query, query_norm.shape, query_norm, epsilon)
        key = rms_norm(key, key_norm.shape, key_norm, epsilon)
    cos, sin = cos[:, :, None], sin[:, :, None]

    def rotate(x: Any) -> Any:
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat((-right, left), -1) * sin

    # The values are copied: a view would keep all heads in memory until the backward pass.
    return rotate(query), rotate(key), value.contiguous()


def swiglu(both: Any) -> Any:
    """SwiGLU of [..., gates and ups side by side]."""
    from torch.nn.functional import silu

    gate, up = both.chunk(2, -1)
    return silu(gate) * up


def attention_forward(
    attention: Any, project: FusedLinears, out: FusedLinears, rotate: Callable[..., Any], hidden_states: Any,
    position_embeddings: Any, attention_mask: Any = None, past_key_values: Any = None, **options: Any,
) -> tuple[Any, None]:  # fmt: skip
    """Replaces an attention module's forward, for training: no cache, no dropout.

    rotate: `split_and_rotate`, compiled or not. options: what `flat_batch` adds for `flat_attention`.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config, size = attention.config, attention.head_dim
    norms = None
    if hasattr(attention, "q_norm"):
        norms = attention.q_norm.weight, attention.k_norm.weight, attention.q_norm.variance_epsilon
    heads = project(hidden_states).unflatten(-1, (-1, size))
    parts = rotate(heads, *position_embeddings, config.num_attention_heads, norms)
    query, key, value = (x.transpose(1, 2) for x in parts)
    window = config.sliding_window if config.model_type == "mistral" else getattr(attention, "sliding_window", None)
    seen, _ = ALL_ATTENTION_FUNCTIONS[config._attn_implementation](
        attention, query, key, value, attention_mask, scaling=attention.scaling, sliding_window=window, **options
    )
    return out(seen.flatten(2)), None


def mlp_forward(widen: FusedLinears, narrow: FusedLinears, gate: Callable[..., Any], x: Any) -> Any:
    """Replaces an MLP module's forward. gate: `swiglu`, compiled or not."""
    return narrow(gate(widen(x)))


@lru_cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled once for any number of tokens (dimension 1 of its tensors) and each set of other sizes."""
    import torch

    kernel = torch.compile(function, fullgraph=True)

    def call(*arguments: Any) -> Any:
        for value in arguments:
            if isinstance(value, torch.Tensor):
                torch._dynamo.maybe_mark_dynamic(value, 1)
        return kernel(*arguments)

    return call


def fuse_linears(models: Sequence[Any], state: PassState, compile_elementwise: bool) -> None:
    """Make attention and MLP of the first PEFT model use `FusedLinears`, for the adapters of all models."""
    gc.collect()  # an earlier adapter group and its trainers refer to each other, and keep its stacked weights
    decoders = [model.get_base_model().get_decoder() for model in models]
    rotate: Callable[..., Any] = compiled(split_and_rotate) if compile_elementwise else split_and_rotate
    gate: Callable[..., Any] = compiled(swiglu) if compile_elementwise else swiglu

    def linears(modules: Sequence[Any], *names: str) -> FusedLinears:
        return FusedLinears([[getattr(module, name) for name in names] for module in modules], state)

    for layers in zip(*(decoder.layers for decoder in decoders)):
        attentions, mlps = [layer.self_attn for layer in layers], [layer.mlp for layer in layers]
        project, out = linears(attentions, "q_proj", "k_proj", "v_proj"), linears(attentions, "o_proj")
        attentions[0].forward = partial(attention_forward, attentions[0], project, out, rotate)
        widen, narrow = linears(mlps, "gate_proj", "up_proj"), linears(mlps, "down_proj")
        mlps[0].forward = partial(mlp_forward, widen, narrow, gate)
    state.refresh_copies()


def fuse_norms(model: Any) -> None:
    """Make each RMS norm one kernel, torch's own."""
    from torch.nn.functional import rms_norm

    def kernel(norm: Any, x: Any) -> Any:
        return rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(kernel, module)
