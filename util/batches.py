"""Cut any sequence into lists of at most n items."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most `size` items (itertools.batched is Python 3.12's)."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some
