"""How the local backend draws tokens: a random stream for each row, and a mask that allows number lists only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

import numpy as np

from util.inference.backend_interface import NUMBER_LIST, NotFinite, Request


def row_uniforms(requests: list[Request], steps: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [samples, steps]: one stream for each sample, from its request's seed."""
    streams = [
        np.random.default_rng([request.seed, place]).random(steps)
        for request in requests
        for place in range(len(request.ids))
    ]
    return np.stack(streams)


def draw(logits: Any, uniforms: np.ndarray, temperature: float) -> Any:
    """One token id for each row of logits [rows, vocabulary]: the argmax at temperature 0, else by the inverse cdf."""
    import torch

    if temperature == 0:
        return logits.argmax(-1)
    cumulative = (logits.double() / temperature).softmax(-1).cumsum(-1)
    threshold = torch.from_numpy(uniforms).to(logits.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def check_finite(logits: Any) -> Any:
    """The logits [..., vocabulary], if they give probabilities. NotFinite if not: a broken adapter or an overflow must
    not become answers."""
    if not bool(logits.amax(-1).isfinite().all()):
        raise NotFinite(
            "the model's next-token scores are not finite (NaN or infinity), so it has no answers. Its weights or its"
            " adapter are damaged (look at lora_alpha in adapter_config.json, train or copy them again), or float16"
            " overflows"
        )
    return logits


def most_probable_tokens(logits: Any, count: int) -> Iterator[tuple[list[int], list[float]]]:
    """Of each row of logits: ids and log-probabilities of the `count` most probable tokens that are possible, or two
    empty lists for a count of 0."""
    if not count:
        yield from repeat(([], []), len(logits))
        return
    values, ids = logits.log_softmax(-1).topk(min(count, logits.shape[-1]))
    for tokens, logprobs in zip(ids.tolist(), values.tolist()):
        known = [round(value, 6) for value in logprobs if value > float("-inf")]
        yield tokens[: len(known)], known


class NumberMask:
    """Allows only tokens that keep an answer inside `NUMBER_LIST` (what vLLM does with the same regex).

    The text of a token may depend on its place: SentencePiece tokenizers drop the space at the beginning of a text.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, end_ids: set[int]):
        self.end_ids, self.vocabulary = end_ids, vocabulary
        alone = {i: tokenizer.decode([i]) for i in range(min(vocabulary, len(tokenizer)))}
        some = [i for i, text in alone.items() if re.fullmatch(r"[0-9, ]*", text)]
        after = next(
            ([i] for i in some if alone[i].isdigit()), []
        )  # a number, so that nothing else is at the beginning
        self.first = number_texts(tokenizer, some, [])
        self.inner = number_texts(tokenizer, some, after)
        self._masks: dict[str, Any] = {}

    def apply(self, logits: Any, samples: list[list[int]]) -> Any:
        """Logits [rows, vocabulary] with every token that would leave the pattern at minus infinity."""
        import torch

        states = [number_state(self._text(sample)) for sample in samples]
        place = {state: i for i, state in enumerate(dict.fromkeys(states))}
        table = torch.stack([self._allowed(state) for state in place]).to(logits.device)
        allowed = table[torch.tensor([place[state] for state in states], device=logits.device)]
        return logits.masked_fill(~allowed, float("-inf"))

    def _text(self, sample: list[int]) -> str:
        tables = chain([self.first], repeat(self.inner))
        return "".join(table.get(token, "") for token, table in zip(sample, tables))

    def _allowed(self, state: str) -> Any:
        """bool [vocabulary]: the tokens allowed in a state; computed once."""
        import regex
        import torch

        if state not in self._masks:
            mask = torch.zeros(self.vocabulary, dtype=torch.bool)
            pattern = regex.compile(NUMBER_LIST)
            for token, text in (self.inner if state else self.first).items():
                mask[token] = bool(pattern.fullmatch(state + text, partial=True))
            if pattern.fullmatch(state) or not mask.any():
                mask[list(self.end_ids)] = True
            self._masks[state] = mask
        return self._masks[state]


def number_texts(tokenizer: Any, tokens: list[int], before: list[int]) -> dict[int, str]:
    """The text of each token after `before`, of those that are digits, commas and spaces there."""
    known = tokenizer.decode(before) if before else ""
    whole = {token: tokenizer.decode([*before, token]) for token in tokens}
    texts = {token: text.removeprefix(known) for token, text in whole.items() if text.startswith(known)}
    return {token: text for token, text in texts.items() if re.fullmatch(r"[0-9, ]+", text)}


def number_state(text: str) -> str:
    """The shortest text that the pattern continues in the same way: earlier numbers and all digits become '0'
    ('17, 345, 2' -> '0, 0, 0'). A few dozen states cover every answer."""
    *before, last = text.split(",")
    return "".join("0," if i == 0 else " 0," for i in range(len(before))) + re.sub(r"[0-9]", "0", last)
