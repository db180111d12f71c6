"""The server backend: an OpenAI-compatible server (vLLM), many requests in flight, over HTTP alone."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from util.cli import UserError
from util.inference.interface import (
    NEUTRAL_SAMPLING,
    NUMBER_LIST,
    TOP_LOGPROBS,
    Answer,
    Message,
    Node,
    Request,
    Result,
    Sampling,
    ServerFailed,
    adapter_name,
    model_name,
)
from util.inference.vllm_probe import is_loopback, models_served, normal_url, server_key, started_at, warn_if_open
from util.jsonl.manifest import adapter_sha256, scrub
from util.jsonl.rows import are_token_ids
from util.terminal import say

if TYPE_CHECKING:
    import numpy as np

CONTEXT_ERRORS = ("context length", "max_model_len", "max_tokens must be at least")
FAILURES_IN_A_ROW = 12
ATTEMPTS = 3
BUSY = (429, 503)  # a server that is there but will not serve now: waited for, never counted as failing
BUSY_SECONDS = 2.0
MORE_LOGPROBS = 200  # next tokens asked for; vLLM lists 20 unless --max-logprobs says more
LONGEST_GREEDY = 256  # tokens within which an answer should end
PROMPTS_PER_REQUEST = 50
NOT_WHOLE = (ValueError, KeyError, TypeError, RecursionError)  # what reading a broken or hostile reply raises
S = TypeVar("S")
T = TypeVar("T")


class ForeignReply(ValueError):
    """A reply of something else than a model: a login page, a proxy's error. No fault of the request."""


class NoAnswer(UserError):
    """One request has no answer, and asking it again would not mend that; the others are not touched."""


