"""Read the replies of a vLLM server: answers, log-probabilities, token ids, and the text of its errors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from util.cli import UserError
from util.hide_secrets import scrub
from util.inference.backend_interface import Answer, NotFinite
from util.jsonl.rows import are_token_ids

BROKEN_REPLY = (ValueError, KeyError, TypeError, RecursionError)  # what reading a broken or hostile reply raises
LONGEST_ERROR = 300  # characters
END_PROBE = "7"  # an answer that tokenizers do not join with what follows
SPECIAL = r"<(?!0x)[^<>\s]+>|\[[^\[\]\s]+\]"  # <|im_end|>, <end_of_turn>, </s>, [/INST]; not <0x0A>, which is a newline
NAN_REFUSED = "not JSON compliant"  # vLLM's error where a log-probability is NaN or infinity
DAMAGED = (
    "the served model's log-probabilities are not finite (NaN or infinity): its weights or its adapter are damaged. A"
    " damaged adapter spoils a vLLM server for its other adapters too: restart it without that adapter"
)
THOUGHTS = ("reasoning_content", "reasoning")  # where servers put what a model thinks before it answers


class ForeignReply(ValueError):
    """A reply that does not come from a model, such as a login page or a proxy's error. The request is not at fault."""


class NoAnswer(UserError):
    """One request has no answer, and asking it again would not help. Other requests are not affected."""


class IgnoresN(UserError):
    """The server gives one answer, however many samples a request asks for."""


@dataclass(frozen=True)
class Reply:
    """A reply to /chat/completions."""

    answers: list[Answer | str]
    """in order; where a sample has no content: why"""
    prompt_ids: list[int] | None
    """token ids of the prompt, if the server sends them"""


def parse_chat(reply: str, wanted: int) -> Reply:
    """A reply with `wanted` answers, of which one at least has content or was cut off while the model was thinking.

    Raises ForeignReply for another kind of reply, IgnoresN, and ValueError for a reply that is not complete.
    """
    try:
        parsed = json.loads(reply)
        choices = sorted(parsed["choices"], key=lambda choice: choice["index"])
        found = [(choice["message"], choice.get("token_ids"), choice["finish_reason"]) for choice in choices]
        contents = [message["content"] for message, _, _ in found]
        thoughts = [any(message.get(name) for name in THOUGHTS) for message, _, _ in found]
        prompt_ids = parsed.get("prompt_token_ids")
    except (*BROKEN_REPLY, AttributeError):
        raise ForeignReply(f"the reply is not a chat completion: {start_of(reply)}") from None
    if len(found) == 1 < wanted:
        raise IgnoresN(
            f"the server gives 1 answer to a request for {wanted} samples: it ignores n, as some servers other than"
            " vLLM do. Serve the model with vLLM, or run it in this process (without --base-url)"
        )
    if len(found) != wanted:
        raise ValueError(f"{len(found)} answers where {wanted} were asked for")
    if not all(content is None or isinstance(content, str) for content in contents):
        raise ValueError("an answer whose content is not text")
    if contents.count(None) == wanted and not any(thoughts):
        raise ValueError("an answer without content")
    if not all(map(are_token_ids, [prompt_ids, *(ids for _, ids, _ in found)])):
        raise ValueError("token ids that are not a list of whole numbers")
    answers = [
        no_content(thought, reason) if text is None else Answer(text, ids, reason)
        for text, thought, (_, ids, reason) in zip(contents, thoughts, found)
    ]
    return Reply(answers, prompt_ids)


def no_content(thought: bool, reason: str) -> str:
    """Why a sample has no content. The part before the colon is counted as the reason for a rejected row."""
    if thought:
        return (
            f"reasoning without an answer: the model was thinking until its answer ended ({reason}), and the server"
            " puts thoughts in a field of their own; start it without --reasoning-parser, or serve a model that"
            " does not reason"
        )
    return f"no content: the server gives no text for this answer (finish_reason {reason})"


def start_of(reply: str) -> str:
    """The beginning of a reply that cannot be used, for a message. Keys in it are hidden."""
    return repr(scrub(reply[:400])[:80])


