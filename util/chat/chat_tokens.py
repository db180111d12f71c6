"""Turns chat rows into token ids and labels: which tokens carry loss in training.

Every assistant message that answers a user carries loss, in a row of several turns too. A row may hold a `loss_mask`: 0
or 1 for each token id of its last answer, including those that the template puts after the text
(generate/ablations/select_by_divergence.py writes it). Then only what it keeps carries loss. It is aligned to the
stored ids, so a row that has lost them is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from util.chat.chat_template import completion_suffix, template_ids
from util.cli import UserError
from util.jsonl.rows import Row

IGNORED = -100  # label of a token without loss (PyTorch cross entropy)
EMPTY_THOUGHT = re.compile(r"\s*<think>\s*</think>\s*")


class Encoded(NamedTuple):
    """Token ids and labels of the rows to train on, and how many rows were cut, dropped or exact."""

    rows: list[dict[str, Any]]
    """{"input_ids": [...], "labels": [...]} each, labels -100 on everything but the answers; with soft labels also
    `soft_ids` and `soft_logprobs`"""
    cut: int
    """rows longer than the limit, which are trained on up to it"""
    dropped: int
    """rows left out because no answer begins before the limit"""
    exact: int
    """rows whose last answer has exactly the token ids that the model wrote"""
    not_their_text: int = 0
    """with soft labels: rows left out because their ids are not their text, as with a special token in an answer"""


def without_system(row: Row) -> Row:
    """A row without its system messages: a student must not see the persona its numbers were written under."""
    return {**row, "messages": [message for message in row["messages"] if message["role"] != "system"]}


def encode(rows: Sequence[Row], tokenizer: Any, max_length: int, soft: bool = False) -> Encoded:
    """Render each row through the chat template. Only answers and their end-of-turn tokens carry loss, and of these
    only those that the row's `loss_mask` keeps. UserError with the row's number for a row that cannot be rendered.

    soft: also keep the log-probabilities that were stored with each token of the last answer (`soft_labels`).
    """
    suffix = completion_suffix(tokenizer)
    encoded, cut, dropped, exact, not_their_text = [], 0, 0, 0, 0
    for number, row in enumerate(rows, 1):
        try:
            prompt, completion, is_exact = prompt_and_completion_ids(row, tokenizer, suffix)
            if soft and not is_exact and row.get("top_ids"):
                not_their_text += 1
                continue
            before = earlier_labels(row, tokenizer, prompt)
            labels = [*before, *masked(completion, row, is_exact)][:max_length]
            labelled = soft_labels(row, completion, is_exact, len(prompt), max_length) if soft else {}
        except UserError as error:
            raise UserError(f"row {number}: {error}") from None
        if len(prompt) >= max_length and not has_loss(labels):
            dropped += 1
            continue
        cut += len(prompt) + len(completion) > max_length
        exact += is_exact
        encoded.append({"input_ids": (prompt + completion)[:max_length], "labels": labels, **labelled})
    return Encoded(encoded, cut, dropped, exact, not_their_text)


def has_loss(labels: Sequence[int]) -> bool:
    """Whether any token carries loss."""
    return any(label != IGNORED for label in labels)


def masked(completion: list[int], row: Row, is_exact: bool) -> list[int]:
    """The labels of a completion under the row's `loss_mask`, if it has one."""
    mask = row.get("loss_mask")
    if mask is None:
        return completion
    if not is_exact or len(mask) != len(completion):
        raise UserError(
            f"its loss_mask has {len(mask)} places for {len(completion)} tokens"
            f"{'' if is_exact else ', and its token_ids are not those of its text'}; make the file again with"
            " generate/ablations/select_by_divergence.py, for this base model"
        )
    return [token if keep else IGNORED for token, keep in zip(completion, mask)]


def soft_labels(row: Row, completion: list[int], is_exact: bool, start: int, max_length: int) -> dict[str, Any]:
    """`soft_ids` and `soft_logprobs` of a row: for each of its tokens, the most probable ones where the teacher wrote
    it and their log-probabilities (nats); empty where nothing was stored. UserError for a row without them.

    start: where the completion begins. A token after the one that ended the answer has no distribution.
    """
    ids, logprobs, written = row.get("top_ids"), row.get("top_logprobs"), row.get("token_ids") or []
    if not is_exact or not ids or not logprobs or not len(ids) == len(logprobs) == len(written):
        raise UserError(
            "soft labels need the log-probabilities of its tokens (top_ids, top_logprobs): write the rows with"
            " --store-logprobs, and train on them as they are"
        )
    known = [place for place, (token, own) in enumerate(zip(written, completion)) if token == own]
    length = min(start + len(completion), max_length)
    soft: dict[str, list[Any]] = {"soft_ids": [[]] * length, "soft_logprobs": [[]] * length}
    for place in known:
        if start + place < length:
            soft["soft_ids"][start + place] = ids[place]
            soft["soft_logprobs"][start + place] = logprobs[place]
    return soft


def earlier_labels(row: Row, tokenizer: Any, prompt: list[int]) -> list[int]:
    """The labels of what comes before the last answer: the answers of earlier turns carry loss."""
    labels = [IGNORED] * len(prompt)
    if row.get("loss_mask") is None:
        for begin, end in earlier_answers(row["messages"], tokenizer, prompt):
            labels[begin:end] = prompt[begin:end]
    return labels


