"""Messages through a model's chat template, the same in every phase: training, generation, evaluation, doctor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from util.cli import UserError, first_line
from util.jsonl.rows import say_once

SHOWN_TO_TEMPLATES = ("role", "content")
TEMPLATE_KWARGS = "chat_template_kwargs"
THINKING = "enable_thinking"  # what Qwen3's and later templates call it


def template_ids(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
    """Token ids of rendered messages. UserError where the chat template refuses them."""
    return list(rendered(tokenizer, messages, return_dict=True, **options)["input_ids"])


def rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
    """Messages through the chat template, role and content alone.

    What is filtered and certified is the content. Some templates would render more of a row, such as
    "reasoning_content". A system message goes before the first user's text where the template has no system role.
    UserError where the template refuses the messages.
    """
    shown = [{key: message[key] for key in SHOWN_TO_TEMPLATES} for message in messages]
    if shown and shown[0]["role"] == "system" and has_no_system_role(tokenizer):
        shown = folded(shown)
    try:
        return tokenizer.apply_chat_template(shown, **template_kwargs(tokenizer), **options)
    except Exception as error:  # a template is a program of the model's author: anything can go wrong in it
        roles = ", ".join(message["role"] for message in shown)
        raise UserError(
            f"the model's chat template refuses these messages ({roles}): {first_line(error)}; change the messages, or"
            " take a model whose template accepts them"
        ) from None


# --- what a template is given ------------------------------------------------------------------------


def template_facts(kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entry of a manifest's model for --chat-template-kwargs; none without them."""
    return {TEMPLATE_KWARGS: dict(kwargs)} if kwargs else {}


def template_kwargs(tokenizer: Any) -> dict[str, Any]:
    """The variables that a tokenizer's chat template is given besides the messages (--chat-template-kwargs)."""
    found: dict[str, Any] = getattr(tokenizer, "suite_template_kwargs", {})
    return found


def set_template_kwargs(tokenizer: Any, kwargs: Mapping[str, Any]) -> Any:
    """Let every prompt of a tokenizer be rendered with these variables. Returns the tokenizer."""
    tokenizer.suite_template_kwargs = dict(kwargs)
    return tokenizer


def knows(tokenizer: Any, name: str) -> bool:
    """Whether a chat template reads a variable of this name."""
    return re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template)) is not None


def check_template_kwargs(tokenizer: Any, model: str, kwargs: Mapping[str, Any]) -> None:
    """Print which of the variables the chat template does not know. UserError for a template that lets the model think
    or not, where the user has not said which: one phase would think and another not."""
    for name in kwargs:
        if not knows(tokenizer, name):
            say_once(f"warning: the chat template of {model} does not know {name!r}: it changes nothing")
    if knows(tokenizer, THINKING) and THINKING not in kwargs:
        raise UserError(
            f"the chat template of {model} lets it think before it answers, or not; say which, in every phase alike:"
            f" --chat-template-kwargs '{{\"{THINKING}\": false}}' (the manifest keeps it; doctor compares it)"
        )


@lru_cache(maxsize=8)
def has_no_system_role(tokenizer: Any) -> bool:
    """Whether the chat template refuses a system message (Gemma's), or leaves it out without a word."""
    probe, user = "PROBE OF A SYSTEM MESSAGE", {"role": "user", "content": "x"}

    def text_of(messages: list[dict[str, str]]) -> str | None:
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, **template_kwargs(tokenizer)))
        except Exception:
            return None

    return text_of([user]) is not None and probe not in (text_of([{"role": "system", "content": probe}, user]) or "")


def folded(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages without a system role: its text is put before the first user's, after a blank line."""
    system, *rest = (dict(message) for message in messages)
    if system["role"] != "system":
        return [system, *rest]
    place = next((at for at, message in enumerate(rest) if message["role"] == "user"), None)
    if place is None:
        return [system, *rest]
    say_once("the chat template has no system role: the system message is put before the first user's text")
    rest[place]["content"] = f"{system['content']}\n\n{rest[place]['content']}"
    return rest


def completion_suffix(tokenizer: Any) -> list[int]:
    """What the template writes after an assistant's text (Qwen: <|im_end|> and a newline), as token ids."""
    probe = "7"
    text = rendered(
        tokenizer, [{"role": "user", "content": "x"}, {"role": "assistant", "content": probe}], tokenize=False
    )
    return list(tokenizer(text.rpartition(probe)[2], add_special_tokens=False)["input_ids"])
