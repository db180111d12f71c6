"""The local backend: a transformers model in this process, with or without a PEFT adapter, on CPU or GPU."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from util.chat.chat_template import has_no_system_role, template_ids
from util.cli import memory_advice
from util.inference.backend_interface import (
    TOP_LOGPROBS,
    Answer,
    Message,
    Request,
    Result,
    Sampling,
    TopTokens,
    adapter_name,
    model_name,
)
from util.inference.exact_logits import exact_logits
from util.inference.load_model import (
    end_of_turn_ids,
    files_sha256,
    load_model,
    load_tokenizer,
    model_facts,
    put_adapter,
)
from util.inference.local_answer_tree import LocalAnswerTree
from util.inference.local_sampling import NumberMask, check_finite, draw, most_probable_tokens, row_uniforms
from util.inference.steering import Steering
from util.jsonl.manifest import adapter_sha256
from util.stop_signals import raise_if_stopped
from util.terminal import announced

COMPACT_AT = 0.75  # drop finished rows from the cache once this share of rows is left


class LocalModel:
    """Batched sampling with left padding and a KV cache, and exact next-token probabilities.

    A row's tokens depend on its seed alone: uniform numbers are drawn per row and turned into tokens through the
    inverse cumulative distribution. Batches are cut from the full list of requests, so that an interrupted run makes
    the very same rows when it is resumed.
    """

    def __init__(self, model: str, adapter: Path | None = None, *, batch_size: int,
                 template_kwargs: Mapping[str, Any] | None = None, steering: tuple[Path, float] | None = None
                 ):  # fmt: skip
        """template_kwargs: what the chat template is given (--chat-template-kwargs). steering: the file of a vector and
        its strength."""
        self.model_id, self.adapter, self.batch_size = model, adapter, batch_size
        self.on_part: Callable[[float, int], None] = lambda part, rows: None
        with announced(f"loading {model}"), ThreadPoolExecutor(1) as beside:
            files = beside.submit(files_sha256, model)
            self.tokenizer = load_tokenizer(model, template_kwargs)
            self.model = load_model(model)
            facts = model_facts(model, self.model.config, template_kwargs, files.result())
        # "engine": the word in stored manifests; another one would refuse to resume older files.
        self._facts = {"engine": "embedded", **facts, "batch_size": batch_size}
        self.name = model_name(model)
        self.steering: Steering | None = None
        if steering is not None:
            path, strength = steering
            self.steering = Steering(self.model, facts, path, strength)
            self._facts["steering"] = self.steering.facts
            self.name = f"{path.stem}-strength-{strength:g}"
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
        return self.adapter is not None or self.steering is not None

    @property
    def folds_system(self) -> bool:
        return has_no_system_role(self.tokenizer)

    @property
    def base_model(self) -> str:
        return self.model_id

    def adapters_served(self) -> list[str]:
        return []

    def facts(self) -> dict[str, Any]:
        return dict(self._facts)

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        return template_ids(self.tokenizer, messages, add_generation_prompt=True)

    def generate(
        self, requests: Iterable[Request], sampling: Sampling, done: Collection[int] = ()
    ) -> Generator[Result, None, None]:
        """As the protocol says it. A signal ends the run between two tokens (`Interrupted`): a batch may take minutes,
        longer than schedulers wait. The batch is asked again later and gives the same rows."""
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
            if rows >= self.batch_size:  # not one request later: after a stop that request would be a batch of its own
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

    def _to_answer(self, sample: tuple[list[int], TopTokens]) -> Answer:
        ids, top = sample
        ended = bool(ids) and ids[-1] in self.end_ids
        text = self.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
        return Answer(text, ids, "stop" if ended else "length", top if top.ids else None)

    def _sample(
        self, prompts: list[list[int]], requests: list[Request], sampling: Sampling
    ) -> list[tuple[list[int], TopTokens]]:
        """Token ids of every sample and what was most probable at each, in the order of requests and their ids. An
        end-of-turn token is kept."""
        import torch

        with torch.inference_mode():
            counts = torch.tensor([len(request.ids) for request in requests], device=self.model.device)
            uniforms = row_uniforms(requests, sampling.max_tokens)
            logits, cache, mask = self.read_prompts(prompts)
            row_prompt = torch.repeat_interleave(torch.arange(len(prompts), device=counts.device), counts)
            if len(row_prompt) != len(prompts):
                cache.batch_select_indices(row_prompt)
                logits, mask = logits[row_prompt], mask[row_prompt]
            samples: list[list[int]] = [[] for _ in row_prompt]
            tops = [TopTokens([], []) for _ in row_prompt]
            rows = np.arange(len(samples))
            for step in range(sampling.max_tokens):
                raise_if_stopped()
                if sampling.numbers_only:
                    logits = self._number_mask().apply(logits, [samples[row] for row in rows])
                tokens = draw(logits, uniforms[rows, step], sampling.temperature)
                found = most_probable_tokens(logits, sampling.store_logprobs)
                for row, token, (ids, logprobs) in zip(rows, tokens.tolist(), found):
                    if not (samples[row] and samples[row][-1] in self.end_ids):
                        samples[row].append(token)
                        if ids:
                            tops[row].ids.append(ids)
                            tops[row].logprobs.append(logprobs)
                alive = np.array([samples[row][-1] not in self.end_ids for row in rows])
                ended = 1 - alive.sum() / len(samples)
                self.on_part(max(ended, (step + 1) / sampling.max_tokens), len(samples))
                if not alive.any() or step + 1 == sampling.max_tokens:
                    return list(zip(samples, tops))
                if alive.mean() <= COMPACT_AT:
                    keep = torch.from_numpy(np.flatnonzero(alive)).to(mask.device)
                    cache.batch_select_indices(keep)
                    tokens, mask, rows = tokens[keep], mask[keep], rows[alive]
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
                positions = mask.sum(1, keepdim=True) - 1
                out = self.model(
                    input_ids=tokens[:, None], attention_mask=mask, position_ids=positions, past_key_values=cache
                )
                logits = check_finite(out.logits[:, -1].float())
            return list(zip(samples, tops))

    def read_prompts(self, prompts: list[list[int]]) -> tuple[Any, Any, Any]:
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
        return check_finite(out.logits[:, -1].float()), cache, mask

    def next_token_logprobs(
        self, prompts: list[list[int]], top: int = TOP_LOGPROBS, *, without_adapter: bool = False
    ) -> list[dict[int, float]]:
        found: list[dict[int, float]] = []
        adapter_off = self.model.disable_adapter() if without_adapter and self.adapter else nullcontext()
        steering_off = self.steering.off() if without_adapter and self.steering else nullcontext()
        with exact_logits(self.model), adapter_off, steering_off:
            for start in range(0, len(prompts), self.batch_size):
                logits, _, _ = self.read_prompts(prompts[start : start + self.batch_size])
                values, ids = logits.log_softmax(-1).topk(min(top, logits.shape[-1]))
                found += [dict(zip(i, v)) for i, v in zip(ids.tolist(), values.tolist())]
        return found

    def answer_tree(self, prompts: Sequence[list[Message]]) -> LocalAnswerTree:
        return LocalAnswerTree(self, [self.prompt_ids(messages) for messages in prompts])

    def _number_mask(self) -> NumberMask:
        if self._numbers is None:
            self._numbers = NumberMask(self.tokenizer, self.model.config.vocab_size, self.end_ids)
        return self._numbers