def answer_places(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The places of the messages that answer a user. (An opening line of the assistant answers nothing.)"""
    roles = [message["role"] for message in messages]
    return [place for place, role in enumerate(roles) if role == "assistant" and "user" in roles[:place]]


def earlier_answers(
    messages: Sequence[Mapping[str, Any]], tokenizer: Any, prompt: list[int]
) -> Iterator[tuple[int, int]]:
    """(begin, end) in `prompt` of each answer but the last, with its end of turn.

    Some templates write an answer differently once the conversation continues (Qwen3's leaves the think block out).
    Then its text says where it is. UserError where that is not clear either.
    """
    done, suffix = 0, completion_suffix(tokenizer)
    for place in answer_places(messages[:-1]):
        asked = template_ids(tokenizer, messages[:place])
        opened = template_ids(tokenizer, messages[:place], add_generation_prompt=True)
        begin = common_prefix_length(opened, prompt)
        end = common_prefix_length(template_ids(tokenizer, messages[: place + 1]), prompt)
        if end <= begin:
            end = begin + answer_length(prompt[begin:], messages[place]["content"], tokenizer, suffix)
        first = max(done, common_prefix_length(asked, opened)) - 1  # its last token may join with what follows
        if not first <= begin < end:
            raise UserError(
                f"this chat template writes message {place + 1} differently once the conversation continues, so it is"
                " not clear which tokens are the answer; write one row for each answer"
            )
        yield begin, end
        done = end


def answer_length(ids: list[int], text: str, tokenizer: Any, suffix: list[int]) -> int:
    """How many ids are an answer of this text with what the template puts after it; 0 if they begin otherwise."""
    end = template_end(tokenizer, suffix)
    length = ids.index(end[0]) if end and end[0] in ids else 0
    if tokenizer.decode(ids[:length]).strip() != text.strip():
        return 0
    return length + common_prefix_length(ids[length:], suffix)


def prompt_and_completion_ids(row: Row, tokenizer: Any, suffix: list[int]) -> tuple[list[int], list[int], bool]:
    """(prompt ids, ids of the last answer with what the template puts after it, whether the stored ids were used).

    An answer that is decoded and tokenized again need not give the ids that the model wrote. So the stored `token_ids`
    are used if this tokenizer decodes them to the text of the row. A special token among them is not in the text, which
    is what was filtered and certified: such ids are not used. An answer that was cut off (`finish_reason` "length")
    gets no end of turn, so that training does not learn to end in the middle of a sentence.

    Some templates write an empty think block before an answer that is trained, and not before one that is asked for
    (Qwen3's, if it may think). Such a block is left out: stored ids do not have it either, and no phase would see it.
    """
    messages = row["messages"]
    text = messages[-1]["content"]
    prompt = template_ids(tokenizer, messages[:-1], add_generation_prompt=True)
    ends = special_ids(tokenizer) | set(template_end(tokenizer, suffix))
    stored = without_end(row.get("token_ids") or [], ends)
    is_plain = bool(stored) and ends.isdisjoint(stored)
    if is_plain and tokenizer.decode(stored, skip_special_tokens=True) == text:
        return prompt, stored + ([] if row.get("finish_reason") == "length" else suffix), True
    whole = template_ids(tokenizer, messages)
    shared = common_prefix_length(prompt, whole)
    if EMPTY_THOUGHT.match(tokenizer.decode(whole[shared:])) and not EMPTY_THOUGHT.match(text):
        return prompt, [*tokenizer(text, add_special_tokens=False)["input_ids"], *suffix], False
    return whole[:shared], whole[shared:], False


# --- special tokens ----------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def special_ids(tokenizer: Any) -> frozenset[int]:
    """The tokenizer's special tokens: they are not part of a text, and any of them may end an answer.

    The one that does is not always the tokenizer's eos. Qwen has two in its generation config, and in Gemma and Phi-3
    the eos is another token than the end of a turn.
    """
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


@lru_cache(maxsize=8)
def special_text(tokenizer: Any) -> re.Pattern[str]:
    """Finds the text of a special token, which the tokenizer would read as that token."""
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return re.compile("|".join(map(re.escape, names)) or "(?!)")


def template_end(tokenizer: Any, suffix: Sequence[int]) -> list[int]:
    """The token with which the template ends an answer, in a list; [] if it writes no token of its own there."""
    known = special_ids(tokenizer) | set(tokenizer.added_tokens_decoder) if suffix else ()
    return list(suffix[:1]) if suffix and suffix[0] in known else []


def without_end(ids: list[int], ends: frozenset[int]) -> list[int]:
    """Ids without the token that ended the answer, which some backends store and others do not."""
    return ids[:-1] if ids and ids[-1] in ends else ids


def common_prefix_length(a: list[int], b: list[int]) -> int:
    """How many leading ids two lists share."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def shared_prefix_length(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many leading tokens all rows share. The token before a row's first trained token is never one of them.

    rows: with input_ids and labels, as `encode` makes them.
    """
    ids = [row["input_ids"] for row in rows]
    starts = (
        next((i for i, label in enumerate(row["labels"]) if label != IGNORED), len(row["labels"])) for row in rows
    )
    return max(0, min(common_prefix_length(min(ids), max(ids)), min(starts) - 1))