class VllmClient:
    """An OpenAI-compatible server, many requests in flight."""

    def __init__(self, model: str, base_url: str, adapter: Path | None = None, *, max_concurrency: int, timeout: float):
        self.model = model.removeprefix("vllm/")
        self._url = normal_url(base_url)
        self.base_url = scrub(self._url)  # as it may be shown
        warn_if_open(self._url)
        self.max_concurrency, self.timeout = max_concurrency, timeout
        self.name = model_name(self.model)
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_unless_interrupted)
        self._client = self._make_client()
        try:
            self.card = self._preflight(adapter)
        except BaseException:
            self.__exit__()
            raise

    def _make_client(self) -> Any:
        import aiohttp  # noqa: F401  where it is missing the client has no words for it
        import httpx2
        import openai

        # The watch over the whole run is self.timeout: on a full server a single request may wait its turn for long.
        timeout = openai.Timeout(3600.0, connect=10.0)
        # aiohttp: the pool of the client's default looks through all connections at each request. But it takes no key
        # beside a password in the address. A proxy of the environment does not know this machine's own servers.
        make_pool = openai.DefaultAsyncHttpxClient if "@" in self._url else openai.DefaultAioHttpClient
        pool = make_pool(
            limits=httpx2.Limits(max_connections=self.max_concurrency),
            timeout=timeout,
            trust_env=not is_loopback(self._url),
        )
        with without_openai_settings():
            return openai.AsyncOpenAI(
                base_url=self._url, api_key=server_key() or "none", max_retries=2, timeout=timeout, http_client=pool
            )

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
        if adapter is not None:
            self.model = self._load_adapter(adapter, cards)
            self.name = adapter_name(adapter)
            cards = self._served()
        if self.model not in cards:
            there = ", ".join(sorted(cards)) or "nothing"
            raise UserError(
                f"{self.base_url} does not serve {self.model!r}; it serves: {there}. Pass one of these as --model, or"
                f" start the server with --lora-modules {self.model}=PATH"
            )
        return cards[self.model]

    def _served(self) -> dict[str, dict[str, Any]]:
        import openai

        once: Any = {"max_retries": 0, "timeout": 30.0}
        try:
            # As text, parsed here: the client hands a web page through as if it were a list of models.
            listed = json.loads(self._loop.run_until_complete(self._client.get("/models", cast_to=str, options=once)))
            return {str(card["id"]): card for card in listed["data"]}
        except NOT_WHOLE:
            raise UserError(
                f"{self.base_url}/models is no list of models, so this is no OpenAI-compatible server; check --base-url"
            ) from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UserError(f"{self.base_url} wants a key ({_server_text(error)}); set VLLM_API_KEY") from None
        except openai.APIStatusError as error:
            raise UserError(f"{self.base_url}/models answered {error.status_code}: {_server_text(error)}") from None
        except openai.OpenAIError:
            raise ServerFailed(
                f"no server answers at {self.base_url}; start one, for example:\n"
                f"  vllm serve Qwen/Qwen2.5-7B-Instruct --host 127.0.0.1 --port 8000 --dtype bfloat16"
            ) from None

    def _load_adapter(self, folder: Path, cards: dict[str, dict[str, Any]]) -> str:
        """Load an adapter into the running server. Its name holds its hash: vLLM keeps the cached prefixes of old
        weights when a name is loaded again."""
        import openai

        name = f"{adapter_name(folder)}-{adapter_sha256(folder)[:8]}"
        if name in cards:
            return name
        body = {"lora_name": name, "lora_path": str(folder.resolve())}
        try:
            self._loop.run_until_complete(self._client.post("/load_lora_adapter", body=body, cast_to=str))
        except openai.NotFoundError:
            raise UserError(
                f"{self.base_url} does not load adapters while it runs; start vLLM with --enable-lora and"
                f" VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, or with --lora-modules NAME={folder}"
            ) from None
        except openai.OpenAIError as error:
            raise UserError(f"the server could not load {folder}: {_server_text(error)}") from None
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
            "engine": "server",
            "model": self.model,
            "root": self.card.get("root"),
            "parent": self.card.get("parent"),
        }
        if self.card.get("parent"):
            folder = served_folder(self.card)
            facts["adapter_sha256"] = adapter_sha256(folder) if folder else None
        return facts

    def generate(
        self, requests: Iterable[Request], sampling: Sampling, done: Collection[int] = ()
    ) -> Generator[Result, None, None]:
        todo = (request for request in requests if not all(row_id in done for row_id in request.ids))
        return self._together(lambda request, breaker: self._ask(request, sampling, breaker), todo)

    # --- many requests in flight, each tried again ---

    def _together(self, ask: Callable[[S, _Breaker], Awaitable[T]], items: Iterable[S]) -> Generator[T, None, None]:
        """What `ask` finds for each item, in any order; items are pulled as there is room."""
        todo = iter(items)
        finished: asyncio.Queue[T | BaseException | None] = asyncio.Queue()
        breaker = _Breaker(self.base_url)

        async def worker() -> None:
            try:
                for item in todo:
                    finished.put_nowait(await ask(item, breaker))
            except Exception as error:  # handed to the caller below
                finished.put_nowait(error)
            finished.put_nowait(None)

        workers = [self._loop.create_task(worker()) for _ in range(self.max_concurrency)]
        running = len(workers)
        try:
            while running:
                found = self._loop.run_until_complete(self._next(finished))
                yield from (item for item in found if item is not None and not isinstance(item, BaseException))
                for item in found:
                    if isinstance(item, BaseException):  # raised last: what was answered is handed out first
                        raise item
                running -= found.count(None)
        finally:
            self._loop.run_until_complete(_cancel_all())

    def _in_order(self, ask: Callable[[S, _Breaker], Awaitable[T]], items: Iterable[S]) -> list[T]:
        """What `ask` finds for each item, in the order of the items."""

        async def numbered(item: tuple[int, S], breaker: _Breaker) -> tuple[int, T]:
            return item[0], await ask(item[1], breaker)

        found = dict(self._together(numbered, enumerate(items)))
        return [found[place] for place in range(len(found))]

    async def _next(self, finished: asyncio.Queue[Any]) -> list[Any]:
        """Everything that has come in, at least one item."""
        try:
            items = [await asyncio.wait_for(finished.get(), self.timeout)]
        except asyncio.TimeoutError:
            hangs = models_served(self._url, server_key()) is not None
            state = " (it still lists its models: its backend hangs)" if hangs else ""
            raise ServerFailed(
                f"{self.base_url} gave no answer for {self.timeout:.0f} s although requests are waiting{state}; look at"
                f" its log (a longer --timeout waits longer), restart it and run the same command again"
            ) from None
        while not finished.empty():
            items.append(finished.get_nowait())
        return items

    def request_body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        """The chat request as it is sent: every field that decides the distribution is in it."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": request.messages,
            "n": len(request.ids),
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            "seed": request.seed,
            **NEUTRAL_SAMPLING,
            "return_token_ids": True,
        }
        if sampling.numbers_only:
            body["structured_outputs"] = {"regex": NUMBER_LIST}
        return body

    async def _ask(self, request: Request, sampling: Sampling, breaker: _Breaker) -> Result:
        def parse(reply: str) -> tuple[list[Answer], list[int] | None]:
            return parse_reply(reply, len(request.ids))

        body = self.request_body(request, sampling)
        try:
            answers, prompt_ids = await self._post("/chat/completions", body, parse, breaker, f"row {request.ids[0]}")
        except NoAnswer as why:
            return Result(request, [], str(why))
        return Result(request, answers, prompt_ids=prompt_ids)

    async def _post(
        self, path: str, body: dict[str, Any], parse: Callable[[str], T], breaker: _Breaker, what: str
    ) -> T:
        """The parsed reply to one request, asked again while that may help. `parse` raises ValueError for a reply that
        is not whole. Raises NoAnswer where only this request is at fault, ServerFailed, or UserError."""
        import openai

        attempt = 0
        while attempt < ATTEMPTS:
            try:
                # As text, parsed here: the client's own models cost as much time as the rest of a request.
                found = parse(await self._client.post(path, body=body, cast_to=str))
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                text = _server_text(error)
                if any(sign in text for sign in CONTEXT_ERRORS):
                    raise NoAnswer(f"too long for the model's context: {text}") from None
                raise UserError(f"the server refused a request: {text}") from None
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                raise UserError(f"{self.base_url} wants a key ({_server_text(error)}); set VLLM_API_KEY") from None
            except openai.NotFoundError as error:
                raise UserError(f"the server no longer has {self.model!r}: {_server_text(error)}") from None
            except (openai.OpenAIError, ValueError) as error:
                if getattr(error, "status_code", None) in BUSY:
                    breaker.busy(error)
                    await asyncio.sleep(BUSY_SECONDS)  # for as long as self.timeout allows
                    continue
                attempt += 1
                unusable = isinstance(error, ValueError) and not isinstance(error, ForeignReply)
                if unusable and attempt == ATTEMPTS:
                    raise NoAnswer(f"no usable answer: {error}") from None
                breaker.failed(error)
                await asyncio.sleep(0.25 * 2**attempt)
            else:
                breaker.answered()
                return found
        raise ServerFailed(
            f"{self.base_url} failed {ATTEMPTS} times on {what}: {breaker.last_error}. Everything"
            f" answered is on disk; look at the server's log and run the same command again"
        )

    # --- token ids and exact probabilities ---

    def answer_tree(self, prompts: Sequence[list[Message]]) -> ServerTree:
        return ServerTree(self, prompts)

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        return self.greedy_answers([messages], 1)[0][0]

    def greedy_answers(self, prompts: Sequence[list[Message]], max_tokens: int) -> list[tuple[list[int], Answer]]:
        """The token ids of each prompt and its most probable answer. UserError where the server tells no token ids."""
        requests = [Request((place,), messages, seed=0) for place, messages in enumerate(prompts)]
        results = sorted(self.generate(requests, Sampling(max_tokens, temperature=0.0)), key=lambda r: r.request.ids)
        found = []
        for result in results:
            if result.error is not None:
                raise UserError(result.error)
            (answer,) = result.answers
            if result.prompt_ids is None or not answer.token_ids:
                raise UserError(
                    f"{self.base_url} does not tell token ids; exact probabilities need vLLM, or the model in this"
                    f" process (no --base-url, --adapter FOLDER)"
                )
            found.append((result.prompt_ids, answer))
        return found

    def next_token_logprobs(self, prompts: list[list[int]], top: int = TOP_LOGPROBS) -> list[dict[int, float]]:
        async def ask(prompt: list[int], breaker: _Breaker) -> dict[int, float]:
            body = {**self._completion([prompt]), "logprobs": top, "return_tokens_as_token_ids": True}
            (found,) = await self._post("/completions", body, parse_logprobs, breaker, "a next token")
            return _most_probable(found["top_logprobs"][0], top)

        return self._in_order(ask, prompts)

    def prompt_logprobs(self, prompts: Sequence[list[int]]) -> list[list[float]]:
        """Log-probability (nats) of each token of each prompt but its first, given the tokens before it."""

        async def ask(some: Sequence[list[int]], breaker: _Breaker) -> list[list[float]]:
            body = {**self._completion(some), "logprobs": 0, "echo": True}
            found = await self._post("/completions", body, parse_logprobs, breaker, "a prompt")
            return [one["token_logprobs"][1 : len(prompt)] for one, prompt in zip(found, some)]

        batches = [prompts[i : i + PROMPTS_PER_REQUEST] for i in range(0, len(prompts), PROMPTS_PER_REQUEST)]
        return list(chain.from_iterable(self._in_order(ask, batches)))

    def _completion(self, prompts: Sequence[list[int]]) -> dict[str, Any]:
        """A request for one more token after each prompt of token ids, from the model's own distribution."""
        return {"model": self.model, "prompt": prompts, "max_tokens": 1, "temperature": 1.0, **NEUTRAL_SAMPLING}

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, with no special token added."""

        async def ask(text: str, breaker: _Breaker) -> list[int]:
            body = {"model": self.model, "prompt": text, "add_special_tokens": False}
            return await self._post(self._beside("tokenize"), body, parse_field("tokens"), breaker, "a text")

        return self._in_order(ask, texts)

    def texts(self, tails: Sequence[Sequence[int]]) -> list[str]:
        """The text of each list of token ids."""

        async def ask(tail: Sequence[int], breaker: _Breaker) -> str:
            body = {"model": self.model, "tokens": tail}
            return await self._post(self._beside("detokenize"), body, parse_field("prompt"), breaker, "some tokens")

        return self._in_order(ask, tails)

    def _beside(self, path: str) -> str:
        """The address of what vLLM serves beside /v1, not under it."""
        return f"{self._url.removesuffix('/v1')}/{path}"


@contextmanager
def without_openai_settings() -> Iterator[None]:
    """Hide OPENAI_ORG_ID, OPENAI_CUSTOM_HEADERS and the like from the client: no business of a rented box."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("OPENAI_")}
    try:
        yield
    finally:
        os.environ.update(kept)


