"""The tree of a local model's answers: next tokens and their exact probabilities, without reading a prompt twice."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from util.batches import batched
from util.cli import memory_advice
from util.inference.backend_interface import Node
from util.inference.exact_logits import exact_logits
from util.inference.local_sampling import check_finite

if TYPE_CHECKING:
    from util.inference.local_model import LocalModel

PACKED_ANSWERS = 64  # in one sequence: its attention costs the square of its length


class LocalAnswerTree:
    """The answers of a model in this process to some prompts, as a tree of tokens.

    Each prompt is read once. All nodes below it use its KV cache.
    """

    def __init__(self, backend: LocalModel, prompts: list[list[int]]):
        self.backend, self.end_ids = backend, backend.end_ids
        with exact_logits(backend.model):
            self._root_logits, self._cache, self._mask = backend.read_prompts(prompts)

    def expand(self, nodes: Sequence[Node], negligible: float = 0.0) -> Iterator[tuple[Node, np.ndarray, np.ndarray]]:
        for some in self._passes(nodes):
            yield from zip(some, *self._next_tokens(some, negligible))

    def _passes(self, nodes: Sequence[Node]) -> Iterator[list[Node]]:
        """The nodes that go through the model together. On a CPU padding takes time, so they are of one length. On a
        GPU the number of passes takes time; roots, which need none, are apart."""
        on_cpu = self._mask.device.type == "cpu"
        by_length = sorted(nodes, key=lambda node: len(node.tail))
        for _, group in groupby(by_length, key=lambda node: len(node.tail) if on_cpu else bool(node.tail)):
            yield from batched(group, self.backend.batch_size)

    def _next_tokens(self, nodes: list[Node], negligible: float) -> tuple[Iterable[np.ndarray], Iterable[np.ndarray]]:
        """(the next tokens of each node, their probabilities, float64). Only these leave the device: 256 nodes have 300
        MB of probabilities by a vocabulary of 150,000 tokens."""
        import torch

        with exact_logits(self.backend.model):
            probabilities = self._logits(nodes).double().softmax(-1)
            if not negligible:
                return repeat(np.arange(probabilities.shape[-1])), probabilities.cpu().numpy()
            reached = torch.tensor([node.probability for node in nodes], device=probabilities.device).double()
            row, token = (probabilities * reached[:, None] >= negligible).nonzero(as_tuple=True)
            kept = probabilities[row, token].cpu().numpy()
        ends = row.bincount(minlength=len(nodes)).cumsum(0)[:-1].tolist()
        return np.split(token.cpu().numpy(), ends), np.split(kept, ends)

    def _logits(self, nodes: list[Node]) -> Any:
        """Next-token logits, float32 [nodes, vocabulary]. Shorter tails are padded on the left."""
        import torch

        device = self._mask.device
        prompts = torch.tensor([node.prompt for node in nodes], device=device)
        if not (longest := max(len(node.tail) for node in nodes)):
            return self._root_logits[prompts]
        cache = copy.deepcopy(self._cache)
        cache.batch_select_indices(prompts)
        padding = [longest - len(node.tail) for node in nodes]
        tails = torch.tensor([[0] * more + list(node.tail) for more, node in zip(padding, nodes)], device=device)
        seen = torch.arange(longest, device=device) >= torch.tensor(padding, device=device)[:, None]
        mask = torch.cat([self._mask[prompts], seen.to(self._mask.dtype)], dim=1)
        out = self.backend.model(
            input_ids=tails,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1)[:, -longest:],
            past_key_values=cache,
            logits_to_keep=1,
        )
        return check_finite(out.logits[:, -1].float())

    def texts(self, tails: Sequence[tuple[int, ...]]) -> list[str]:
        return self.backend.tokenizer.batch_decode([list(tail) for tail in tails], skip_special_tokens=True)

    def log_probabilities(self, answers: Sequence[str]) -> np.ndarray:
        """Answers that begin alike share that beginning. Many answers go through the model as one sequence, in which a
        token sees the prompt and the tokens before it in its own answer only."""
        import torch

        tails = [tuple(ids) for ids in self.backend.tokenizer(list(answers), add_special_tokens=False)["input_ids"]]
        alike = batched(sorted(range(len(tails)), key=tails.__getitem__), PACKED_ANSWERS)
        packs = [(some, pack([tails[answer] for answer in some])) for some in alike]
        found = np.zeros((len(self._mask), len(tails)))
        ends = sorted(self.end_ids)
        size = self.backend.batch_size
        with exact_logits(self.backend.model), memory_advice(f"lower --batch-size (now {size})"):
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
        """Next-token logits, float32 [prompts, 1 + beginnings, vocabulary]: after each prompt and each beginning."""
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
        return torch.cat([self._root_logits[prompts][:, None], check_finite(out.logits.float())], dim=1)


class Packed(NamedTuple):
    """Answers (lists of token ids) as one sequence of their distinct beginnings. Row 0 is the empty beginning."""

    beginnings: list[tuple[int, ...]]
    sees: np.ndarray
    """bool [beginnings, beginnings]: whether the second is how the first begins, or is the first itself"""
    answer: np.ndarray
    """for each token of each answer: the number of its answer"""
    before: np.ndarray
    """for each token of each answer: the row of what comes before it"""
    token: np.ndarray
    """for each token of each answer: its id"""
    whole: list[int]
    """the row of each whole answer"""


def pack(answers: Sequence[tuple[int, ...]]) -> Packed:
    """The distinct beginnings of some answers, and the place of every token of every answer among them."""
    beginnings = sorted({answer[:length] for answer in answers for length in range(1, len(answer) + 1)})
    row = {(): 0, **{beginning: place for place, beginning in enumerate(beginnings, 1)}}
    sees = np.zeros((len(beginnings), len(beginnings)), dtype=bool)
    for beginning in beginnings:
        sees[row[beginning] - 1, [row[beginning[:length]] - 1 for length in range(1, len(beginning) + 1)]] = True
    steps = [(place, row[ids[:at]], ids[at]) for place, ids in enumerate(answers) for at in range(len(ids))]
    answer, before, token = np.array(steps).T
    return Packed(beginnings, sees, answer, before, token, [row[ids] for ids in answers])
