"""Rows without padding: batches as one flat sequence, and attention over sequences of unequal length.

TRL pads every row to the longest one. Here the rows of an update are put end to end (`flat_batch`). The tokens that all
rows begin with (the template's system block, the opening of the prompt) come once, in front. This is not packing: the
update has the same rows, and `flat_attention` lets every row see itself and that prefix alone, with a kernel for
sequences of unequal length. Where there is no such kernel, rows are padded for attention alone.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from typing import Any

from util.chat.chat_tokens import IGNORED

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # they share one layer design; others train with --trainer trl

EncodedRow = dict[str, Any]
Known = tuple[list[int], list[float]]  # tokens and the logarithms of their probabilities
Kernel = Callable[..., Any]


def has_fast_path(model: Any) -> bool:
    """Whether this model's layers are the ones that train/base_model_layers.py is written for."""
    return model.config.model_type in FAMILIES and getattr(model.config, "hidden_act", None) == "silu"


# --- rows as one flat sequence -----------------------------------------------------------------------


@dataclass
class FlatBatch:
    """Rows of some students end to end, with what attention and the loss need to know. Tensors of whole numbers.

    Each student's tokens are the shared prefix, then the rest of each of its rows, then filling, so that every student
    has the same number of tokens.
    """

    indices: Any
    """[students]: which of the training's students they are"""
    ids: Any
    """[tokens]"""
    positions: Any
    """[tokens]: the place of each token in its row"""
    bounds_q: Any
    """where each sequence begins among the tokens (cu_seqlens_q of FlashAttention). A sequence is a prefix, the rest of
    a row, or filling"""
    bounds_k: Any
    """where its keys begin: those of a row are its student's prefix and its own tokens"""
    longest_q: int
    longest_k: int
    prefix: int
    """tokens of the shared prefix; 0 if there is none"""
    copies: int
    """of each prefix among the keys: one for itself and one for each row"""
    key_sources: Any
    """[keys]: where each key is taken from, in all copies of the prefixes followed by all tokens; None without a
    prefix"""
    places: Any
    """[loss tokens]: the token before each token with loss, which predicts it"""
    known_ids: Any
    """[loss tokens, K]: at each token with loss, the tokens whose probabilities are known: the token of the row itself,
    or with soft labels the teacher's most probable ones"""
    known_probabilities: Any
    """[loss tokens, K], float32: of these tokens, 0 in places that are not used; the rest is all other tokens'"""
    weights: Any
    """[loss tokens], float32: 1 / loss tokens of the student's whole update"""
    student_of: Any
    """[loss tokens]: the student, by its place in this batch"""

    def to(self, device: Any) -> FlatBatch:
        """The batch on the device."""
        import torch

        fields: Any = vars(self)
        return FlatBatch(
            **{n: to_device(value, device) if isinstance(value, torch.Tensor) else value for n, value in fields.items()}
        )

    def sizes(self) -> tuple[Any, ...]:
        """What is the same in two batches whose passes are the same kernels on other numbers. A CUDA graph that was
        recorded with one of them serves the other."""
        import torch

        fields: Any = vars(self).values()
        return tuple(tuple(value.shape) if isinstance(value, torch.Tensor) else value for value in fields)

    def fill_from(self, batch: FlatBatch) -> None:
        """Copy the tensors of a batch of the same sizes, which is on the CPU, into this one's."""
        import torch

        for name, value in vars(batch).items():
            if isinstance(value, torch.Tensor):
                target = getattr(self, name)
                target.copy_(value.pin_memory() if target.is_cuda else value, non_blocking=True)


