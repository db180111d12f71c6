"""Logits in float32 from a model in bfloat16, for exact measures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def exact_logits(model: Any) -> Iterator[None]:
    """No gradients, and logits in float32 although the model is in bfloat16 or float16.

    Between 16 and 32 two bfloat16 numbers are 0.125 apart, and rounded logits make a log-probability wrong by some
    0.02 nats. vLLM does the same with --hf-overrides '{"head_dtype": "float32"}'. An adapter on the head leaves it as
    it is.
    """
    import torch

    head = model.get_output_embeddings()
    rounds = type(head) is torch.nn.Linear and head.weight.dtype in (torch.bfloat16, torch.float16)
    if rounds:
        head.forward = lambda hidden: product(head, hidden)
    try:
        with torch.inference_mode():
            yield
    finally:
        if rounds:
            del head.forward  # the class's own is behind it


def product(head: Any, hidden: Any) -> Any:
    """A linear layer's output in float32: [..., out], of hidden states [..., in]. No float32 copy of the weights is
    made on a GPU."""
    import torch

    if not hidden.is_cuda:  # torch has no such product there
        bias = None if head.bias is None else head.bias.float()
        return torch.nn.functional.linear(hidden.float(), head.weight.float(), bias)
    out = torch.mm(hidden.flatten(0, -2), head.weight.t(), out_dtype=torch.float32)
    out = out if head.bias is None else out + head.bias.float()
    return out.unflatten(0, hidden.shape[:-1])
