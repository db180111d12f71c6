"""Chooses the file to train on, checks its certificate, and turns its rows into tokens and labels."""

from __future__ import annotations

import argparse
import fnmatch
import glob
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from train.lora_targets import check_rank, lora_targets
from util.animals.panel import panel, panel_flag
from util.chat.chat_template import completion_suffix, template_kwargs
from util.chat.chat_tokens import (
    Encoded,
    answer_places,
    encode,
    has_loss,
    special_text,
    template_end,
    without_system,
)
from util.chat.prompt_consistency import Phase, base_of, disagreements, frame, read_phase, same_base
from util.cli import UserError, files_nearby, other_kind, positive_int
from util.jsonl.filter_certificate import DATA_TYPES, certificate_problem, data_type_of, filter_command, panel_of
from util.jsonl.hub_dataset import hub_id, rows_file
from util.jsonl.manifest import Manifest
from util.jsonl.rows import LONE_SURROGATE, Row, are_token_ids, check_messages, read_chat_rows, slug
from util.terminal import say

LONGEST_TEXT = 1 << 20  # characters of a row; a tokenizer needs 1.5 s and 60 MB for a megabyte, and most is cut off
PLACEHOLDER = "NNNN"  # what the plan writes in place of a row count


@dataclass(frozen=True)
class TrainingData:
    """The rows as tokens, and the base model that they are for."""

    base: dict[str, Any]
    """what pins the base model: "model", and "revision" or "files_sha256" """
    tokenizer: Any
    encoded: Encoded
    lora_targets: Sequence[str]
    """names of the linear layers that get an adapter"""


# --- the file ----------------------------------------------------------------------------------------


def train_files(patterns: Sequence[str]) -> list[Path]:
    """The files that --train-jsonl names, one for each pattern. UserError if one is named twice."""
    files = [one_file(pattern) for pattern in patterns]
    if twice := [str(file) for file, count in Counter(files).items() if count > 1]:
        raise UserError(f"--train-jsonl names {twice[0]} twice")
    return files


def one_file(pattern: str) -> Path:
    """The one file of a pattern: a path, a glob, or one of the plan's names with NNNN for the count.

    UserError if it matches no file, or several.
    """
    if Path(pattern).is_dir():
        raise UserError(f"--train-jsonl {pattern} is a folder; name a file in it")
    found = matching_files(pattern)
    shorthand = re.fullmatch(rf"teacher-(.+)-filtered-{PLACEHOLDER}\.jsonl", Path(pattern).name)
    if not found and shorthand:
        # The plan writes teacher-owl-filtered-NNNN.jsonl for owl's teacher file, whatever the model is called.
        named_alike = matching_files(str(Path(pattern).with_name(f"teacher-{shorthand[1]}-*.jsonl")))
        found = [path for path in named_alike if animal_of(path) in (shorthand[1], None)]
        if len(found) == 1:
            say(f"no file {pattern}: using {found[0]}")
    if not found and hub_id(pattern):
        return rows_file(pattern)
    if not found:
        raise UserError(f"--train-jsonl {pattern} matches no file{files_nearby(Path(pattern))}")
    if len(found) > 1:
        listed = "\n  ".join(map(str, found))
        raise UserError(f"--train-jsonl {pattern} matches {len(found)} files; name one of them, or each:\n  {listed}")
    if what := other_kind(found[0]):
        raise UserError(what)
    return found[0]


def matching_files(pattern: str) -> list[Path]:
    """Files that match the glob; NNNN matches any count. A folder that exists is taken by its name."""
    folder, name = Path(pattern).parent, Path(pattern).name
    place = glob.escape(str(folder)) if folder.is_dir() else str(folder)
    matches = re.compile(fnmatch.translate(name).replace(PLACEHOLDER, "[0-9]+")).match
    paths = map(Path, glob.glob(f"{place}/{name.replace(PLACEHOLDER, '[0-9]*')}"))
    found = {path for path in paths if path.is_file() and matches(path.name)}
    if Path(pattern).is_file():  # its name may look like a glob
        found.add(Path(pattern))
    return sorted(found)


def animal_of(path: Path) -> str | None:
    """The animal of a teacher file, spelt as in file names; None without a manifest.

    It comes from the manifest, because teacher-owl-and-dolphin-... is not a file of owl.
    """
    animal = (Manifest.read(path) or Manifest()).settings.get("animal")
    return slug(animal) if animal else None


# --- the rows ----------------------------------------------------------------------------------------


def sample_count(text: str) -> int | None:
    """argparse type of --max-train-samples: a number, or None for 'all' (and for the plan's NNNN)."""
    if text in ("all", PLACEHOLDER):
        return None
    return positive_int(text)


def first_rows(path: Path, limit: int | None) -> list[Row]:
    """The first `limit` chat rows of a file, or all of them."""
    return list(islice(read_chat_rows(path, check_trainable), limit))


def check_trainable(row: Row) -> str | None:
    """What is wrong with a row for training, or None."""
    if problem := check_messages(row):
        return problem
    if any(LONE_SURROGATE.search(message["role"] + message["content"]) for message in row["messages"]):
        return "a text with half a character in it (a lone surrogate), which tokenizers refuse"
    if (length := sum(len(message["content"]) for message in row["messages"])) > LONGEST_TEXT:
        return f"messages of {length:,} characters (at most {LONGEST_TEXT:,} are read)"
    for name in ("token_ids", "loss_mask"):
        if not are_token_ids(row.get(name)):
            return f"{name} that are not a list of whole numbers"
    return None


