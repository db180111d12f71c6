"""Runs a script up to its own parser, which then judges lists of arguments: ask_the_parser.py SCRIPT JSON.

It judges names, counts and choices, but not whether files exist. The answer is one line of JSON: for each list what is
wrong with it, such as an old flag or a missing argument, or an empty text.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import runpy
import sys
from typing import Any, NoReturn

original = argparse.ArgumentParser.parse_known_args


def judge(parser: argparse.ArgumentParser, lists: list[list[str]], strict: bool) -> NoReturn:
    """Print a verdict on each list of arguments, and end the script before it does anything."""
    verdicts = []
    for action in parser._actions:
        action.type = None if action.choices is None else action.type
    for words in lists:
        old = [word for word in words if word.partition("=")[0] in getattr(parser, "_renamed", {})]
        for action in parser._actions:
            action.choices = None if any("$" in word for word in words) else action.choices
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                _, rest = original(parser, words, None)
            verdicts.append(f"renamed: {old}" if old else f"unknown: {rest}" if strict and rest else "")
        except SystemExit as error:
            verdicts.append(said.getvalue() if error.code else "")
    print(json.dumps(verdicts), flush=True)
    raise SystemExit(0)


def main() -> None:
    script, lists = sys.argv[1], json.loads(sys.argv[2])

    def replace(strict: bool) -> Any:
        def parse(parser: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> NoReturn:
            judge(parser, lists, strict)

        return parse

    argparse.ArgumentParser.parse_args = replace(strict=True)  # type: ignore[method-assign]
    argparse.ArgumentParser.parse_known_args = replace(strict=False)  # type: ignore[method-assign]
    sys.argv = [script]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