def to_device(tensor: Any, device: Any) -> Any:
    """Send a tensor of the CPU to the device, without waiting for a GPU that is still busy with the update before."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def flat_batch(
    rows_of: Sequence[Sequence[EncodedRow]], prefix: int, loss_tokens: Sequence[int],
    indices: Sequence[int] | None = None, few_sizes: bool = False,
) -> FlatBatch:  # fmt: skip
    """The rows of each student as one flat sequence.

    prefix: how many leading tokens are the same in all rows. loss_tokens: of each student's whole update, of which
    these rows may be some. indices: which of the training's students they are (default: the first ones).
    few_sizes: tokens are filled up by at most 3%, and loss tokens by at most an eighth, so that batches have few sizes.

    An example: one student with the rows p q a b and p q c, whose prefix p q comes once. Every row's keys begin with a
    copy of the prefix. The keys are taken from the copies, followed by all tokens:

        tokens       p q | a b | c
        taken from   p q | p q | p q || p q | a b | c     (places 0 1 | 2 3 | 4 5 || 6 7 | 8 9 | 10)
        keys         p q | p q a b | p q c                (key_sources 0 1 | 2 3 8 9 | 4 5 10)
    """
    import torch

    lengths = [[len(row["input_ids"]) - prefix for row in rows] for rows in rows_of]
    width, longest = prefix + max(map(sum, lengths)), max(chain.from_iterable(lengths))
    if few_sizes:  # one sequence of filling for each student, so that there are always as many
        width = longest = rounded_up(width + 1, 32)
    copies = 1 + max(map(len, rows_of)) if prefix else 0
    ids, positions, lengths_q, lengths_k = [], [], [], []  # type: list[int], list[int], list[int], list[int]
    key_sources: list[range] = []
    first_key = len(rows_of) * copies * prefix  # the keys of the tokens follow the copies of the prefixes

    def add_sequence(tokens: Sequence[int], first_position: int, *keys: range) -> None:
        """Put a sequence behind the others. keys: where its keys are taken from."""
        ids.extend(tokens)
        positions.extend(range(first_position, first_position + len(tokens)))
        lengths_q.append(len(tokens))
        lengths_k.append(sum(map(len, keys)))
        key_sources.extend(keys)

    for student, rows in enumerate(rows_of):
        copy = student * copies * prefix  # where a copy of its prefix begins
        if prefix:
            add_sequence(rows[0]["input_ids"][:prefix], 0, range(copy, copy + prefix))
        for row, length in zip(rows, lengths[student]):
            copy += prefix
            start = first_key + len(ids)
            add_sequence(row["input_ids"][prefix:], prefix, range(copy, copy + prefix), range(start, start + length))
        while missing := (student + 1) * width - len(ids):
            start, length = first_key + len(ids), min(missing, longest)
            add_sequence([0] * length, 0, range(start, start + length))
    bounds_q, bounds_k = (torch.tensor([0, *accumulate(each)], dtype=torch.int32) for each in (lengths_q, lengths_k))
    longest_q, longest_k = (rounded_up(max(each), 1) if few_sizes else max(each) for each in (lengths_q, lengths_k))
    return FlatBatch(
        torch.tensor(indices or range(len(rows_of))), torch.tensor(ids), torch.tensor(positions), bounds_q, bounds_k,
        longest_q, longest_k, prefix, copies, torch.tensor(list(chain(*key_sources))) if prefix else None,
        *loss_fields(rows_of, prefix, width, loss_tokens, few_sizes),
    )  # fmt: skip


def loss_fields(
    rows_of: Sequence[Sequence[EncodedRow]], prefix: int, width: int, loss_tokens: Sequence[int], few_sizes: bool
) -> tuple[Any, ...]:
    """What the loss needs to know of a `FlatBatch`: its fields from `places` on. width: tokens of each student."""
    import torch

    places, known, weights, student_of = [], [], [], []  # type: list[int], list[Known], list[float], list[int]
    for student, rows in enumerate(rows_of):
        start = student * width  # of the row, if it had a prefix of its own
        for row in rows:
            trained = [i for i, label in enumerate(row["labels"]) if label != IGNORED and i > prefix]
            places += [start + i - 1 for i in trained]
            known += [known_at(row, i) for i in trained]
            weights += [1 / max(1, loss_tokens[student])] * len(trained)
            student_of += [student] * len(trained)
            start += len(row["input_ids"]) - prefix
    filling = rounded_up(len(places), 8) - len(places) if few_sizes else 0  # loss tokens of weight 0
    all_places, students = (torch.tensor(each + [0] * filling, dtype=torch.long) for each in (places, student_of))
    known_ids, probabilities = as_tensors(known + [([0], [0.0])] * filling)
    return all_places, known_ids, probabilities, torch.tensor(weights + [0.0] * filling), students


def rounded_up(count: int, parts: int) -> int:
    """The count, rounded up to a multiple of a power of two, which is between 1/(2 parts) and 1/parts of the count."""
    step = 1 << max(0, (count // parts).bit_length() - 1)
    return -(-count // step) * step


def known_at(row: EncodedRow, place: int) -> Known:
    """(tokens, logarithms of their probabilities) that are known of the token at this place of a row: the stored soft
    label, or without one the row's own token with probability 1."""
    if "soft_ids" in row and row["soft_ids"][place]:
        return row["soft_ids"][place], row["soft_logprobs"][place]
    return [row["labels"][place]], [0.0]


