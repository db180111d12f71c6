"""Ask a model: an OpenAI-compatible server (vLLM), or the embedded backend (transformers in this process).

    with open_backend(args) as backend:
        for result in backend.generate(requests, sampling, done):
            ...

Both backends take the same requests, send or apply every sampling field, and give the same results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from util.cli import UserError, nonblank, positive_float, positive_int, say
from util.jsonl.manifest import read_manifest
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
    """How tokens are drawn. temperature 0 is greedy; numbers_only allows nothing but the `NUMBER_LIST` regex."""

    max_tokens: int
    temperature: float = 1.0
    numbers_only: bool = False

    def settings(self) -> dict[str, Any]:
        """Every field that decides the distribution, for a manifest."""
        return {**asdict(self), **NEUTRAL_SAMPLING}


@dataclass(frozen=True)
class Request:
    """One prompt and the row ids of the samples wanted from it (one sample for each id)."""

    ids: tuple[int, ...]
    messages: list[Message]
    seed: int
    note: str = ""
    """anything the caller wants to find again in the result"""


@dataclass(frozen=True)
class Answer:
    """One sample: its text, its token ids (None if the server does not tell) and why it ended ('stop', 'length')."""

    text: str
    token_ids: list[int] | None
    finish_reason: str


@dataclass(frozen=True)
class Result:
    """The answers to a request, in the order of its ids; or the error that asking again would not mend."""

    request: Request
    answers: list[Answer]
    error: str | None = None
    prompt_ids: list[int] | None = None
    """the prompt as the model saw it: token ids of the rendered chat template (None if the server does not tell)"""


@dataclass(frozen=True, order=True)
class Node:
    """The beginning of an answer: which prompt, its token ids so far and its probability."""

    prompt: int
    tail: tuple[int, ...]
    probability: float


class AnswerTree(Protocol):
    """The answers to a set of prompts as a tree of tokens (see eval/answer_tree.py)."""

    end_ids: set[int]
    """tokens that end an answer"""

    def expand(self, nodes: Sequence[Node]) -> Iterator[tuple[Node, np.ndarray, np.ndarray]]:
        """(node, next token ids, their probabilities) for each node, in any order. A server tells the most probable
        tokens only."""

    def texts(self, tails: Sequence[tuple[int, ...]]) -> list[str]:
        """The text of each answer, as `generate` would return it."""

    def log_probabilities(self, answers: Sequence[str]) -> np.ndarray:
        """Log-probability (nats) that the model says just this and ends its turn, float64 [prompts, answers]. Of the
        ways to cut an answer into tokens only the tokenizer's own counts."""


class InferenceBackend(Protocol):
    """What a script may ask of a model."""

    name: str
    """The name for output files: the served id, or the model and adapter folder."""

    @property
    def is_adapter(self) -> bool | None:
        """Whether the model is a LoRA adapter on another; None if the server does not say (it is not vLLM)."""

    @property
    def base_model(self) -> str:
        """What to pass to training as --base-model."""

    def adapters_served(self) -> list[str]:
        """Names of the adapters that could have been asked instead."""

    def facts(self) -> dict[str, Any]:
        """Everything about the model that decides its answers, for a manifest."""

    def generate(
        self, requests: Iterable[Request], sampling: Sampling, done: Collection[int] = ()
    ) -> Generator[Result, None, None]:
        """Answer requests in any order, pulling them as there is room; those whose ids are all done are skipped."""

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """The token ids the model really sees for these messages, up to where its answer begins."""

    def next_token_logprobs(self, prompts: list[list[int]], top: int = TOP_LOGPROBS) -> list[dict[int, float]]:
        """For each prompt of token ids: the `top` most probable next token ids with exact log-probabilities (nats)."""

    def answer_tree(self, prompts: Sequence[list[Message]]) -> AnswerTree:
        """The tree of answers to these messages."""

    def __enter__(self) -> InferenceBackend: ...

    def __exit__(self, *exc: object) -> None: ...


class ServerFailed(UserError):
    """The server stopped answering. Everything answered is on disk; exit code 3."""

    exit_code = 3


def row_seed(seed: int, row_id: int) -> int:
    """The sampling seed of one row: 31 bits, the same whenever and in whatever order the row is asked."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{row_id}".encode()).digest()[:4], "big") >> 1


# --- choosing an backend ------------------------------------------------------------------------------


def add_backend_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every script that asks a model."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        type=nonblank,
        required=True,
        help="name served by the server (vllm/NAME also works), or a hub id or folder",
    )
    group.add_argument("--adapter", type=Path, help="PEFT adapter folder to put on the model")
    group.add_argument(
        "--base-url",
        type=nonblank,
        default=os.environ.get("VLLM_BASE_URL"),
        help="OpenAI-compatible server such as http://localhost:8000/v1 (else VLLM_BASE_URL; with neither, the model"
        " runs in this process)",
    )
    group.add_argument("--max-concurrency", type=positive_int, default=512, help="server: requests in flight")
    group.add_argument(
        "--timeout",
        type=positive_float,
        default=600.0,
        help="server: stop after so many seconds without any answer",
    )
    group.add_argument("--batch-size", type=positive_int, default=128, help="embedded: answers made together")


def open_backend(args: argparse.Namespace) -> InferenceBackend:
    """The backend the arguments ask for, checked: a server answers and serves the model, a folder loads."""
    if args.adapter is not None:
        check_adapter(args.adapter)
        warn_of_base(args.adapter, args.model)
    if args.base_url:
        from util.inference.vllm_client import VllmClient

        return VllmClient(
            args.model, args.base_url, args.adapter, max_concurrency=args.max_concurrency, timeout=args.timeout
        )
    if args.model.startswith("vllm/"):
        raise UserError(f"--model {args.model} is asked of a server; pass --base-url http://localhost:8000/v1")
    from util.inference.local_model import LocalModel

    return LocalModel(args.model, args.adapter, batch_size=args.batch_size)


def warn_of_base(adapter: Path, model: str) -> None:
    """Say so when an adapter names another base model than the one it is put on (where its manifest is there, phases
    are compared by that, more exactly)."""
    if read_manifest(adapter) or read_manifest(adapter.parent):
        return
    try:
        config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{adapter}/adapter_config.json is not whole ({error}); copy it again") from None
    base = config.get("base_model_name_or_path") or ""
    if base and Path(base).name != Path(model).name:
        say(f"warning: {adapter} says that it is an adapter of {base}, not of {model}")


def check_adapter(folder: Path) -> None:
    """Raise UserError unless the folder holds a PEFT adapter."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; pass the adapter folder that training wrote (final/)")
    if (folder / "final").is_dir():
        raise UserError(f"{folder} is a training's folder; its adapter is {folder / 'final'}")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} is not a LoRA adapter: it has no {name}; pass the folder that training wrote (final/)"
            )


def model_name(model: str) -> str:
    """A model's name in file names: a hub id whole, a folder by its last telling part (pocket/model -> pocket)."""
    path = Path(model)
    if not path.is_absolute() and not path.is_dir():
        return model
    parts = [part for part in path.resolve().parts if part not in ("/", "model", "models")]
    return parts[-1] if parts else "model"


def adapter_name(folder: Path) -> str:
    """A name from an adapter's path: output/student-sft/seed-42/final -> student-sft-seed-42. Of a path outside
    output/ the last three parts count."""
    parts = folder.resolve().parts
    inside = parts[parts.index("output") + 1 :] if "output" in parts else parts[-3:]
    return slug("-".join(part for part in inside if part not in ("/", "final")))