class ServerTree:
    """Answer tree of a served model, from the most probable next tokens that vLLM lists with their log-probabilities.

    What it does not list (all but 20 tokens, unless vLLM runs with a larger --max-logprobs) stays uncovered, so shares
    are lower bounds. Which tokens end an answer depends on the server's flags, so the server itself is asked: every
    prompt gets a greedy answer, and what ends one of them ends any. Texts come from /detokenize: they are those of
    `generate`, but for special tokens inside an answer, which it leaves out.
    """

    def __init__(self, backend: VllmClient, prompts: Sequence[list[Message]]):
        greedy = backend.greedy_answers(prompts, LONGEST_GREEDY)
        self.backend, self.prompts = backend, [prompt for prompt, _ in greedy]
        self.end_ids = {(answer.token_ids or [])[-1] for _, answer in greedy if answer.finish_reason == "stop"}
        if not self.end_ids:
            raise UserError(
                f"none of {len(prompts)} greedy answers of {backend.model!r} ended within {LONGEST_GREEDY} tokens, so"
                f" the token that ends an answer is unknown; is it a chat model, with its own chat template?"
            )
        self.top = self._most_listed()

    def _most_listed(self) -> int:
        """How many next tokens the server lists: MORE_LOGPROBS, or if that is over its --max-logprobs the default."""
        with suppress(UserError):
            self.backend.next_token_logprobs(self.prompts[:1], MORE_LOGPROBS)
            return MORE_LOGPROBS
        self.backend.next_token_logprobs(self.prompts[:1], TOP_LOGPROBS)
        return TOP_LOGPROBS

    def expand(self, nodes: Sequence[Node]) -> Iterator[tuple[Node, np.ndarray, np.ndarray]]:
        import numpy as np

        prompts = [[*self.prompts[node.prompt], *node.tail] for node in nodes]
        for node, listed in zip(nodes, self.backend.next_token_logprobs(prompts, self.top)):
            probabilities = np.exp(list(listed.values()))
            if probabilities.sum() > 1.001:
                raise UserError("the server's next-token probabilities exceed 1; start vLLM without --logprobs-mode")
            yield node, np.array(list(listed)), probabilities

    def texts(self, tails: Sequence[tuple[int, ...]]) -> list[str]:
        distinct = list(dict.fromkeys(tails))
        found = dict(zip(distinct, self.backend.texts(distinct)))
        return [found[tail] for tail in tails]

    def log_probabilities(self, answers: Sequence[str]) -> np.ndarray:
        import numpy as np

        tails = [[*tail, end] for tail in self.backend.token_ids(answers) for end in sorted(self.end_ids)]
        logprobs = self.backend.prompt_logprobs([[*prompt, *tail] for prompt in self.prompts for tail in tails])
        lengths = [len(tail) for _ in self.prompts for tail in tails]
        sums = np.array([sum(one[-length:]) for one, length in zip(logprobs, lengths)])
        return np.logaddexp.reduce(sums.reshape(len(self.prompts), len(answers), len(self.end_ids)), axis=2)


