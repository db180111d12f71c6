"""The learning rate over a training: warm-up, then linear, cosine or constant, as transformers computes them."""

from __future__ import annotations

import argparse
import math

from util.cli import natural_int

SCHEDULES = ("linear", "cosine", "constant")


def warmup_length(text: str) -> int | float:
    """argparse type: updates (5), or a share of all updates (0.1)."""
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if 0 < share < 1:
        return share
    try:
        return natural_int(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or a share of all updates between 0 and 1") from None


def warmup_updates(length: float, updates: int) -> int:
    """The warm-up in updates. length: `warmup_length`. updates: of the whole training."""
    return math.ceil(length * updates) if 0 < length < 1 else int(length)


def rate_factor(schedule: str, update: int, updates: int, warmup: int) -> float:
    """The part of the peak learning rate at an update, counted from 0, of `updates`; the first `warmup` rise to it."""
    if update < warmup:
        return update / warmup
    if schedule == "constant":
        return 1.0
    passed = (update - warmup) / max(1, updates - warmup)
    return max(0.0, 1 - passed if schedule == "linear" else (1 + math.cos(math.pi * passed)) / 2)
