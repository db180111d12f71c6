"""What every way of asking a model has in common: requests, sampling, answers, and the methods of a backend.

A backend is an OpenAI-compatible server (vLLM), or the local backend (transformers in this process).

    with open_backend(args) as backend:
        for result in backend.generate(requests, sampling, done):
            ...

Both take the same requests, use every sampling field, and return the same kind of results.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from util.cli import UserError
from util.jsonl.rows import slug

if TYPE_CHECKING:
    import numpy as np

# vLLM takes an unset field from the model's generation_config.json (Qwen2.5-0.5B-Instruct ships a repetition
# penalty of 1.1), so the neutral value of every field is sent.
NEUTRAL_SAMPLING = {
    "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "min_tokens": 0, "ignore_eos": False,
}  # fmt: skip
NUMBER_LIST = r"[0-9]{1,3}(, [0-9]{1,3}){0,9}"
TOP_LOGPROBS = 20  # vLLM's default --max-logprobs

Message = dict[str, str]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Temperature 0 is greedy. numbers_only allows only what the regex `NUMBER_LIST` matches."""

    max_tokens: int
    temperature: float = 1.0
    numbers_only: bool = False
    store_logprobs: int = 0
    """of each token, log-probabilities of so many tokens that were most probable there (local backend only)"""

    def settings(self) -> dict[str, Any]:
        """Every field that decides the rows, for a manifest."""
        fields = {**asdict(self), **NEUTRAL_SAMPLING}
        if not self.store_logprobs:  # so that rows of an older version can be resumed
            del fields["store_logprobs"]
        return fields


@dataclass(frozen=True)
class Request:
    """One prompt and the row ids of the samples wanted from it (one sample for each id)."""

    ids: tuple[int, ...]
    messages: list[Message]
    seed: int
    note: str = ""
    """anything that the caller needs with the result"""


class TopTokens(NamedTuple):
    """The most probable tokens at each token of an answer, and their log-probabilities (nats), at temperature 1."""

    ids: list[list[int]]
    logprobs: list[list[float]]


@dataclass(frozen=True)
class Answer:
    """One sample: its text, its token ids (None if the server sends none) and why it ended ('stop' or 'length')."""

    text: str
    token_ids: list[int] | None
    finish_reason: str
    top: TopTokens | None = None
    """with Sampling.store_logprobs"""


@dataclass(frozen=True)
class Result:
    """The answers to a request, in the order of its ids; or an error that would happen again."""

    request: Request
    answers: list[Answer]
    error: str | None = None
    prompt_ids: list[int] | None = None
    """the prompt as the model saw it: token ids of the rendered chat template (None if the server sends none)"""


@dataclass(frozen=True, order=True)
class Node:
    """The beginning of an answer: which prompt, its token ids so far and its probability."""

    prompt: int
    tail: tuple[int, ...]
    probability: float


class AnswerTree(Protocol):
    """The answers to a set of prompts as a tree of tokens (see eval/answers/answer_tree.py)."""

    end_ids: set[int]
    """tokens that end an answer"""

    def expand(self, nodes: Sequence[Node], negligible: float = 0.0) -> Iterator[tuple[Node, np.ndarray, np.ndarray]]:
        """(node, next token ids, their probabilities) for each node, in any order. Tokens with which the whole
        beginning is less probable than `negligible` are left out. A server lists only the most probable tokens
        (PartialTree)."""

    def texts(self, tails: Sequence[tuple[int, ...]]) -> list[str]:
        """The text of each answer, as `generate` would return it."""

    def log_probabilities(self, answers: Sequence[str]) -> np.ndarray:
        """Log-probability (nats) that the model says exactly this and ends its turn, float64 [prompts, answers]. Each
        answer is cut into tokens as the tokenizer does it; other ways to write the same text do not count."""


@runtime_checkable
class PartialTree(AnswerTree, Protocol):
    """A tree that lists only the most probable next tokens. What it does not list can be drawn."""

    def draw_unlisted(
        self, wanted: Sequence[tuple[Node, Sequence[int], int]], seed: int
    ) -> Iterator[tuple[Node, list[int]]]:
        """For each (node, token ids that it listed, count): `count` next tokens, drawn from those that it did not
        list."""

    def draw_answers(
        self, wanted: Sequence[tuple[Node, int]], max_tokens: int, seed: int
    ) -> Iterator[tuple[Node, list[tuple[int, ...]]]]:
        """For each (node, count): the token ids of `count` whole answers that begin as the node, drawn from the model
        and without the token that ends them. max_tokens: longest answer."""


class InferenceBackend(Protocol):
    """A model that can be asked. The vLLM client and the local backend have these methods."""

    name: str
    """The name for output files: the served id, or the model and adapter folder."""
    on_part: Callable[[float, int], None]
    """called while a batch is answered: which part of its work is done, and its rows; a server does not say"""

    @property
    def folds_system(self) -> bool:
        """Whether a system message is put before the first user's text, because the template has no system role."""

    @property
    def is_adapter(self) -> bool | None:
        """Whether the model is another one with a LoRA adapter or a steering vector on it; None if the server does not
        say (other servers than vLLM)."""

    @property
    def base_model(self) -> str:
        """What to pass to training as --base-model."""

    def adapters_served(self) -> list[str]:
        """Names of the adapters that could be asked instead."""

    def facts(self) -> dict[str, Any]:
        """Everything about the model that decides its answers, for a manifest."""

    def generate(
        self, requests: Iterable[Request], sampling: Sampling, done: Collection[int] = ()
    ) -> Generator[Result, None, None]:
        """Answer requests in any order; they are pulled as there is room. Those whose ids are all done are skipped."""

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """The token ids the model really sees for these messages, up to where its answer begins."""

    def next_token_logprobs(
        self, prompts: list[list[int]], top: int = TOP_LOGPROBS, *, without_adapter: bool = False
    ) -> list[dict[int, float]]:
        """For each prompt of token ids: the `top` most probable next token ids with exact log-probabilities (nats).
        without_adapter: those of the base model, without adapter and steering vector."""

    def answer_tree(self, prompts: Sequence[list[Message]]) -> AnswerTree:
        """The tree of answers to these messages."""

    def __enter__(self) -> InferenceBackend: ...

    def __exit__(self, *exc: object) -> None: ...


class ServerFailed(UserError):
    """The server stopped answering. Everything answered is on disk; exit code 3."""

    exit_code = 3


class NotFinite(UserError):
    """The model has no probabilities: its weights or its adapter are damaged. Asking again would not help."""


def row_seed(seed: int, row_id: int) -> int:
    """The sampling seed of one row: 31 bits, the same whenever and in whatever order the row is asked."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{row_id}".encode()).digest()[:4], "big") >> 1


# --- names -------------------------------------------------------------------------------------------


def model_name(model: str) -> str:
    """A model's name for file names: a hub id itself; of a folder the last part but 'model' (pocket/model: pocket)."""
    path = Path(model)
    if not path.is_absolute() and not path.is_dir():
        return model
    parts = [part for part in path.resolve().parts if part not in ("/", "model", "models")]
    return parts[-1] if parts else "model"


def adapter_name(folder: Path) -> str:
    """A name from an adapter's path: output/student-sft/seed-42/final -> student-sft-seed-42. Outside output/ the
    last three parts are used."""
    parts = folder.resolve().parts
    inside = parts[parts.index("output") + 1 :] if "output" in parts else parts[-3:]
    return slug("-".join(part for part in inside if part not in ("/", "final")))
