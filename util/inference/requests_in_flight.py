"""Keep many requests in flight at once on an event loop, and hand their results to ordinary, blocking code."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterable
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")


class RequestsInFlight:
    """Runs an async function for many items, `width` at a time.

    loop: an event loop that is not running. timeout: seconds without any result after which TimeoutError is raised.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, width: int, timeout: float):
        self.loop, self.width, self.timeout = loop, width, timeout
        loop.set_exception_handler(_report_all_but_interrupts)

    def results(self, ask: Callable[[S], Awaitable[T]], items: Iterable[S]) -> Generator[T, None, None]:
        """What `ask` returns for each item, in any order. Items are pulled as there is room.

        An error of `ask` or of `items` is raised after the results that were there before it.
        """
        todo = iter(items)
        finished: asyncio.Queue[T | BaseException | None] = asyncio.Queue()

        async def worker() -> None:
            try:
                for item in todo:
                    finished.put_nowait(await ask(item))
            except Exception as error:  # raised in the caller below
                finished.put_nowait(error)
            finished.put_nowait(None)

        workers = [self.loop.create_task(worker()) for _ in range(self.width)]
        running = len(workers)
        try:
            while running:
                found = self.loop.run_until_complete(self._next(finished))
                yield from (item for item in found if item is not None and not isinstance(item, BaseException))
                for item in found:
                    if isinstance(item, BaseException):  # raised last: what was answered is handed out first
                        raise item
                running -= found.count(None)
        finally:
            self.loop.run_until_complete(_cancel_all())

    def results_in_order(self, ask: Callable[[S], Awaitable[T]], items: Iterable[S]) -> list[T]:
        """What `ask` returns for each item, in the order of the items."""

        async def numbered(item: tuple[int, S]) -> tuple[int, T]:
            return item[0], await ask(item[1])

        found = dict(self.results(numbered, enumerate(items)))
        return [found[place] for place in range(len(found))]

    async def _next(self, finished: asyncio.Queue[Any]) -> list[Any]:
        """Everything that has come in, at least one item."""
        try:
            items = [await asyncio.wait_for(finished.get(), self.timeout)]
        except asyncio.TimeoutError:  # the built-in one only since Python 3.11
            raise TimeoutError from None
        while not finished.empty():
            items.append(finished.get_nowait())
        return items


async def _cancel_all() -> None:
    """End every other task of this loop: the workers and, after a second Ctrl-C, what waited for them."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _report_all_but_interrupts(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """asyncio's own reports, but not that Ctrl-C ended a task: `run` prints that once."""
    if not isinstance(context.get("exception"), KeyboardInterrupt):
        loop.default_exception_handler(context)
