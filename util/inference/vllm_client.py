"""The vLLM client: ask an OpenAI-compatible server over HTTP, with many requests in flight."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from util.chat.chat_template import folded, template_facts
from util.cli import UserError
from util.hide_secrets import scrub
from util.inference.adapter_config import read_adapter_config, vllm_rank
from util.inference.backend_interface import (
    NEUTRAL_SAMPLING,
    NUMBER_LIST,
    TOP_LOGPROBS,
    Answer,
    Message,
    NotFinite,
    Request,
    Result,
    Sampling,
    ServerFailed,
    adapter_name,
    model_name,
)
from util.inference.check_adapter import check_fits
from util.inference.hub_files import model_config
from util.inference.requests_in_flight import RequestsInFlight
from util.inference.vllm_answer_tree import Draw, VllmAnswerTree
from util.inference.vllm_probe import is_loopback, models_served, normal_url, server_key, started_at, warn_if_open
from util.inference.vllm_replies import (
    BROKEN_REPLY,
    DAMAGED,
    END_PROBE,
    NAN_REFUSED,
    NoAnswer,
    Reply,
    error_text,
    most_probable,
    parse_chat,
    parse_drawn,
    parse_end_of_turn,
    parse_field,
    parse_logprobs,
    parse_models,
)
from util.inference.vllm_retries import RefusedRequest, Retries, wants_key
from util.jsonl.manifest import adapter_sha256
from util.terminal import say

PROMPTS_PER_REQUEST = 50
NEVER = -100.0  # the lowest logit_bias: e**-100 of the probability
S = TypeVar("S")
T = TypeVar("T")


class VllmClient:
    """Asks one model of an OpenAI-compatible server.

    max_concurrency: requests in flight. timeout: seconds without any answer after which the run stops.
    template_kwargs: what the chat template is given (--chat-template-kwargs).
    Raises UserError or ServerFailed if the server cannot be used or does not serve the model.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        adapter: Path | None = None,
        *,
        max_concurrency: int,
        timeout: float,
        template_kwargs: Mapping[str, Any] | None = None,
    ):
        self.template_kwargs = dict(template_kwargs or {})
        self.folds_system = False
        """whether the server has refused a system message, so that its text is put before the first user's"""
        self.model = model.removeprefix("vllm/")
        self._url = normal_url(base_url)
        self.base_url = scrub(self._url)  # as it may be shown
        warn_if_open(self._url)
        self.max_concurrency, self.timeout = max_concurrency, timeout
        self.on_part: Callable[[float, int], None] = lambda part, rows: None
        self.name = model_name(self.model)
        self._loop = asyncio.new_event_loop()
        self._in_flight = RequestsInFlight(self._loop, max_concurrency, timeout)
        self._client = self._make_client()
        try:
            self.card = self._preflight(adapter)
            self._check_finite()
            self.stop_ids = self._end_of_turn()
        except BaseException:
            self.__exit__()
            raise

    def _make_client(self) -> Any:
        import aiohttp  # noqa: F401  here, so that `run` names the package if it is missing
        import httpx2
        import openai

        # self.timeout watches the run as a whole: on a full server a single request may wait for its turn for long.
        timeout = openai.Timeout(3600.0, connect=10.0)
        # The client's default pool looks through all connections at each request, aiohttp's does not. But aiohttp does
        # not take a key beside a password in the address. A proxy does not know this machine's own servers.
        make_pool = openai.DefaultAsyncHttpxClient if "@" in self._url else openai.DefaultAioHttpClient
        pool = make_pool(
            limits=httpx2.Limits(max_connections=self.max_concurrency),
            timeout=timeout,
            trust_env=not is_loopback(self._url),
        )
        with without_openai_settings():
            return openai.AsyncOpenAI(
                base_url=self._url, api_key=server_key() or "none", max_retries=0, timeout=timeout, http_client=pool
            )  # vllm_retries.py is the only place that sends a request again

    def __enter__(self) -> VllmClient:
        return self

    def __exit__(self, *_exc: object) -> None:
        if not self._loop.is_closed():
            self._loop.run_until_complete(self._client.close())
            self._loop.close()

    def _preflight(self, adapter: Path | None) -> dict[str, Any]:
        cards = self._served()
        if adapter is None and self.model in cards:
            warn_of_older_weights(self._url, cards[self.model])
            if folder := served_folder(cards[self.model]):
                check_fits_base(folder, cards)
        if adapter is not None:
            self.model = self._load_adapter(adapter, cards)
            self.name = adapter_name(adapter)
            cards = self._served()
        if self.model not in cards:
            there = ", ".join(sorted(cards)) or "nothing"
            raise UserError(
                f"{self.base_url} does not serve {self.model!r}; it serves: {there}. Pass one of these as"
                f" --model, or start the server with --lora-modules {self.model}=PATH"
            )
        return cards[self.model]

    def _served(self) -> dict[str, dict[str, Any]]:
        import openai

        soon: Any = {"timeout": 30.0}
        try:
            # As text, parsed here: the client hands a web page through as if it were a list of models.
            return parse_models(self._loop.run_until_complete(self._client.get("/models", cast_to=str, options=soon)))
        except BROKEN_REPLY:
            raise UserError(
                f"{self.base_url}/models is not a list of models, so this is not an OpenAI-compatible server; check"
                f" --base-url"
            ) from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise wants_key(self.base_url, error) from None
        except openai.APIStatusError as error:
            raise UserError(
                f"{self.base_url}/models answered {error.status_code}: {error_text(error)}; check --base-url (that of"
                " vLLM ends in /v1)"
            ) from None
        except openai.OpenAIError as error:
            port = urlsplit(self.base_url).port or 8000
            raise ServerFailed(
                f"no server answers at {self.base_url} ({error_text(error)}); start one, for example:\n"
                f"  vllm serve Qwen/Qwen2.5-7B-Instruct --host 127.0.0.1 --port {port} --dtype bfloat16"
            ) from None

    def _check_finite(self) -> None:
        """NotFinite if the model has no probabilities: vLLM would answer every prompt with the same token. A server
        that gives no log-probabilities is not checked."""
        found = self._ask_once("/completions", {**self._completion(["1"]), "logprobs": 1}, parse_logprobs)
        if isinstance(found, str) and NAN_REFUSED in found:
            raise NotFinite(DAMAGED)

    def _end_of_turn(self) -> list[int]:
        """The token with which the chat template ends an answer, in a list; [] if it writes none, or the server does
        not say.

        vLLM stops at the ends that the model's configs name. Training teaches the one that the template writes; a model
        whose configs name only another one would go on until --max-tokens.
        """
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": END_PROBE}]
        body = {"model": self.model, "messages": messages, "add_generation_prompt": False, "return_token_strs": True}
        found = self._ask_once(self._beside("tokenize"), body, parse_end_of_turn)
        return found if isinstance(found, list) else []

    def _ask_once(self, path: str, body: dict[str, Any], parse: Callable[[str], T]) -> T | str | None:
        """The parsed reply to a question that the run does not depend on; the server's error where it refuses it; None
        where it has no such path or its reply is of another kind."""
        import openai

        soon: Any = {"timeout": 30.0}
        try:
            return parse(self._loop.run_until_complete(self._client.post(path, body=body, cast_to=str, options=soon)))
        except openai.BadRequestError as error:
            return error_text(error)
        except (openai.OpenAIError, ValueError):
            return None

    def _load_adapter(self, folder: Path, cards: dict[str, dict[str, Any]]) -> str:
        """Load an adapter into the running server and return its name there. The name holds the adapter's hash, because
        vLLM keeps cached prefixes of old weights when a name is loaded again."""
        import openai

        name = f"{adapter_name(folder)}-{adapter_sha256(folder)[:8]}"
        check_fits_base(folder, cards)
        if name in cards:
            return name
        body = {"lora_name": name, "lora_path": str(folder.resolve())}
        try:
            self._loop.run_until_complete(self._client.post("/load_lora_adapter", body=body, cast_to=str))
        except openai.NotFoundError as error:
            if str(folder.resolve()) in error_text(error):
                raise UserError(
                    f"the server finds no adapter at {folder.resolve()}: it runs on another machine, or may not read"
                    f" the folder; copy the adapter to the same path there ({error_text(error)})"
                ) from None
            raise UserError(
                f"{self.base_url} does not load adapters while it runs; start vLLM with --enable-lora and"
                f" VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, or with --lora-modules NAME={folder}"
            ) from None
        except openai.OpenAIError as error:
            raise UserError(
                f"the server could not load {folder}: {error_text(error)}{rank_advice(error, folder)}"
            ) from None
        return name

    @property
    def is_adapter(self) -> bool | None:
        return bool(self.card["parent"]) if "parent" in self.card else None

    @property
    def base_model(self) -> str:
        base = self._served().get(str(self.card.get("parent")), self.card)
        return str(base.get("root") or base["id"])

    def adapters_served(self) -> list[str]:
        return sorted(name for name, card in self._served().items() if card.get("parent"))

    def facts(self) -> dict[str, Any]:
        facts = {
            "engine": "server",  # the word in stored manifests; another one would refuse to resume older files
            "model": self.model,
            "root": self.card.get("root"),
            "parent": self.card.get("parent"),
            **template_facts(self.template_kwargs),
        }
        if self.card.get("parent"):
            folder = served_folder(self.card)
            facts["adapter_sha256"] = adapter_sha256(folder) if folder else None
        return facts

    def generate(
        self, requests: Iterable[Request], sampling: Sampling, done: Collection[int] = ()
    ) -> Generator[Result, None, None]:
        todo = (request for request in requests if not all(row_id in done for row_id in request.ids))
        for results in self._results(lambda request, retries: self._chat(request, sampling, retries), todo):
            yield from results

    # --- sending requests ---

    def _results(self, ask: Callable[[S, Retries], Awaitable[T]], items: Iterable[S]) -> Generator[T, None, None]:
        """What `ask` returns for each item, in any order, with many requests in flight and one count of failures."""
        retries = Retries(self.base_url, self.model)
        try:
            yield from self._in_flight.results(lambda item: ask(item, retries), items)
        except TimeoutError:
            raise self._no_answer_in_time() from None

    def _results_in_order(self, ask: Callable[[S, Retries], Awaitable[T]], items: Iterable[S]) -> list[T]:
        retries = Retries(self.base_url, self.model)
        try:
            return self._in_flight.results_in_order(lambda item: ask(item, retries), items)
        except TimeoutError:
            raise self._no_answer_in_time() from None

    def _no_answer_in_time(self) -> ServerFailed:
        hangs = models_served(self._url, server_key()) is not None
        state = " (it still lists its models: its engine hangs)" if hangs else ""
        return ServerFailed(
            f"{self.base_url} gave no answer for {self.timeout:.0f} s although requests are waiting{state}; look at its"
            f" log, restart it and run the same command again (a longer --timeout waits longer)"
        )

    def request_body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        """The chat request as it is sent. Every field that decides the distribution is in it."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": folded(request.messages) if self.folds_system else request.messages,
            "n": len(request.ids),
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            "seed": request.seed,
            **NEUTRAL_SAMPLING,
            "return_token_ids": True,
            **template_facts(self.template_kwargs),
        }
        if self.stop_ids:
            body["stop_token_ids"] = self.stop_ids
        if sampling.numbers_only:
            body["structured_outputs"] = {"regex": NUMBER_LIST}
        return body

    async def _chat(self, request: Request, sampling: Sampling, retries: Retries) -> list[Result]:
        """The answers to a request. A sample without content is a result of its own, with an error."""

        def parse(reply: str) -> Reply:
            return parse_chat(reply, len(request.ids))

        body = self.request_body(request, sampling)
        try:
            reply = await self._post("/chat/completions", body, parse, retries, f"row {request.ids[0]}")
        except NoAnswer as why:
            return [Result(request, [], str(why))]
        except RefusedRequest as why:
            was_sent = body["messages"] is request.messages and request.messages[0]["role"] == "system"
            if was_sent and "system" in str(why).lower():
                self.folds_system = True
                return await self._chat(request, sampling, retries)
            roles = ", ".join(message["role"] for message in request.messages)
            raise UserError(
                f"{why} (row {request.ids[0]}; its messages: {roles}). If the server means these roles, the model's"
                " chat template does not take them: change the messages, or serve a model whose template does"
            ) from None
        return results_of(request, reply)

    async def _post(self, path: str, body: dict[str, Any], parse: Callable[[str], T], retries: Retries, what: str) -> T:
        """The parsed reply to one request. `parse` raises ValueError for a reply that is not complete."""

        async def send() -> T:
            # As text, parsed here: the client's own models cost as much time as the rest of a request.
            return parse(await self._client.post(path, body=body, cast_to=str))

        return await retries.ask(send, what)

    # --- token ids and exact probabilities ---

    def answer_tree(self, prompts: Sequence[list[Message]]) -> VllmAnswerTree:
        return VllmAnswerTree(self, prompts)

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        return self.greedy_answers([messages], 1)[0][0]

    def greedy_answers(self, prompts: Sequence[list[Message]], max_tokens: int) -> list[tuple[list[int], Answer]]:
        """(prompt's token ids, its most probable answer) of each prompt. UserError if the server sends no token ids."""
        requests = [Request((place,), messages, seed=0) for place, messages in enumerate(prompts)]
        results = sorted(self.generate(requests, Sampling(max_tokens, temperature=0.0)), key=lambda r: r.request.ids)
        found = []
        for result in results:
            if result.error is not None:
                raise UserError(result.error)
            (answer,) = result.answers
            if result.prompt_ids is None or not answer.token_ids:
                raise UserError(
                    f"{self.base_url} does not send token ids; exact probabilities need vLLM, or the model in this"
                    f" process (without --base-url, with --adapter FOLDER)"
                )
            found.append((result.prompt_ids, answer))
        return found

    def next_token_logprobs(
        self, prompts: list[list[int]], top: int = TOP_LOGPROBS, *, without_adapter: bool = False
    ) -> list[dict[int, float]]:
        model = self.card.get("parent") if without_adapter else None

        async def ask(some: Sequence[list[int]], retries: Retries) -> list[dict[int, float]]:
            body = {**self._completion(some), "logprobs": top, "return_tokens_as_token_ids": True}
            body["model"] = model or self.model
            found = await self._post("/completions", body, parse_logprobs, retries, "a next token")
            return [most_probable(one["top_logprobs"][0], top) for one in found]

        return self._in_batches(ask, prompts)

    def prompt_logprobs(self, prompts: Sequence[list[int]]) -> list[list[float]]:
        """Log-probability (nats) of each token of each prompt but its first, given the tokens before it."""

        async def ask(some: Sequence[list[int]], retries: Retries) -> list[list[float]]:
            body = {**self._completion(some), "logprobs": 0, "echo": True}
            found = await self._post("/completions", body, parse_logprobs, retries, "a prompt")
            return [one["token_logprobs"][1 : len(prompt)] for one, prompt in zip(found, some)]

        return self._in_batches(ask, prompts)

    def _in_batches(self, ask: Callable[[Sequence[S], Retries], Awaitable[list[T]]], items: Sequence[S]) -> list[T]:
        """The results for all items, of which a request has many: a request of its own takes the server longer than
        the answer to one."""
        size = min(PROMPTS_PER_REQUEST, self.max_concurrency)
        batches = [items[i : i + size] for i in range(0, len(items), size)]
        return list(chain.from_iterable(self._results_in_order(ask, batches)))

    def draw(self, wanted: Sequence[Draw], stop_ids: Sequence[int]) -> list[list[tuple[list[int], str]]]:
        """For each of `wanted`: (token ids, finish_reason) of each answer. A token of stop_ids ends an answer."""

        async def ask(one: Draw, retries: Retries) -> list[tuple[list[int], str]]:
            body = {**self._completion([one.prompt]), "n": one.times, "max_tokens": one.max_tokens, "seed": one.seed,
                    "return_token_ids": True, "stop_token_ids": list(stop_ids)}  # fmt: skip
            if one.excluded:
                body["logit_bias"] = dict.fromkeys(map(str, one.excluded), NEVER)
            return await self._post("/completions", body, parse_drawn(one.times), retries, "an answer")

        return self._results_in_order(ask, wanted)

    def _completion(self, prompts: Sequence[list[int] | str]) -> dict[str, Any]:
        """A request for one more token after each prompt of token ids, from the model's own distribution."""
        return {"model": self.model, "prompt": prompts, "max_tokens": 1, "temperature": 1.0, **NEUTRAL_SAMPLING}

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, with no special token added."""

        async def ask(text: str, retries: Retries) -> list[int]:
            body = {"model": self.model, "prompt": text, "add_special_tokens": False}
            return await self._post(self._beside("tokenize"), body, parse_field("tokens"), retries, "a text")

        return self._results_in_order(ask, texts)

    def texts(self, tails: Sequence[Sequence[int]], between: int) -> list[str]:
        """The text of each list of token ids. Many share a request, in which the special token `between` is before
        each."""

        async def text(tokens: Sequence[int], retries: Retries) -> str:
            body = {"model": self.model, "tokens": tokens}
            return await self._post(self._beside("detokenize"), body, parse_field("prompt"), retries, "some tokens")

        async def ask(some: Sequence[Sequence[int]], retries: Retries) -> list[str]:
            joined = await text([token for tail in some for token in (between, *tail)], retries)
            texts = joined.split(mark)[1:] if mark else []
            if len(texts) == len(some):
                return texts
            return [await text(tail, retries) for tail in some]  # one of them has the mark's text in it

        mark = self._results_in_order(text, [[between]])[0] if tails else ""
        return self._in_batches(ask, tails)

    def _beside(self, path: str) -> str:
        """The address of a path that vLLM serves beside /v1, not under it."""
        return f"{self._url.removesuffix('/v1')}/{path}"


def rank_advice(error: Exception, folder: Path) -> str:
    """What to do about an adapter whose rank is above the server's --max-lora-rank, or ""."""
    if "max_lora_rank" not in error_text(error):
        return ""
    return f" Start it again with --max-lora-rank {vllm_rank(read_adapter_config(folder).rank)}"


def results_of(request: Request, reply: Reply) -> list[Result]:
    """The samples that have content as one result, and one result with an error for each of the others."""
    pairs = list(zip(request.ids, reply.answers))
    answered = {i: answer for i, answer in pairs if isinstance(answer, Answer)}
    failed = {i: why for i, why in pairs if isinstance(why, str)}
    whole = [Result(replace(request, ids=tuple(answered)), list(answered.values()), prompt_ids=reply.prompt_ids)]
    return whole[: len(answered)] + [Result(replace(request, ids=(i,)), [], why) for i, why in failed.items()]


@contextmanager
def without_openai_settings() -> Iterator[None]:
    """Hide OPENAI_ORG_ID, OPENAI_CUSTOM_HEADERS and the like from the client: a rented box must not see them."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("OPENAI_")}
    try:
        yield
    finally:
        os.environ.update(kept)


def served_folder(card: dict[str, Any]) -> Path | None:
    """The folder of a served adapter, where this machine can read it."""
    folder = Path(str(card.get("root")))
    names = ("adapter_config.json", "adapter_model.safetensors")
    return folder if card.get("parent") and all((folder / name).is_file() for name in names) else None


def check_fits_base(folder: Path, cards: dict[str, dict[str, Any]]) -> None:
    """UserError if an adapter does not fit the served base model, where its config is on this machine."""
    for card in cards.values():
        if not card.get("parent") and (root := card.get("root")):
            check_fits(folder, str(root), model_config(str(root), download=False))


def warn_of_older_weights(url: str, card: dict[str, Any]) -> None:
    """Warn when an adapter on disk is newer than the server: the server may hold an older one, and cached prefixes of
    it, while the manifest would name the newer."""
    folder = served_folder(card)
    started = started_at(url) if folder else None
    if folder and started and (folder / "adapter_model.safetensors").stat().st_mtime > started:
        if str(card["id"]).endswith(adapter_sha256(folder)[:8]):
            return  # loaded by this client under a name that holds the hash of these very weights
        say(
            f"warning: {folder} was written after the server had started: unless it was loaded since, the server"
            f" answers with older weights under the name {card['id']}; restart it, or ask with --adapter {folder}"
        )
