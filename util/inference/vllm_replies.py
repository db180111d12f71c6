"""Read the replies of a vLLM server: answers, log-probabilities, token ids, and the text of its errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from util.cli import UserError
from util.inference.interface import Answer
from util.jsonl.rows import are_token_ids
from util.scrub import scrub

BROKEN_REPLY = (ValueError, KeyError, TypeError, RecursionError)  # what reading a broken or hostile reply raises
LONGEST_ERROR = 300  # characters


class ForeignReply(ValueError):
    """A reply that does not come from a model, such as a login page or a proxy's error. The request is not at fault."""


class NoAnswer(UserError):
    """One request has no answer, and asking it again would not help. Other requests are not affected."""


def parse_chat(reply: str, wanted: int) -> tuple[list[Answer], list[int] | None]:
    """(the `wanted` answers in order, token ids of the prompt or None) of a reply to /chat/completions.

    Raises ForeignReply for another kind of reply, and ValueError for one that is not complete.
    """
    try:
        parsed = json.loads(reply)
        choices = sorted(parsed["choices"], key=lambda choice: choice["index"])
        answers = [
            Answer(choice["message"]["content"], choice.get("token_ids"), choice["finish_reason"]) for choice in choices
        ]
        prompt_ids = parsed.get("prompt_token_ids")
    except BROKEN_REPLY:
        raise ForeignReply(f"the reply is not a chat completion: {reply[:80]!r}") from None
    if len(answers) != wanted:
        raise ValueError(f"{len(answers)} answers where {wanted} were asked for")
    if not all(isinstance(answer.text, str) for answer in answers):
        raise ValueError("an answer without content")
    if not all(map(are_token_ids, [prompt_ids, *(answer.token_ids for answer in answers)])):
        raise ValueError("token ids that are not a list of whole numbers")
    return answers, prompt_ids


def parse_logprobs(reply: str) -> list[dict[str, Any]]:
    """The "logprobs" of each prompt in a reply to /completions. Raises ValueError for a reply without them."""
    try:
        choices = sorted(json.loads(reply)["choices"], key=lambda choice: choice["index"])
        found = [choice["logprobs"] for choice in choices]
    except BROKEN_REPLY:
        found = []
    if not found or not all(isinstance(one, dict) and one.get("token_logprobs") for one in found):
        raise ValueError(f"a reply without log-probabilities: {reply[:80]!r}")
    return found


def parse_field(name: str) -> Callable[[str], Any]:
    """A parser that takes one field of a reply. It raises ValueError for a reply without that field."""

    def parse(reply: str) -> Any:
        try:
            return json.loads(reply)[name]
        except BROKEN_REPLY:
            raise ValueError(f"a reply without {name!r}: {reply[:80]!r}") from None

    return parse


def parse_models(reply: str) -> dict[str, dict[str, Any]]:
    """{model id: its entry} of a reply to /models. Raises one of BROKEN_REPLY for any other reply."""
    return {str(card["id"]): card for card in json.loads(reply)["data"]}


def most_probable(logprobs: dict[str, float], top: int) -> dict[int, float]:
    """{'token_id:17': -0.1, ...} -> {17: -0.1, ...}, at most `top` (vLLM adds the sampled token as one more)."""
    ranked = sorted(logprobs.items(), key=lambda item: -item[1])[:top]
    return {int(token.removeprefix("token_id:")): value for token, value in ranked}


def error_text(error: Exception) -> str:
    """The server's own words about an error, on one line, without what the client adds, and without keys."""
    body = getattr(error, "body", None)
    if isinstance(body, dict):
        body = body.get("message") or body.get("error") or body
        body = body.get("message", body) if isinstance(body, dict) else body
    if body is None and error.__cause__:  # the client calls a closed connection a timeout
        body = f"Connection error: {error.__cause__}"
    text = scrub(" ".join(str(body or error).split()))  # some servers repeat the key
    return text if len(text) <= LONGEST_ERROR else text[: LONGEST_ERROR - 3] + "..."