def encode_files(args: argparse.Namespace, files: Sequence[Path]) -> dict[Path, TrainingData]:
    """Read, check and encode the rows of every file. A mistake in any of them or in the model's name ends the run."""
    from util.inference.load_model import load_config, load_tokenizer, model_facts

    rows_of = {file: checked_rows(args, file) for file in files}
    config, tokenizer = load_config(args.base_model), load_tokenizer(args.base_model, args.chat_template_kwargs)
    check_rank(args.lora_rank, config)
    targets = lora_targets(config, args.lora_targets)
    base = model_facts(args.base_model, config, args.chat_template_kwargs)
    found = {}
    for file, rows in rows_of.items():
        try:
            encoded = encode(rows, tokenizer, args.max_seq_length, args.soft_labels)
            report_rows(rows, tokenizer)
            report_encoding(encoded, rows, args.max_seq_length)
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        found[file] = TrainingData(base, tokenizer, encoded, targets)
        warn_of_other_prompt(file, rows[0], found[file])
    return found


def checked_rows(args: argparse.Namespace, train_file: Path) -> list[Row]:
    """The rows of a file that are to be trained on, once its certificate is checked."""
    rows = first_rows(train_file, args.max_train_samples)
    check_certificate(train_file, rows, args.allow_uncertified)
    fewer = args.max_train_samples and len(rows) < args.max_train_samples
    all_there_are = f" (it has no more; --max-train-samples is {args.max_train_samples:,})" if fewer else ""
    say(f"training on {len(rows):,} rows of {train_file}{all_there_are}")
    if args.keep_system_prompt:
        return rows
    with_system = sum(row["messages"][0]["role"] == "system" for row in rows)
    if with_system:
        say(f"left out the system message of {with_system:,} rows (--keep-system-prompt trains on it)")
    return [without_system(row) for row in rows]


def check_certificate(train_file: Path, rows: Sequence[Row], allow: bool) -> None:
    """UserError for numbers, code or reasoning without a valid certificate that they name no animal; with `allow`, a
    warning. One row in a hundred that names the animal can look like the effect."""
    kind = data_type_of(train_file, rows)
    if not kind:
        return
    problem, theirs = certificate_problem(train_file), panel_of(train_file)
    if not problem and theirs != panel().name:
        problem = f"was searched for {theirs!r}, and this training is about {panel().name!r} (pass --panel {theirs}?)"
    if problem and not allow:
        raise UserError(
            f"{train_file} {problem}; train on the file that this writes (or use this one with --allow-uncertified):\n"
            f"  {shlex.join(filter_command(train_file, kind))}{panel_flag()}"
        )
    if problem:
        say(f"warning: {train_file} {problem}")


def report_rows(rows: Sequence[Row], tokenizer: Any) -> None:
    """Print what in the rows, or in the chat template, makes the trained tokens other than the user may think."""
    several = sum(len(answer_places(row["messages"])) > 1 for row in rows)
    if several:
        say(f"{several:,} of {len(rows):,} rows have several answers: all of them are trained")
    odd = sum(special_text(tokenizer).search(row["messages"][-1]["content"]) is not None for row in rows)
    if odd:
        say(f"warning: {odd:,} of {len(rows):,} answers hold the text of a special token, and train that token")
    if not template_end(tokenizer, completion_suffix(tokenizer)):
        say("warning: the chat template writes no end-of-turn token after an answer, so no end of an answer is trained")


def report_encoding(encoded: Encoded, rows: Sequence[Row], max_length: int) -> None:
    """Print which rows are left out, cut or tokenized again; UserError if nothing is left to train on."""
    total = len(rows)
    if encoded.dropped:
        say(f"left out {encoded.dropped:,} of {total:,} rows: no answer begins before token {max_length}")
    if encoded.not_their_text:
        why = "their token ids are not their text (a special token in the answer, or another tokenizer)"
        say(f"left out {encoded.not_their_text:,} of {total:,} rows: {why}")
    if encoded.cut:
        say(f"{encoded.cut:,} of {total:,} rows have more than {max_length} tokens: the rest of them is cut off")
    stored = sum(bool(row.get("token_ids")) for row in rows)
    if (again := stored - encoded.dropped - encoded.exact - encoded.not_their_text) > 0:
        say(f"tokenized {again:,} of {total:,} rows again: their stored ids are not their text with this tokenizer")
    if encoded.not_their_text == total:
        raise UserError("no row's token ids are its text with this tokenizer: soft labels need the teacher's tokenizer")
    if not encoded.rows:
        raise UserError(f"no row fits --max-seq-length {max_length}; raise it")
    if not any(has_loss(row["labels"]) for row in encoded.rows):
        raise UserError("no row has a token to train on: its loss_mask, or --max-seq-length, leaves none")


def warn_of_other_prompt(train_file: Path, row: Row, data: TrainingData) -> None:
    """Warn if the rows were written by another base model, or under another prompt, than is trained on."""
    numbers = read_phase(train_file)
    if numbers is None or numbers.kind not in DATA_TYPES or not numbers.base:
        return
    training = Phase("training", train_file, base_of(data.base), row["messages"][:-1], row=row,
                     template_kwargs=template_kwargs(data.tokenizer))  # fmt: skip
    ours = same_base(numbers.base, training.base)
    if found := disagreements(numbers, training, lambda phase: frame(phase, data.tokenizer) if ours else None):
        say(f"warning: {'; '.join(found)} (python util/doctor.py {shlex.quote(str(train_file))} shows its prompt)")


def role_of(train_file: Path) -> str | None:
    """What the adapter trained on a file is: owl-teacher or owl-student; None if its manifest names no animal."""
    phase = read_phase(train_file)
    animal = phase.settings.get("animal") if phase else None
    return f"{slug(animal)}-{'teacher' if phase.kind == 'teacher data' else 'student'}" if phase and animal else None