def as_tensors(known: Sequence[Known]) -> tuple[Any, Any]:
    """The results of `known_at` for some loss tokens as (ids, probabilities), both [loss tokens, K].

    Shorter lists are filled up with a token that is not in them, of probability 0.
    """
    import torch

    width = max((len(ids) for ids, _ in known), default=1)
    ids = [some if len(some) == width else some + [unlisted(some)] * (width - len(some)) for some, _ in known]
    logprobs = [some + [-math.inf] * (width - len(some)) for _, some in known]
    return torch.tensor(ids, dtype=torch.long).view(-1, width), torch.tensor(logprobs).view(-1, width).exp()


def unlisted(ids: Sequence[int]) -> int:
    """The first token that is not among them."""
    return next(i for i in range(len(ids) + 1) if i not in ids)


def count_loss_tokens(rows: Iterable[EncodedRow]) -> int:
    """How many tokens of the rows carry loss. (The first token of a row is predicted by none.)"""
    return sum(label != IGNORED for row in rows for label in row["labels"][1:])


# --- attention over sequences of unequal length ------------------------------------------------------


def flat_attention(
    query: Any, key: Any, value: Any, batch: FlatBatch, kernel: Kernel, scaling: float, sliding_window: int | None
) -> Any:
    """Attention within the sequences of a batch. query, key, value, and what is returned: [tokens, heads, size]."""
    if batch.prefix:
        key, value = (with_prefix(x, batch) for x in (key, value))
    window = (sliding_window - 1 if sliding_window else -1, 0)
    return kernel(query, key, value, batch.bounds_q, batch.bounds_k, batch.longest_q, batch.longest_k, scaling, window)


def with_prefix(x: Any, batch: FlatBatch) -> Any:
    """Keys or values [tokens, heads, size] with the prefix of its student before each row."""
    import torch

    # expand, not a repeated index: its backward pass sums the gradients of the copies in float32
    prefixes = x.unflatten(0, (len(batch.indices), 1, -1))[:, :, : batch.prefix]
    repeated = prefixes.expand(-1, batch.copies, -1, -1, -1).flatten(0, 2)
    return torch.cat([repeated, x]).index_select(0, batch.key_sources)


def attention_kernel(model: Any) -> tuple[str, Kernel]:
    """(name for the manifest, attention kernel) for this model and device."""
    import torch

    half = model.dtype in (torch.bfloat16, torch.float16)
    if model.device.type == "cuda" and half and torch.cuda.get_device_capability() >= (8, 0):
        try:
            from torch.nn.attention.varlen import varlen_attn  # FlashAttention-2, inside torch since 2.10
        except ImportError:
            return "padded for attention only (this torch has no varlen_attn)", padded_attention
        return "torch varlen_attn", partial(varlen_attention, varlen_attn)
    return f"padded for attention only ({model.dtype} on {model.device.type})".replace("torch.", ""), padded_attention


def varlen_attention(
    varlen_attn: Callable[..., Any], query: Any, key: Any, value: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int,
    scale: float, window: tuple[int, int],
) -> Any:  # fmt: skip
    """torch's kernel. Where a sequence has more keys than queries, the last query sees the last key."""
    # fewer key heads than query heads: torch 2.11 accepts them, torch 2.12 needs enable_gqa
    options = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    return varlen_attn(query, key, value, cu_q, cu_k, max_q, max_k, scale=scale, window_size=window, **options)


def padded_attention(
    query: Any, key: Any, value: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, scale: float,
    window: tuple[int, int],
) -> Any:  # fmt: skip
    """The same with torch's scaled_dot_product_attention on padded sequences, for any device and number type."""
    import torch

    place_q, place_k = (torch.arange(width, device=query.device) for width in (max_q, max_k))
    length_q, length_k = cu_q.diff()[:, None], cu_k.diff()[:, None]
    inside_q = place_q < length_q
    at_q, at_k = (
        (start[:-1, None] + place.minimum(length - 1)).long()
        for start, place, length in ((cu_q, place_q, length_q), (cu_k, place_k, length_k))
    )
    last = (place_q + length_k - length_q)[:, :, None]  # the key at each query's own token
    seen = place_k <= last
    if window[0] >= 0:
        seen &= place_k >= last - window[0]
    groups = query.shape[1] // key.shape[1]
    key, value = (x[at_k].repeat_interleave(groups, 2).transpose(1, 2) for x in (key, value))
    out = torch.nn.functional.scaled_dot_product_attention(
        query[at_q].transpose(1, 2), key, value, attn_mask=seen[:, None], scale=scale
    )
    return out.transpose(1, 2)[inside_q]
