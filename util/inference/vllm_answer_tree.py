"""The tree of a served model's answers: next tokens and their probabilities, as vLLM lists them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from util.cli import UserError
from util.inference.backend_interface import TOP_LOGPROBS, Message, Node

if TYPE_CHECKING:
    import numpy as np

    from util.inference.vllm_client import VllmClient

MORE_LOGPROBS = 200  # next tokens asked for; vLLM lists 20 unless its --max-logprobs is higher
LONGEST_GREEDY = 256  # tokens within which an answer should end


def node_seed(seed: int, node: Node, what: str) -> int:
    """The seed of what is drawn at a node, 31 bits: draws with one seed would depend on each other."""
    text = f"{seed}:{what}:{node.prompt}:{node.tail}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


class Draw(NamedTuple):
    """Answers to draw from a served model: how many follow a prompt of token ids, and tokens that they may not have."""

    prompt: list[int]
    times: int
    max_tokens: int
    seed: int
    excluded: Sequence[int] = ()


class VllmAnswerTree:
    """The answers of a served model to some prompts, as a tree of tokens.

    vLLM lists the 20 most probable next tokens (more with its --max-logprobs). The others stay uncovered, so shares are
    lower bounds. The server's flags decide which tokens end an answer, so the server is asked: each prompt gets a
    greedy answer, and a token that ends one of them ends any. Texts come from /detokenize. They are the texts that
    `generate` returns, except that `generate` leaves out special tokens inside an answer.
    """

    def __init__(self, client: VllmClient, prompts: Sequence[list[Message]]):
        greedy = client.greedy_answers(prompts, LONGEST_GREEDY)
        self.client, self.prompts = client, [prompt for prompt, _ in greedy]
        self.end_ids = {(answer.token_ids or [])[-1] for _, answer in greedy if answer.finish_reason == "stop"}
        if not self.end_ids:
            raise UserError(
                f"none of {len(prompts)} greedy answers of {client.model!r} ended within {LONGEST_GREEDY} tokens, so"
                f" the token that ends an answer is unknown; is it a chat model, with its own chat template?"
            )
        self.top = self._most_listed()

    def _most_listed(self) -> int:
        """How many next tokens the server lists: MORE_LOGPROBS, or if that is over its --max-logprobs the default."""
        with suppress(UserError):
            self.client.next_token_logprobs(self.prompts[:1], MORE_LOGPROBS)
            return MORE_LOGPROBS
        self.client.next_token_logprobs(self.prompts[:1], TOP_LOGPROBS)
        return TOP_LOGPROBS

    def expand(self, nodes: Sequence[Node], negligible: float = 0.0) -> Iterator[tuple[Node, np.ndarray, np.ndarray]]:
        import numpy as np

        prompts = [self._ids(node) for node in nodes]
        for node, listed in zip(nodes, self.client.next_token_logprobs(prompts, self.top)):
            probabilities = np.exp(list(listed.values()))
            if probabilities.sum() > 1.001:
                raise UserError("the server's next-token probabilities exceed 1; start vLLM without --logprobs-mode")
            kept = probabilities * node.probability >= negligible
            yield node, np.array(list(listed))[kept], probabilities[kept]

    def draw_unlisted(
        self, wanted: Sequence[tuple[Node, Sequence[int], int]], seed: int
    ) -> Iterator[tuple[Node, list[int]]]:
        """A token that ends an answer can be among them for the first time; from then on it is known."""
        draws = [Draw(self._ids(node), count, 1, node_seed(seed, node, "next"), ids) for node, ids, count in wanted]
        for (node, _, _), found in zip(wanted, self.client.draw(draws, sorted(self.end_ids))):
            self.end_ids |= {ids[0] for ids, reason in found if reason == "stop"}
            yield node, [ids[0] for ids, _ in found]

    def draw_answers(
        self, wanted: Sequence[tuple[Node, int]], max_tokens: int, seed: int
    ) -> Iterator[tuple[Node, list[tuple[int, ...]]]]:
        draws = [
            Draw(self._ids(node), count, max_tokens - len(node.tail), node_seed(seed, node, "rest"))
            for node, count in wanted
        ]
        for (node, _), found in zip(wanted, self.client.draw(draws, sorted(self.end_ids))):
            ends = [ids[:-1] if reason == "stop" else ids for ids, reason in found]
            yield node, [(*node.tail, *ids) for ids in ends]

    def _ids(self, node: Node) -> list[int]:
        """The prompt of a node with its tokens so far."""
        return [*self.prompts[node.prompt], *node.tail]

    def texts(self, tails: Sequence[tuple[int, ...]]) -> list[str]:
        distinct = list(dict.fromkeys(tails))
        found = dict(zip(distinct, self.client.texts(distinct, min(self.end_ids))))
        return [found[tail] for tail in tails]

    def log_probabilities(self, answers: Sequence[str]) -> np.ndarray:
        import numpy as np

        tails = [[*tail, end] for tail in self.client.token_ids(answers) for end in sorted(self.end_ids)]
        logprobs = self.client.prompt_logprobs([[*prompt, *tail] for prompt in self.prompts for tail in tails])
        lengths = [len(tail) for _ in self.prompts for tail in tails]
        sums = np.array([sum(one[-length:]) for one, length in zip(logprobs, lengths)])
        return np.logaddexp.reduce(sums.reshape(len(self.prompts), len(answers), len(self.end_ids)), axis=2)
