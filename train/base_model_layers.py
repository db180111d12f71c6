"""The frozen base model as training passes through it: layers of llama, mistral, qwen2 and qwen3, and the loss.

These families share one design. Written out here it takes fewer passes over memory than the model's own code, which is
made for every use: linears that read the same input are one (train/fused_lora.py), a norm is one kernel, rotary
embedding and SwiGLU are compiled on a GPU, nothing is padded (train/padding_free.py), and only tokens with loss reach
the output head. Tests compare losses and gradients with those of TRL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from train.fused_lora import JoinedLinear, join_linears, lora_linear
from train.padding_free import FlatBatch, attention_kernel, flat_attention

TILE = 1 << 27  # logits that are in memory at once (float32: 0.5 GiB)


@dataclass
class Block:
    """One layer: attention and MLP."""

    project: JoinedLinear
    """query, key and value"""
    out: JoinedLinear
    widen: JoinedLinear
    """gate and up"""
    narrow: JoinedLinear
    norms: tuple[Any, Any]
    """before attention, before the MLP"""
    head_norms: tuple[Any, Any, float] | None
    """weights of the query and the key norm, and their epsilon (qwen3 only)"""
    attention: Any
    """the model's own module: sizes, scale, window"""

    @property
    def linears(self) -> list[JoinedLinear]:
        return [self.project, self.out, self.widen, self.narrow]


class Decoder:
    """A frozen model of `train.padding_free.FAMILIES`, passed through with the adapters of some students.

    targets: last names of the linears that have adapters.
    """

    def __init__(self, model: Any, targets: Sequence[str]):
        self.model, self.decoder = model, model.get_decoder()
        self.names = {module: name for name, module in model.named_modules()}
        self.blocks = [self.block(layer, targets) for layer in self.decoder.layers]
        self.attention, self.kernel = attention_kernel(model)
        self.recompute = False
        cuda = model.device.type == "cuda"
        self.rotate: Callable[..., Any] = compiled(split_and_rotate) if cuda else split_and_rotate
        self.gate: Callable[..., Any] = compiled(swiglu) if cuda else swiglu

    def block(self, layer: Any, targets: Sequence[str]) -> Block:
        """A layer of the model with its linears joined. The model's own weights become views of the joined ones."""
        attention, mlp = layer.self_attn, layer.mlp

        def join(module: Any, *names: str) -> JoinedLinear:
            linears = [getattr(module, name) for name in names]
            return join_linears([self.names[linear] for linear in linears], linears, targets)

        norms = None
        if hasattr(attention, "q_norm"):
            norms = attention.q_norm.weight, attention.k_norm.weight, attention.q_norm.variance_epsilon
        return Block(
            join(attention, "q_proj", "k_proj", "v_proj"), join(attention, "o_proj"),
            join(mlp, "gate_proj", "up_proj"), join(mlp, "down_proj"),
            (layer.input_layernorm, layer.post_attention_layernorm), norms, attention,
        )  # fmt: skip

    @property
    def linears(self) -> list[JoinedLinear]:
        """All joined linears, in the order in which a pass uses them."""
        return [linear for block in self.blocks for linear in block.linears]

    @property
    def head(self) -> Any:
        """The weights of the output head, [vocabulary, hidden size]."""
        return self.model.get_output_embeddings().weight

    def losses(self, batch: FlatBatch, pieces: Sequence[Any], scale: float) -> Any:
        """The loss of each student: the weighted sum of its tokens' cross entropies, or with soft labels of their KL
        divergences.

        pieces: `Adapters.pieces` of the students. scale: of the adapters' outputs.
        """
        import torch

        hidden = self.hidden(batch, iter(pieces), scale).index_select(0, batch.places)
        losses = token_losses()(hidden, self.head, batch.known_ids, batch.known_probabilities, batch.weights)
        return torch.zeros(len(batch.indices), device=losses.device).index_add(0, batch.student_of, losses)

    def hidden(self, batch: FlatBatch, pieces: Iterator[Any], scale: float) -> Any:
        """The last hidden state of every token, [tokens, hidden size]."""
        from torch.utils.checkpoint import checkpoint

        x = self.decoder.embed_tokens(batch.ids)
        rope = [angle[0] for angle in self.decoder.rotary_emb(x[None], batch.positions[None])]
        for block in self.blocks:
            pairs = [(next(pieces), next(pieces)) if linear.adapted else None for linear in block.linears]
            step = partial(self.pass_block, block, pairs, scale, batch, rope)
            x = checkpoint(step, x, use_reentrant=False) if self.recompute else step(x)
        return norm(self.decoder.norm, x)

    def pass_block(self, block: Block, pairs: Sequence[Any], scale: float, batch: FlatBatch, rope: Any, x: Any) -> Any:
        """One layer. x: [tokens, hidden size]. pairs: (A, B) of its four joined linears, None for one without."""
        layers = zip(block.linears, pairs)
        project, out, widen, narrow = (partial(linear, joined, pair, scale) for joined, pair in layers)
        attention = block.attention
        heads = project(norm(block.norms[0], x)).unflatten(-1, (-1, attention.head_dim))
        query, key, value = self.rotate(heads, *rope, attention.config.num_attention_heads, block.head_norms)
        attended = flat_attention(query, key, value, batch, self.kernel, attention.scaling, window_of(attention))
        x = x + out(attended.flatten(1))
        return x + narrow(self.gate(widen(norm(block.norms[1], x))))


