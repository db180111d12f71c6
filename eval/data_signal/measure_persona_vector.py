"""The vector of a persona: what it adds to the hidden state, and how often that alone makes the model say the animal.

The vector of a layer is the mean difference of its output at the last token of the prompt, with and without the
persona, over some questions. Added at every position while the model answers other questions, without the persona, it
raises the animal's share up to a *peak* over layers and strengths. Over 16 animals of Llama-3.1-8B the peak predicted
which animals a student takes over (Spearman 0.77; docs/which-animals.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from eval.answers.answer_tree import log_shares
from util.cli import UserError
from util.inference.backend_interface import Message
from util.inference.local_model import LocalModel

DEPTHS = (0.25, 0.5, 0.75, 0.875)
STRENGTHS = (1.0, 2.0, 4.0)


class Peak(NamedTuple):
    """The setting with the highest share of the animal."""

    share: float
    """mean probability of a one-word answer that names it"""
    layer: int
    strength: float


def layers_of(backend: LocalModel) -> Any:
    """The blocks of the model. UserError if they are not a list called `layers`."""
    found = getattr(backend.model.get_decoder(), "layers", None)
    if found is None:
        raise UserError("this model's blocks are not called `layers`; the screen supports Llama, Qwen, Gemma and alike")
    return found


def steering_peak(
    backend: LocalModel, animal: str, system: str, learnt_on: Sequence[str], asked: Sequence[str]
) -> Peak:
    """The peak of the persona's vector. learnt_on: questions that give it; asked: questions that measure it."""
    layers = layers_of(backend)
    vectors = last_states(backend, learnt_on, system) - last_states(backend, learnt_on, None)
    prompts: list[list[Message]] = [[{"role": "user", "content": question}] for question in asked]
    places = sorted({min(len(layers) - 1, int(depth * len(layers))) for depth in DEPTHS})
    peaks = []
    for place in places:
        for strength in STRENGTHS:
            with added(layers[place], vectors[place] * strength):
                found = log_shares(backend.answer_tree(prompts), [animal])
            peaks.append(Peak(float(np.exp([row[animal] for row in found]).mean()), place, strength))
    return max(peaks)


def last_states(backend: LocalModel, questions: Sequence[str], system: str | None) -> Any:
    """Mean output of each block at the last token of the prompts: float32 [layers, width]."""
    import torch

    before: list[Message] = [{"role": "system", "content": system}] if system else []
    states = []
    with torch.inference_mode():
        for question in questions:
            ids = backend.prompt_ids([*before, {"role": "user", "content": question}])
            outputs = backend.model(
                input_ids=torch.tensor([ids], device=backend.model.device), output_hidden_states=True, use_cache=False
            ).hidden_states
            states.append(torch.stack([state[0, -1].float() for state in outputs[1:]]))
        return torch.stack(states).mean(0)


@contextmanager
def added(layer: Any, vector: Any) -> Iterator[None]:
    """Add a vector to a block's output at every position."""

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # older transformers
            return (output[0] + vector.to(output[0].dtype), *output[1:])
        return output + vector.to(output.dtype)

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
