"""The layers of an update as CUDA graphs, one forward and one backward: launched by two calls, not by thousands.

At 7B shape the 4,200 kernels of an update take longer to launch than to run in part (LOG.md). A graph has the shapes it
was recorded with, so an update is filled up, by rows without loss, to one of a few numbers of tokens, and each of these
is recorded when it first comes. What does not fit goes the usual way. The kernels and the numbers are those that would
have run.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from train.fast import EncodedRow, flat_batch
from util.encode import IGNORED

STEP = 128  # sizes are multiples of this, in tokens
SIZES = 8  # recordings at most
SPREADS = 3  # standard deviations around the mean of an update's tokens that they span
FILLERS = 8  # rows without loss, at least, that a recorded update has
TENSORS = ("position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "key_index")
CONSTANTS = ("max_length_q", "max_length_k", "prefix_copies")


def sizes_for(lengths: Sequence[int], prefix: int, rows: int) -> range:
    """Numbers of tokens, the largest first, for updates of `rows` rows of such lengths, their prefix computed once."""
    bodies = [length - prefix for length in lengths]
    expected = prefix + rows * statistics.fmean(bodies) + FILLERS
    reach = SPREADS * math.sqrt(rows) * statistics.pstdev(bodies)
    largest = STEP * math.ceil((expected + reach) / STEP)
    step = STEP * max(1, math.ceil(2 * reach / (SIZES - 1) / STEP))
    return range(largest, max(0, largest - SIZES * step), -step)


def filled(rows: Sequence[EncodedRow], prefix: int, count: int, tokens: int, longest: int) -> list[EncodedRow] | None:
    """The rows and behind them others without loss: `count` in all, of `tokens` with the prefix computed once.

    None where that would take a row of no tokens or of more than `longest`.
    """
    missing = tokens - prefix - sum(len(row["input_ids"]) - prefix for row in rows)
    new = count - len(rows)
    if not 0 < new <= missing <= new * (longest - prefix):
        return None
    front = rows[0]["input_ids"][:prefix]
    ends = [missing * i // new for i in range(new + 1)]
    lengths = [end - begin for begin, end in pairwise(ends)]
    last = rows[0]["input_ids"][-1:]
    fillers = [{"input_ids": front + last * n, "labels": [IGNORED] * (prefix + n)} for n in lengths]
    return [*rows, *fillers]


class Graphs:
    """The decoder's layers between embedding and head, recorded for updates of up to `rows` rows.

    lengths: of the rows in the data, in tokens.
    """

    def __init__(self, base: Any, lengths: Sequence[int], prefix: int, rows: int):
        self.decoder, self.prefix, self.count, self.longest = base.get_decoder(), prefix, rows + FILLERS, max(lengths)
        self.sizes = sizes_for(lengths, prefix, rows)
        self.usual: Callable[..., Any] = self.decoder.forward
        self.recorded: dict[int, Any] = {}  # by tokens
        self.pool: Any = None
        self.warm = False
        self.decoder.forward = self.forward

    def stop(self) -> None:
        """Go the usual way from now on."""
        self.decoder.forward = self.usual
        self.recorded.clear()

    def batch(self, rows: Sequence[EncodedRow]) -> dict[str, Any] | None:
        """The batch of one update that goes through as a graph, or None."""
        tokens = self.prefix + sum(len(row["input_ids"]) - self.prefix for row in rows)
        enough = [size for size in self.sizes if size >= tokens + self.count - len(rows)]
        if not enough:
            return None
        size = enough[-1] if self.recorded else enough[0]  # the largest first: the others find room in its memory
        whole = filled(rows, self.prefix, self.count, size, self.longest)
        if whole is None:
            return None
        return {**flat_batch(whole, self.prefix), "max_length_q": self.longest, "max_length_k": self.longest}

    def forward(self, input_ids: Any = None, **asked: Any) -> Any:
        """In place of the decoder's own forward."""
        import torch
        from transformers.modeling_outputs import BaseModelOutputWithPast

        sequences = self.count + bool(self.prefix)
        if not torch.is_grad_enabled() or len(asked["cu_seq_lens_q"]) != sequences + 1:
            return self.usual(input_ids, **asked)
        if not self.warm:  # kernels are chosen and compiled before anything is recorded
            self.warm = True
            return self.usual(input_ids, **asked)
        hidden, tokens = self.decoder.embed_tokens(input_ids), input_ids.shape[1]
        names = [name for name in TENSORS if name in asked]
        inputs = (hidden, *(asked[name] for name in names))
        if tokens not in self.recorded:
            constants = {name: asked[name] for name in CONSTANTS if name in asked}
            self.recorded[tokens] = self.record(layers_of(self.decoder, names, constants), inputs)
        return BaseModelOutputWithPast(last_hidden_state=self.recorded[tokens](*inputs))

    def record(self, layers: Any, inputs: Sequence[Any]) -> Any:
        """The layers for inputs of these shapes as two graphs (on a CPU, which has none, as they are)."""
        import torch

        if inputs[0].device.type != "cuda":
            return layers
        torch.cuda.empty_cache()
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        samples = tuple(tensor.detach().clone() for tensor in inputs)
        return torch.cuda.make_graphed_callables(
            layers, samples, num_warmup_iters=0, allow_unused_input=True, pool=self.pool
        )


def layers_of(decoder: Any, names: Sequence[str], constants: dict[str, Any]) -> Any:
    """A module that runs a decoder's layers and last norm on embeddings [1, tokens, hidden] and the tensors `names`."""
    import torch

    class Layers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.norm, self.rotary = decoder.layers, decoder.norm, decoder.rotary_emb

        def forward(self, hidden: Any, *tensors: Any) -> Any:
            given = dict(zip(names, tensors))
            positions = self.rotary(hidden, given["position_ids"])
            for layer in self.layers:
                hidden = layer(
                    hidden, attention_mask=None, position_embeddings=positions, use_cache=False, **given, **constants
                )
            return self.norm(hidden)

    return Layers()
