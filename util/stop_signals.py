"""Stop a run on SIGINT, SIGTERM or SIGHUP without losing work."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from util.terminal import say

T = TypeVar("T")
_under_way: list[Stop] = []


class Interrupted(Exception):
    """A signal ended the run after its work was safe on disk. `signum` gives the exit code 128 + signum."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StoppedAtOnce(KeyboardInterrupt):
    """A signal ended a run that has nothing to finish first. Not an Exception, so that no library catches it."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def clean_up_on_signal() -> None:
    """Let SIGTERM and SIGHUP raise `StoppedAtOnce` in this process, so that `finally` runs (no temporary files).

    A signal that is ignored (nohup) stays ignored, and a forked child ends as it would have.
    """
    own = os.getpid()

    def on_signal(signum: int, _frame: Any) -> None:
        if os.getpid() != own:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        if signum == signal.SIGHUP:
            _let_go_of_terminal()
        raise StoppedAtOnce(signum)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, on_signal)


class Stop:
    """Remembers that SIGINT, SIGTERM or SIGHUP asked this run to end (see `stop_on_signal`)."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def until(self, items: Iterable[T]) -> Iterator[T]:
        """Pass items on until a signal arrives."""
        for item in items:
            if self.signum is not None:
                return
            yield item

    def raise_if_requested(self) -> None:
        """Raise `Interrupted` if a signal arrived. Call it once the work in flight is on disk."""
        if self.signum is not None:
            raise Interrupted(self.signum)


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Let SIGINT, SIGTERM and SIGHUP end the run after the work in flight. A second SIGINT ends it at once.

    By itself Python does not run `finally` on SIGTERM and SIGHUP, so a dropped SSH session would lose work.
    """
    stop = Stop()

    def on_signal(signum: int, _frame: Any) -> None:
        if stop.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if signum == signal.SIGHUP:
            _let_go_of_terminal()
        if stop.signum is None:
            say(f"\n{signal.Signals(signum).name}: finishing the work in flight (Ctrl-C to stop at once)")
        stop.signum = signum

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, on_signal) for number in signals}
    _under_way.append(stop)
    try:
        yield stop
    finally:
        _under_way.remove(stop)
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_if_stopped() -> None:
    """Raise `Interrupted` if a signal arrived in a `stop_on_signal` that is under way.

    For long work that can be repeated: it calls this between its steps and need not know who waits for the signal.
    """
    for stop in _under_way:
        stop.raise_if_requested()


def _let_go_of_terminal() -> None:
    """After a hang-up every write to the old terminal fails, so further output goes to /dev/null."""
    for stream in (1, 2):
        if os.isatty(stream):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
