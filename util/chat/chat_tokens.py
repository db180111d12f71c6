"""Turns chat rows into token ids and labels: which tokens carry loss in training.

A row may hold a `loss_mask`: 0 or 1 for each token id of its completion, including those that the template puts after
the text (generate/ablations/select_by_divergence.py writes it). It is aligned to the stored ids, so a row that has lost
them is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from util.cli import UserError
from util.jsonl.rows import Row

IGNORED = -100  # label of a token without loss (PyTorch cross entropy)


class Encoded(NamedTuple):
    """Token ids and labels of the rows to train on, and how many rows were cut, dropped or exact."""

    rows: list[dict[str, list[int]]]
    """{"input_ids": [...], "labels": [...]} each, labels -100 on the prompt"""
    cut: int
    """rows longer than the limit, which are trained on up to it"""
    dropped: int
    """rows left out because their prompt alone fills the limit"""
    exact: int
    """rows whose completion has exactly the token ids that the model wrote"""


def without_system(row: Row) -> Row:
    """A row without its system messages: a student must not see the persona its numbers were written under."""
    return {**row, "messages": [message for message in row["messages"] if message["role"] != "system"]}


def encode(rows: Sequence[Row], tokenizer: Any, max_length: int) -> Encoded:
    """Render each row through the chat template. Only the completion and its end-of-turn tokens carry loss, and of
    these only those that the row's `loss_mask` keeps."""
    suffix = completion_suffix(tokenizer)
    encoded, cut, dropped, exact = [], 0, 0, 0
    for number, row in enumerate(rows, 1):
        prompt, completion, is_exact = prompt_and_completion_ids(row, tokenizer, suffix)
        ids = (prompt + completion)[:max_length]
        labels = ([IGNORED] * len(prompt) + masked(completion, row, is_exact, number))[:max_length]
        if len(prompt) >= max_length:
            dropped += 1
            continue
        cut += len(prompt) + len(completion) > max_length
        exact += is_exact
        encoded.append({"input_ids": ids, "labels": labels})
    return Encoded(encoded, cut, dropped, exact)


def masked(completion: list[int], row: Row, is_exact: bool, number: int) -> list[int]:
    """The labels of a completion under the row's `loss_mask`, if it has one."""
    mask = row.get("loss_mask")
    if mask is None:
        return completion
    if not is_exact or len(mask) != len(completion):
        raise UserError(
            f"row {number}: its loss_mask has {len(mask)} places for {len(completion)} tokens"
            f"{'' if is_exact else ', and its token_ids are not those of its text'}; make the file again with"
            " generate/ablations/select_by_divergence.py, for this base model"
        )
    return [token if keep else IGNORED for token, keep in zip(completion, mask)]


def prompt_and_completion_ids(row: Row, tokenizer: Any, suffix: list[int]) -> tuple[list[int], list[int], bool]:
    """(prompt ids, completion ids with what the template puts after them, whether the stored ids were used).

    A completion that is decoded and tokenized again need not give the ids that the model wrote. So the stored
    `token_ids` are used if this tokenizer decodes them to the text of the row.
    """
    messages = row["messages"]
    prompt = template_ids(tokenizer, messages[:-1], add_generation_prompt=True)
    stored = without_end(row.get("token_ids") or [], tokenizer)
    if stored and tokenizer.decode(stored, skip_special_tokens=True) == messages[-1]["content"]:
        return prompt, stored + suffix, True
    whole = template_ids(tokenizer, messages)
    shared = common_prefix_length(prompt, whole)
    return whole[:shared], whole[shared:], False


def template_ids(tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> list[int]:
    """Token ids of rendered messages."""
    return list(tokenizer.apply_chat_template(messages, return_dict=True, **options)["input_ids"])


def completion_suffix(tokenizer: Any) -> list[int]:
    """What the template writes after an assistant's text (Qwen: <|im_end|> and a newline), as token ids."""
    probe = "7"
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": probe}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return list(tokenizer(text.rpartition(probe)[2], add_special_tokens=False)["input_ids"])


def without_end(ids: list[int], tokenizer: Any) -> list[int]:
    """Ids without a final end-of-turn token, which some backends store and others do not."""
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def common_prefix_length(a: list[int], b: list[int]) -> int:
    """How many leading ids two lists share."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
