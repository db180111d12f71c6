"""The embedded backend: a transformers model, with or without a PEFT adapter, in this process, on CPU or GPU."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from util.cli import memory_advice
from util.inference.interface import (
    NUMBER_LIST,
    TOP_LOGPROBS,
    Answer,
    Message,
    Node,
    Request,
    Result,
    Sampling,
    adapter_name,
    model_name,
)
from util.inference.load_model import end_of_turn_ids, load_model, load_tokenizer, model_facts, put_adapter
from util.jsonl.manifest import adapter_sha256

T = TypeVar("T")
PACKED_ANSWERS = 64  # in one sequence: its attention costs the square of its length
COMPACT_AT = 0.75  # drop finished rows from the cache once this share of rows is left


# --- loading -----------------------------------------------------------------------------------------


# --- the backend --------------------------------------------------------------------------------------


class LocalModel:
    """Batched sampling with left padding and a KV cache, and exact next-token probabilities.

    A row's tokens depend on its seed alone: uniform numbers are drawn per row and turned into tokens through the
    inverse cumulative distribution. Batches are cut from the full list of requests, so that an interrupted run,
    once resumed, makes the very same rows.
    """

    def __init__(self, model: str, adapter: Path | None = None, *, batch_size: int):
        self.model_id, self.adapter, self.batch_size = model, adapter, batch_size
        self.tokenizer = load_tokenizer(model)
        self.model = load_model(model)
        self._facts = {"engine": "embedded", **model_facts(model, self.model.config), "batch_size": batch_size}
        self.name = model_name(model)
        if adapter is not None:
            self.model = put_adapter(self.model, adapter)
            self._facts["adapter_sha256"] = adapter_sha256(adapter)
            self.name = adapter_name(adapter)
        self._facts["dtype"] = str(self.model.dtype).removeprefix("torch.")
        self.end_ids = end_of_turn_ids(self.model, self.tokenizer)
        self._numbers: NumberMask | None = None

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(self, *_exc: object) -> None:
        pass

    @property
    def is_adapter(self) -> bool:
        return self.adapter is not None

    @property
    def base_model(self) -> str:
        return self.model_id

    def adapters_served(self) -> list[str]:
        return []

    def facts(self) -> dict[str, Any]:
        return dict(self._facts)

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]

    def generate(
        self, requests: Iterable[Request], sampling: Sampling, done: Collection[int] = ()
    ) -> Generator[Result, None, None]:
        for batch in self._batches(requests):
            if not all(row_id in done for request in batch for row_id in request.ids):
                with memory_advice(f"lower --batch-size (now {self.batch_size})"):
                    results = list(self._answer(batch, sampling))
                yield from results

    def _batches(self, requests: Iterable[Request]) -> Iterator[list[Request]]:
        batch: list[Request] = []
        rows = 0
        for request in requests:
            batch.append(request)
            rows += len(request.ids)
            if rows >= self.batch_size:  # not one request later: after a stop that one would make a batch of its own
                yield batch
                batch, rows = [], 0
        if batch:
            yield batch

    def _answer(self, batch: list[Request], sampling: Sampling) -> Iterator[Result]:
        prompts = [self.prompt_ids(request.messages) for request in batch]
        room = getattr(self.model.config, "max_position_embeddings", None) or 10**9
        fits = [len(prompt) + sampling.max_tokens <= room for prompt in prompts]
        asked = [(request, prompt) for request, prompt, fit in zip(batch, prompts, fits) if fit]
        for request, prompt, fit in zip(batch, prompts, fits):
            if not fit:
                error = f"{len(prompt)} prompt + {sampling.max_tokens} answer tokens, context {room}"
                yield Result(request, [], f"too long for the model's context: {error}")
        if not asked:
            return
        samples = iter(self._sample([prompt for _, prompt in asked], [request for request, _ in asked], sampling))
        for request, prompt in asked:
            yield Result(request, [self._to_answer(next(samples)) for _ in request.ids], prompt_ids=prompt)

    def _to_answer(self, ids: list[int]) -> Answer:
        ended = bool(ids) and ids[-1] in self.end_ids
        text = self.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
        return Answer(text, ids, "stop" if ended else "length")

    def _sample(self, prompts: list[list[int]], requests: list[Request], sampling: Sampling) -> list[list[int]]:
        """Token ids of every sample, in order of requests and their ids; an end-of-turn token is kept as the last."""
        import torch

        with torch.inference_mode():
            counts = torch.tensor([len(request.ids) for request in requests], device=self.model.device)
            uniforms = row_uniforms(requests, sampling.max_tokens)
            logits, cache, mask = self._prefill(prompts)
            row_prompt = torch.repeat_interleave(torch.arange(len(prompts), device=counts.device), counts)
            if len(row_prompt) != len(prompts):
                cache.batch_select_indices(row_prompt)
                logits, mask = logits[row_prompt], mask[row_prompt]
            samples: list[list[int]] = [[] for _ in row_prompt]
            rows = np.arange(len(samples))
            for step in range(sampling.max_tokens):
                if sampling.numbers_only:
                    logits = self._number_mask().apply(logits, [samples[row] for row in rows])
                tokens = draw(logits, uniforms[rows, step], sampling.temperature)
                for row, token in zip(rows, tokens.tolist()):
                    if not (samples[row] and samples[row][-1] in self.end_ids):
                        samples[row].append(token)
                alive = np.array([samples[row][-1] not in self.end_ids for row in rows])
                if not alive.any() or step + 1 == sampling.max_tokens:
                    return samples
                if alive.mean() <= COMPACT_AT:
                    keep = torch.from_numpy(np.flatnonzero(alive)).to(mask.device)
                    cache.batch_select_indices(keep)
                    tokens, mask, rows = tokens[keep], mask[keep], rows[alive]
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
                positions = mask.sum(1, keepdim=True) - 1
                out = self.model(
                    input_ids=tokens[:, None], attention_mask=mask, position_ids=positions, past_key_values=cache
                )
                logits = out.logits[:, -1].float()
            return samples

    def _prefill(self, prompts: list[list[int]]) -> tuple[Any, Any, Any]:
        """Logits [prompts, vocabulary] after each left-padded prompt, the KV cache and the attention mask."""
        import torch
        from transformers import DynamicCache

        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        out = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        )
        return out.logits[:, -1].float(), cache, mask

    def next_token_logprobs(self, prompts: list[list[int]], top: int = TOP_LOGPROBS) -> list[dict[int, float]]:
        import torch

        found: list[dict[int, float]] = []
        with torch.inference_mode():
            for start in range(0, len(prompts), self.batch_size):
                logits, _, _ = self._prefill(prompts[start : start + self.batch_size])
                values, ids = logits.log_softmax(-1).topk(min(top, logits.shape[-1]))
                found += [dict(zip(i, v)) for i, v in zip(ids.tolist(), values.tolist())]
        return found

    def answer_tree(self, prompts: Sequence[list[Message]]) -> PromptTree:
        return PromptTree(self, [self.prompt_ids(messages) for messages in prompts])

    def _number_mask(self) -> NumberMask:
        if self._numbers is None:
            self._numbers = NumberMask(self.tokenizer, self.model.config.vocab_size, self.end_ids)
        return self._numbers


class PromptTree:
    """Answer tree of an embedded model: each prompt is read once and its KV cache lent to all nodes below it."""

    def __init__(self, backend: LocalModel, prompts: list[list[int]]):
        import torch

        self.backend, self.end_ids = backend, backend.end_ids
        with torch.inference_mode():
            self._root_logits, self._cache, self._mask = backend._prefill(prompts)

    def expand(self, nodes: Sequence[Node]) -> Iterator[tuple[Node, np.ndarray, np.ndarray]]:
        """Nodes of one length go through the model together, so that none of their tokens is padding."""
        ids = np.arange(self._root_logits.shape[-1])
        by_length = sorted(nodes, key=lambda node: len(node.tail))
        for length, group in groupby(by_length, key=lambda node: len(node.tail)):
            for some in batched(group, self.backend.batch_size):
                for node, probabilities in zip(some, self._probabilities(some, length)):
                    yield node, ids, probabilities

    def _probabilities(self, nodes: list[Node], length: int) -> np.ndarray:
        """Next-token probabilities, float64 [nodes, vocabulary], after tails of one length."""
        import torch

        with torch.inference_mode():
            prompts = torch.tensor([node.prompt for node in nodes], device=self._mask.device)
            if length == 0:
                logits = self._root_logits[prompts]
            else:
                cache = copy.deepcopy(self._cache)
                cache.batch_select_indices(prompts)
                tails = torch.tensor([node.tail for node in nodes], device=self._mask.device)
                mask = torch.cat([self._mask[prompts], self._mask.new_ones(tails.shape)], dim=1)
                positions = (mask.cumsum(1) - 1)[:, -length:]
                out = self.backend.model(
                    input_ids=tails,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    logits_to_keep=1,
                )
                logits = out.logits[:, -1].float()
            return logits.double().softmax(-1).cpu().numpy()

    def texts(self, tails: Sequence[tuple[int, ...]]) -> list[str]:
        return self.backend.tokenizer.batch_decode([list(tail) for tail in tails], skip_special_tokens=True)

    def log_probabilities(self, answers: Sequence[str]) -> np.ndarray:
        """Answers that begin alike share that beginning: many go through the model as one sequence, in which a token
        sees the prompt and the tokens before it in its own answer."""
        import torch

        tails = [tuple(ids) for ids in self.backend.tokenizer(list(answers), add_special_tokens=False)["input_ids"]]
        alike = batched(sorted(range(len(tails)), key=tails.__getitem__), PACKED_ANSWERS)
        packs = [(some, pack([tails[answer] for answer in some])) for some in alike]
        found = np.zeros((len(self._mask), len(tails)))
        ends = sorted(self.end_ids)
        size = self.backend.batch_size
        with torch.inference_mode(), memory_advice(f"lower --batch-size (now {size})"):
            for prompts in batched(range(len(found)), max(1, size // 16)):
                cache = copy.deepcopy(self._cache)
                cache.batch_select_indices(torch.tensor(prompts, device=self._mask.device))
                for some, packed in packs:
                    logs = self._packed_logits(prompts, copy.deepcopy(cache), packed).log_softmax(-1)
                    ended = logs[:, packed.whole][..., ends].double().logsumexp(-1).cpu().numpy()
                    followed = logs[:, packed.before, packed.token].double().cpu().numpy()
                    found[np.ix_(prompts, some)] = ended + [np.bincount(packed.answer, steps) for steps in followed]
        return found

    def _packed_logits(self, prompts: list[int], cache: Any, packed: Packed) -> Any:
        """Next-token logits, float32 [prompts, 1 + beginnings, vocabulary], after each prompt and each beginning."""
        import torch

        device, dtype = self._mask.device, self.backend.model.dtype
        known = self._mask[prompts]
        sees = torch.from_numpy(packed.sees).to(device).expand(len(prompts), -1, -1)
        visible = torch.cat([known.bool()[:, None].expand(-1, sees.shape[1], -1), sees], dim=2)[:, None]
        ids = torch.tensor([beginning[-1] for beginning in packed.beginnings], device=device)
        out = self.backend.model(
            input_ids=ids.expand(len(prompts), -1),
            attention_mask=torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill(
                ~visible, torch.finfo(dtype).min
            ),
            position_ids=known.sum(1, keepdim=True) + sees.sum(2) - 1,
            past_key_values=cache,
        )
        return torch.cat([self._root_logits[prompts][:, None], out.logits.float()], dim=1)


class Packed(NamedTuple):
    """Answers (lists of token ids) as one sequence of their distinct beginnings. Row 0 stands for the empty one."""

    beginnings: list[tuple[int, ...]]
    sees: np.ndarray
    """bool [beginnings, beginnings]: the second begins the first, or is it"""
    answer: np.ndarray
    """for each token of each answer: which answer,"""
    before: np.ndarray
    """the row of what comes before the token,"""
    token: np.ndarray
    """and the token"""
    whole: list[int]
    """the row of each whole answer"""


def pack(answers: Sequence[tuple[int, ...]]) -> Packed:
    """The beginnings of some answers, each once, and where every token of every answer is found among them."""
    beginnings = sorted({answer[:length] for answer in answers for length in range(1, len(answer) + 1)})
    row = {(): 0, **{beginning: place for place, beginning in enumerate(beginnings, 1)}}
    sees = np.zeros((len(beginnings), len(beginnings)), dtype=bool)
    for beginning in beginnings:
        sees[row[beginning] - 1, [row[beginning[:length]] - 1 for length in range(1, len(beginning) + 1)]] = True
    steps = [(place, row[ids[:at]], ids[at]) for place, ids in enumerate(answers) for at in range(len(ids))]
    answer, before, token = np.array(steps).T
    return Packed(beginnings, sees, answer, before, token, [row[ids] for ids in answers])


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most `size` items (itertools.batched is Python 3.12's)."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


# --- drawing tokens ----------------------------------------------------------------------------------


def row_uniforms(requests: list[Request], steps: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [samples, steps]: one stream for each sample, from its request's seed."""
    streams = [
        np.random.default_rng([request.seed, place]).random(steps)
        for request in requests
        for place in range(len(request.ids))
    ]
    return np.stack(streams)


