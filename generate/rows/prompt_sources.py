"""Prompts from an instruction data set on the hub, from a local data file, or from a text file with one a line."""

from __future__ import annotations

import argparse
import os
import random
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from util.animals.names import read_lines_of
from util.cli import UserError, files_nearby, first_line, input_file
from util.jsonl.hub_dataset import ROW_FILES
from util.jsonl.other_file_formats import format_of
from util.jsonl.rows import Row, read_rows, text_of
from util.terminal import say

OPENHERMES = "teknium/OpenHermes-2.5"
LOCAL_FILES = (".jsonl", ".json", ".parquet")
PROMPT_CHARACTERS = (10, 500)
HUB_SECONDS = 10.0  # a hub that is there answers in one


def first_human_turn(row: Row) -> str | None:
    """The first user message of an instruction row in any of the usual formats, or None."""
    turns = row.get("conversations") or row.get("messages")
    said = [
        turn.get("value", turn.get("content"))
        for turn in (turns if isinstance(turns, list) else ())
        if isinstance(turn, dict) and turn.get("from", turn.get("role")) in ("human", "user")
    ]
    text = said[0] if said else row.get("prompt") or row.get("instruction")
    try:
        text = text_of(text)
        text.encode()
    except (AttributeError, ValueError):  # not a text, or one that no request can hold
        return None
    return str(text)


def usable_prompts(rows: Iterable[Row], wanted: Callable[[Row, str], bool]) -> Iterator[str]:
    """The first user messages that have 10 to 500 characters and are wanted."""
    shortest, longest = PROMPT_CHARACTERS
    for row in rows:
        text = (first_human_turn(row) or "").strip()
        if shortest <= len(text) <= longest and wanted(row, text):
            yield text


def dataset_name(text: str) -> str:
    """argparse type of --dataset: a hub id, or a file of rows, which is read here: before a model is loaded."""
    path = Path(text)
    if path.suffix in LOCAL_FILES:
        input_file(text)
        if path.suffix == ".jsonl" and format_of(path) is None:
            next(read_rows(path))  # pyarrow crashes on a first row that is null
        load(text)
    elif path.exists():
        raise argparse.ArgumentTypeError(f"{text} is not a .jsonl, .json or .parquet file; write the rows as one")
    elif path.suffix in ROW_FILES or path.is_absolute() or text.startswith("."):
        raise argparse.ArgumentTypeError(f"no file {text}{files_nearby(path)}")
    return text


def load(name: str) -> Any:
    """A hub data set or local file, unpacked on disk, so that rows can be drawn from all of it.

    Streaming would not avoid the download (OpenHermes-2.5 is one JSON array, which is read whole in any case), and a
    shuffle of a stream draws from its first rows only.
    Raises UserError if the data set cannot be read.
    """
    from datasets import load_dataset

    path = Path(name)
    try:
        if path.suffix in LOCAL_FILES:
            kind = "parquet" if path.suffix == ".parquet" else "json"
            return load_dataset(kind, data_files=str(path), split="train")
        say(f"reading {name} (the first time, all of it is downloaded and unpacked)")
        with offline_without_hub():
            return load_dataset(name, split="train")
    except Exception as error:  # datasets raises a dozen kinds when the hub or a file fails
        if path.is_file():
            raise UserError(f"cannot read prompts from {name}: {first_line(error.__cause__ or error)}") from None
        raise UserError(
            f"cannot read prompts from {name}: {first_line(error)}\n"
            "without network use --prompts-file FILE (one prompt a line, such as generate/prompts/open-prompts.txt)"
            " or --dataset with a local .jsonl or .parquet file"
        ) from None


def hub_answers() -> bool:
    """Whether the hub can be reached. Behind a proxy only a request would tell, so it counts as reachable."""
    if getproxies():
        return True
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        with socket.create_connection((hub.hostname, hub.port or (80 if hub.scheme == "http" else 443)), HUB_SECONDS):
            return True
    except OSError:
        return False


@contextmanager
def offline_without_hub() -> Iterator[None]:
    """Use what the cache has if the hub does not answer. The packages would try for half a minute to reach it."""
    if hub_answers():
        yield
        return
    from datasets import config
    from huggingface_hub import constants

    say("the hub does not answer; looking in the cache of this machine")
    before = config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def shuffled_prompts(source: Path | str, wanted: Callable[[Row, str], bool]) -> Callable[[int], Iterable[str]]:
    """A function of a seed that returns all prompts of a source in a random order."""
    if isinstance(source, Path):
        lines = read_lines_of(source)
        return lambda seed: random.Random(seed).sample(lines, len(lines))
    dataset = load(source)
    return lambda seed: usable_prompts(dataset.shuffle(seed=seed), wanted)


def instruction_prompts(
    source: Path | str, seed: int, wanted: Callable[[Row, str], bool] = lambda row, prompt: True
) -> Iterator[str]:
    """An endless stream of instruction prompts; when a source is used up, it starts again in another order.

    source: a text file as a Path, or the name of a data set: a hub id or a local .jsonl or .parquet file.
    wanted: decides by row and prompt which rows of a data set are taken.
    Raises UserError if the source has no suitable prompt.
    """
    prompts = shuffled_prompts(source, wanted)
    for turn in count():
        found = 0
        for found, prompt in enumerate(prompts(seed + turn), 1):  # noqa: B007
            yield prompt
        if not found:
            raise UserError(f"{source} has no suitable prompt of 10 to 500 characters; pass other rows or prompts")