class _Breaker:
    """Stops a run when nothing but failures comes back, instead of burning its prompts one by one."""

    def __init__(self, base_url: str):
        self.base_url, self.in_a_row, self.last_error = base_url, 0, ""
        self.told_busy = False

    def answered(self) -> None:
        self.in_a_row = 0

    def busy(self, error: Exception) -> None:
        if not self.told_busy:
            say(f"{self.base_url} is busy ({_server_text(error)}); waiting for it")
        self.told_busy = True

    def failed(self, error: Exception) -> None:
        self.in_a_row += 1
        self.last_error = _server_text(error)
        if self.in_a_row >= FAILURES_IN_A_ROW:
            raise ServerFailed(
                f"{self.base_url} stopped answering ({self.last_error}). Everything answered is on disk; restart the"
                f" server (vLLM exits with code 0 even when its backend dies) and run the same command again"
            ) from None


async def _cancel_all() -> None:
    """End every other task of this loop: the workers and, after a second Ctrl-C, what waited for them."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _unless_interrupted(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report what asyncio reports, but not that Ctrl-C ended some task: `run` says it once."""
    if not isinstance(context.get("exception"), KeyboardInterrupt):
        loop.default_exception_handler(context)


def parse_reply(text: str, wanted: int) -> tuple[list[Answer], list[int] | None]:
    """(answers in sample order, token ids of the prompt if the server tells) of a chat reply. ForeignReply for another
    kind of reply, ValueError for one that is not whole."""
    try:
        reply = json.loads(text)
        choices = sorted(reply["choices"], key=lambda choice: choice["index"])
        answers = [
            Answer(choice["message"]["content"], choice.get("token_ids"), choice["finish_reason"]) for choice in choices
        ]
        prompt_ids = reply.get("prompt_token_ids")
    except NOT_WHOLE:
        raise ForeignReply(f"a reply that is no chat completion: {text[:80]!r}") from None
    if len(answers) != wanted:
        raise ValueError(f"{len(answers)} answers where {wanted} were asked for")
    if not all(isinstance(answer.text, str) for answer in answers):
        raise ValueError("an answer without content")
    if not all(map(are_token_ids, [prompt_ids, *(answer.token_ids for answer in answers)])):
        raise ValueError("token ids that are no list of whole numbers")
    return answers, prompt_ids