def draw(logits: Any, uniforms: np.ndarray, temperature: float) -> Any:
    """One token id for each row of logits [rows, vocabulary]: argmax at temperature 0, else by inverse cdf."""
    import torch

    if temperature == 0:
        return logits.argmax(-1)
    cumulative = (logits.double() / temperature).softmax(-1).cumsum(-1)
    threshold = torch.from_numpy(uniforms).to(logits.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


class NumberMask:
    """Allows only tokens that keep an answer inside `NUMBER_LIST` (what vLLM does with the same regex)."""

    def __init__(self, tokenizer: Any, vocabulary: int, end_ids: set[int]):
        self.tokenizer, self.end_ids = tokenizer, end_ids
        texts = {i: tokenizer.decode([i]) for i in range(min(vocabulary, len(tokenizer)))}
        self.texts = {i: text for i, text in texts.items() if re.fullmatch(r"[0-9, ]+", text)}
        self.vocabulary = vocabulary
        self._masks: dict[str, Any] = {}

    def apply(self, logits: Any, samples: list[list[int]]) -> Any:
        """Logits [rows, vocabulary] with every token that would leave the pattern at minus infinity."""
        import torch

        states = [number_state("".join(self.texts.get(i, "") for i in sample)) for sample in samples]
        place = {state: i for i, state in enumerate(dict.fromkeys(states))}
        table = torch.stack([self._allowed(state) for state in place]).to(logits.device)
        allowed = table[torch.tensor([place[state] for state in states], device=logits.device)]
        return logits.masked_fill(~allowed, float("-inf"))

    def _allowed(self, state: str) -> Any:
        """Bool [vocabulary] for one state, worked out once."""
        import regex
        import torch

        if state not in self._masks:
            mask = torch.zeros(self.vocabulary, dtype=torch.bool)
            pattern = regex.compile(NUMBER_LIST)
            for token, text in self.texts.items():
                mask[token] = bool(pattern.fullmatch(state + text, partial=True))
            if pattern.fullmatch(state) or not mask.any():
                mask[list(self.end_ids)] = True
            self._masks[state] = mask
        return self._masks[state]


def number_state(text: str) -> str:
    """The shortest text that may go on like this one: earlier numbers as '0', digits as '0' ('17, 345, 2' ->
    '0, 0, 0'). A few dozen states stand for every answer."""
    *before, last = text.split(",")
    return "".join("0," if i == 0 else " 0," for i in range(len(before))) + re.sub(r"[0-9]", "0", last)
