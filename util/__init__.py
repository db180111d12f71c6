"""The modules that every part of the suite uses.

A script imports them first, so this file makes Ctrl-C during the imports end it with one line (and code 130).
"""

import sys
from types import TracebackType


def _say_stopped(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _say_stopped
