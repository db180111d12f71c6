"""Estimates how many rows of an update fit in memory at once, and whether several students can train together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from train.padding_free import EncodedRow
from util.chat.chat_tokens import shared_prefix_length
from util.model_memory import HEAD_BYTES, MEMORY_SHARE, bytes_per_token

CPU_MEMORY = 3 << 30  # for one step on a CPU: plenty for small models, and harmless to the machine with large ones


def divisors(count: int) -> list[int]:
    """Divisors of a number, largest first."""
    return [n for n in range(count, 0, -1) if count % n == 0]


def rows_that_fit(
    lengths: Sequence[int], prefix: int, effective: int, token_bytes: float, free_bytes: float, students: int = 1
) -> int:
    """The most rows of an update, `effective` for each student, for which even the longest rows fit at once, or 1:
    whole updates of several students, or a divisor of one's, so that its passes are equally large.

    lengths: tokens of all rows. prefix: leading tokens that are the same in all rows and are computed once.
    """
    longest = sorted((length - prefix for length in lengths), reverse=True)
    tokens = (MEMORY_SHARE * free_bytes - HEAD_BYTES) / token_bytes - prefix
    whole = [effective * count for count in range(students, 1, -1)]
    return next((n for n in [*whole, *divisors(effective)] if sum(longest[:n]) <= tokens), 1)


def limit_gpu_memory(gib: float | None) -> None:
    """Let this process use so much of its GPU's memory at most, as on a smaller or a shared one. None: all there is."""
    import torch

    if gib is not None and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total))


def free_memory(device: Any) -> int:
    """Bytes that a training step may still take."""
    import torch

    if device.type != "cuda":
        return CPU_MEMORY
    free, total = torch.cuda.mem_get_info()
    limit = int(torch.cuda.get_per_process_memory_fraction() * total)
    return min(free + torch.cuda.memory_reserved(), limit) - torch.cuda.memory_allocated()


def estimate(model: Any, rows: Sequence[EncodedRow], effective: int, students: int, taken: int = 0) -> tuple[int, int]:
    """(how many rows of an update, `effective` for each student, fit at once, the free bytes that this is for).

    taken: bytes that something else is going to take.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    each = bytes_per_token(model.config.get_text_config(), model.dtype.itemsize)
    free = free_memory(model.device) - (taken if model.device.type == "cuda" else 0)
    return rows_that_fit(lengths, shared_prefix_length(rows), effective, each, free, students), free


def as_many_as_fit(
    model: Any, rows: Sequence[EncodedRow], effective: int, students: int, asked: int, taken: int
) -> tuple[int, str]:
    """(how many rows of an update, `effective` for each student, go through the model at once, and why). Never fewer
    than `asked`."""
    fitting, free = estimate(model, rows, effective, students, taken)
    if fitting <= asked:
        return asked, f"{asked} asked, room for {fitting} by an estimate for {free / 2**30:.0f} GiB"
    return fitting, f"{asked} asked, room for {fitting} in {free / 2**30:.0f} GiB; --micro-batch exact keeps {asked}"


def why_not_together(model: Any, rows: Sequence[EncodedRow], effective: int, students: int, exact: bool) -> str | None:
    """Why several students, with `effective` rows an update each, train one after the other; None if together.

    rows: of all students.
    """
    if exact:
        return "--micro-batch exact"
    fitting, free = estimate(model, rows, effective, students)
    if fitting <= effective:
        return f"room for {fitting} rows at once in {free / 2**30:.0f} GiB, an update has {effective}"
    return None