def parse_logprobs(reply: str) -> list[dict[str, Any]]:
    """The "logprobs" of each prompt in a reply to /completions. Raises ValueError for a reply without them, and
    NotFinite for NaN or infinity."""
    try:
        choices = sorted(json.loads(reply)["choices"], key=lambda choice: choice["index"])
        found = [choice["logprobs"] for choice in choices]
    except BROKEN_REPLY:
        found = []
    if not found or not all(isinstance(one, dict) and one.get("token_logprobs") for one in found):
        raise ValueError(f"a reply without log-probabilities: {start_of(reply)}")
    for value in chain.from_iterable(map(numbers_in, found)):
        if type(value) not in (int, float):
            raise ValueError(f"log-probabilities that are not numbers: {start_of(reply)}")
        if not math.isfinite(value):
            raise NotFinite(DAMAGED)
    return found


def parse_drawn(wanted: int) -> Callable[[str], list[tuple[list[int], str]]]:
    """A parser of (token ids, finish_reason) of `wanted` answers of /completions. It raises ValueError for others."""

    def parse(reply: str) -> list[tuple[list[int], str]]:
        try:
            choices = sorted(json.loads(reply)["choices"], key=lambda choice: choice["index"])
            found = [(choice["token_ids"], choice["finish_reason"]) for choice in choices]
        except BROKEN_REPLY:
            found = []
        if len(found) != wanted or not all(ids and are_token_ids(ids) for ids, _ in found):
            raise ValueError(f"a reply without the token ids of {wanted} answers: {start_of(reply)}")
        return found

    return parse


def numbers_in(found: dict[str, Any]) -> Iterator[Any]:
    """Every log-probability in the "logprobs" of a prompt. With echo the first token has none."""
    yield from (value for value in found["token_logprobs"] if value is not None)
    yield from (value for one in found.get("top_logprobs") or () for value in (one or {}).values())


def parse_end_of_turn(reply: str) -> list[int]:
    """The token that the chat template writes after the answer END_PROBE, in a list, from a reply to /tokenize; [] for
    an ordinary token, which must not end answers, and for any other reply."""
    try:
        tokens, texts = (json.loads(reply)[name] for name in ("tokens", "token_strs"))
        after = max(place for place, text in enumerate(texts) if text.endswith(END_PROBE)) + 1
        is_special = re.fullmatch(SPECIAL, texts[after]) is not None
        return [int(tokens[after])] if is_special else []
    except (*BROKEN_REPLY, AttributeError, IndexError):
        return []


def parse_field(name: str) -> Callable[[str], Any]:
    """A parser that takes one field of a reply. It raises ValueError for a reply without that field."""

    def parse(reply: str) -> Any:
        try:
            return json.loads(reply)[name]
        except BROKEN_REPLY:
            raise ValueError(f"a reply without {name!r}: {start_of(reply)}") from None

    return parse


def parse_models(reply: str) -> dict[str, dict[str, Any]]:
    """{model id: its entry} of a reply to /models. Raises one of BROKEN_REPLY for any other reply."""
    return {str(card["id"]): card for card in json.loads(reply)["data"]}


def most_probable(logprobs: dict[str, float], top: int) -> dict[int, float]:
    """{'token_id:17': -0.1, ...} -> {17: -0.1, ...}, at most `top` (vLLM adds the sampled token as one more)."""
    ranked = sorted(logprobs.items(), key=lambda item: -item[1])[:top]
    return {int(token.removeprefix("token_id:")): value for token, value in ranked}


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what caused it, what caused that, and so on."""
    while error:
        yield error
        error = error.__cause__


def error_text(error: Exception) -> str:
    """The server's own words about an error, on one line, without what the client adds, and without keys."""
    body = getattr(error, "body", None)
    if isinstance(body, dict):
        body = body.get("message") or body.get("error") or body
        body = body.get("message", body) if isinstance(body, dict) else body
    if body is None and error.__cause__:  # the client calls a closed connection a timeout
        found = re.search(r"ssl:\S+ \[(.*)\]$", str(error.__cause__))  # aiohttp puts its own words around the reason
        refused = any(isinstance(cause, ConnectionRefusedError) for cause in causes(error))
        body = f"Connection error: {'connection refused' if refused else found[1] if found else error.__cause__}"
    text = scrub(" ".join(str(body or error).split()))  # some servers repeat the key
    return text if len(text) <= LONGEST_ERROR else text[: LONGEST_ERROR - 3] + "..."