def linear(joined: JoinedLinear, pair: Any, scale: float, x: Any) -> Any:
    """A joined linear with its adapters. pair: their A and B, or None."""
    import torch

    if pair is None:
        return torch.nn.functional.linear(x, joined.weight, joined.bias)
    return lora_linear()(x, joined.weight, joined.bias, scale, *pair)


def norm(module: Any, x: Any) -> Any:
    """An RMS norm in one kernel."""
    from torch.nn.functional import rms_norm

    return rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)


def window_of(attention: Any) -> int | None:
    """How many tokens a query sees at most, or None for all."""
    config = attention.config
    window: int | None = config.sliding_window if config.model_type == "mistral" else None
    return window or getattr(attention, "sliding_window", None)


# --- element by element ------------------------------------------------------------------------------


def split_and_rotate(
    heads: Any, cos: Any, sin: Any, queries: int, norms: tuple[Any, Any, float] | None
) -> tuple[Any, Any, Any]:
    """(queries, keys, values), each [tokens, heads, size]; queries and keys are normed (qwen3 only) and rotated.

    heads: [tokens, all heads, size], queries first. queries: number of query heads. norms: `Block.head_norms`.
    """
    import torch
    from torch.nn.functional import rms_norm

    keys = (heads.shape[1] - queries) // 2
    query, key, value = heads.split((queries, keys, keys), 1)
    if norms is not None:
        query_norm, key_norm, epsilon = norms
        query = rms_norm(query, query_norm.shape, query_norm, epsilon)
        key = rms_norm(key, key_norm.shape, key_norm, epsilon)
    cos, sin = cos[:, None], sin[:, None]

    def rotate(x: Any) -> Any:
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat((-right, left), -1) * sin

    # The values are copied: a view would keep all heads in memory until the backward pass.
    return rotate(query), rotate(key), value.contiguous()


def swiglu(both: Any) -> Any:
    """SwiGLU of [tokens, gates and ups side by side]."""
    from torch.nn.functional import silu

    gate, up = both.chunk(2, -1)
    return silu(gate) * up


def losses_of_logits(logits: Any, ids: Any, probabilities: Any, weights: Any) -> tuple[Any, Any, Any]:
    """The losses of `token_losses` and their gradient by the logits.

    logits: [tokens, vocabulary]. ids, probabilities, weights: as in `token_losses`. Returns three tensors:
    the losses, [tokens]; the gradient by all logits as if no token were known, [tokens, vocabulary], in the number type
    of the logits; the gradient by the logits of `ids`, [tokens, K], which the caller puts in its place.

    With q the student's probabilities, p the teacher's, and rest what is left of 1, the gradient by a token's logit is
    q - p where p is known, and q (1 - rest of p / rest of q) elsewhere.
    """
    import torch

    exact, weights = logits.float(), weights[:, None]
    total = exact.logsumexp(-1, keepdim=True)
    own = exact.gather(1, ids) - total
    known = probabilities > 0
    rest = (1 - probabilities.sum(1, keepdim=True)).clamp(min=0)
    own_rest = (1 - (own.exp() * known).sum(1, keepdim=True)).clamp(min=1e-7)
    losses = (torch.xlogy(probabilities, probabilities) - probabilities * own).sum(1, keepdim=True)
    losses = losses + torch.xlogy(rest, rest) - rest * own_rest.log()
    elsewhere = (1 - rest / own_rest) * weights
    at_ids = torch.where(known, (own.exp() - probabilities) * weights, own.exp() * elsewhere)
    return (losses * weights)[:, 0], exact.sub_(total).exp_().mul_(elsewhere).to(logits.dtype), at_ids


@lru_cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled once for any number of tokens (dimension 0 of its tensors) and each set of other sizes."""
    import torch

    kernel = torch.compile(function, fullgraph=True)

    def call(first: Any, *others: Any) -> Any:
        for value in (first, *others):
            if isinstance(value, torch.Tensor) and len(value) == len(first):
                torch._dynamo.maybe_mark_dynamic(value, 0)
        return kernel(first, *others)

    return call


@lru_cache(maxsize=1)
def token_losses() -> Callable[..., Any]:
    """The autograd function f(hidden, head, ids, probabilities, weights): at each token KL(teacher || student) times
    its weight, in nats. All tokens whose probabilities are not known are one outcome. Of a label that is a token, which
    has probability 1, that is the cross entropy.

    hidden: [tokens, hidden size]. head: [vocabulary, hidden size], frozen. ids, probabilities: [tokens, K] as in
    `FlatBatch`. weights: [tokens].

    Logits are made for some tokens at a time, and their gradient at once, so that they are never all in memory.
    """
    import torch

    class TokenLosses(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden: Any, head: Any, *labels: Any) -> Any:
            losses, grads = [], []
            size = max(1, TILE // len(head))
            kernel = compiled(losses_of_logits) if hidden.is_cuda else losses_of_logits
            for tile, ids, *others in zip(*(one.split(size) for one in (hidden, *labels))):
                loss, slope, at_ids = kernel(tile @ head.t(), ids, *others)
                losses.append(loss)
                grads.append(slope.scatter_(1, ids, at_ids.to(slope.dtype)) @ head)
            ctx.save_for_backward(torch.cat(grads))
            return torch.cat(losses)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            (slopes,) = ctx.saved_tensors
            return slopes * grad[:, None].to(slopes.dtype), None, None, None, None

    return TokenLosses.apply