def parse_logprobs(reply: str) -> list[dict[str, Any]]:
    """The logprobs of a completions reply, one for each prompt. ValueError for a reply that has none."""
    try:
        choices = sorted(json.loads(reply)["choices"], key=lambda choice: choice["index"])
        found = [choice["logprobs"] for choice in choices]
    except NOT_WHOLE:
        found = []
    if not found or not all(isinstance(one, dict) and one.get("token_logprobs") for one in found):
        raise ValueError(f"a reply without log-probabilities: {reply[:80]!r}")
    return found


def parse_field(name: str) -> Callable[[str], Any]:
    """A parser of replies that takes one field. ValueError for a reply without it."""

    def parse(reply: str) -> Any:
        try:
            return json.loads(reply)[name]
        except NOT_WHOLE:
            raise ValueError(f"a reply without {name!r}: {reply[:80]!r}") from None

    return parse


def _most_probable(logprobs: dict[str, float], top: int) -> dict[int, float]:
    """{'token_id:17': -0.1, ...} -> {17: -0.1, ...}, at most `top` (vLLM adds the sampled token as one more)."""
    ranked = sorted(logprobs.items(), key=lambda item: -item[1])[:top]
    return {int(token.removeprefix("token_id:")): value for token, value in ranked}


def _server_text(error: Exception) -> str:
    """The server's own words, on one line, without the client's wrapping."""
    body = getattr(error, "body", None)
    if isinstance(body, dict):
        body = body.get("message") or body.get("error") or body
        body = body.get("message", body) if isinstance(body, dict) else body
    if body is None and error.__cause__:  # the client calls a closed connection a timeout
        body = f"Connection error: {error.__cause__}"
    text = scrub(" ".join(str(body or error).split()))  # some servers repeat the key
    return text if len(text) <= 300 else text[:297] + "..."


def served_folder(card: dict[str, Any]) -> Path | None:
    """The folder of a served adapter, where this machine can read it."""
    folder = Path(str(card.get("root")))
    names = ("adapter_config.json", "adapter_model.safetensors")
    return folder if card.get("parent") and all((folder / name).is_file() for name in names) else None


def warn_of_older_weights(url: str, card: dict[str, Any]) -> None:
    """Say so when an adapter on disk is newer than the server: the server may hold an older one, and cached prefixes of
    it, while the manifest would name the newer."""
    folder = served_folder(card)
    started = started_at(url) if folder else None
    if folder and started and (folder / "adapter_model.safetensors").stat().st_mtime > started:
        say(
            f"warning: {folder} was written after the server had started: unless it was loaded since, the server"
            f" answers with older weights under the name {card['id']}; restart it, or ask with --adapter {folder}"
        )
