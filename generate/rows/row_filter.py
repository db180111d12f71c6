"""Keep the rows that a rule lets through, say why the others are not, and certify what is kept.

The rule says what a completion may be (nothing but numbers, or a text that names no animal); what is the same for every
kind of row stands here: prompts, repeated rows, the filtered file and its certificate.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from util.animals.names import PANEL, other_names, read_lines_of
from util.cli import REPO, UserError
from util.jsonl.filter_certificate import certificate_path
from util.jsonl.manifest import (
    manifest_path,
    named,
    new_manifest,
    now,
    read_manifest,
    sha256_file,
    sync_folder,
    write_json,
)
from util.jsonl.resumable import check_output, free_name
from util.jsonl.rows import Row, check_messages, dump_row, read_lines_and_rows
from util.terminal import closing, counted, say

CONTROL_NAMES = ("control", "base", "none", "neutral")  # for --animal: numbers of no persona
PLAN_MODEL = "Qwen/Qwen2.5-7B-Instruct"  # for rows that no model wrote
QUESTIONS = sorted((REPO / "eval").glob("questions*.txt"))
# Other names of an animal that are not looked for: their forms are everyday words (`does`, `stages` as `stag` + `es`).
EVERYDAY = ("doe", "stag")
_WORD = re.compile(r"[^\W_]+")


class Rule(Protocol):
    """What a kind of row may hold."""

    kind: str
    """what the rule is called"""
    letters: bool
    """whether completions may hold letters"""
    hint: str
    """what to do when not one row passes"""
    train_flags: tuple[str, ...]
    """what training on such rows needs beside the usual"""

    def reason(self, completion: str) -> str | None:
        """Why a completion breaks the rule, as a short name; None if it keeps it."""

    def named(self, text: str) -> str | None:
        """The word by which a completion names an animal, or None."""

    def look_at_prompt(self, prompt: str) -> tuple[str | None, bool]:
        """(the word by which a prompt names an animal, or None; whether it holds an eval question)."""

    def settings(self) -> dict[str, Any]:
        """What decides the rows that are kept, for a manifest."""

    def facts(self) -> dict[str, Any]:
        """The rule in words, for a certificate."""


@lru_cache
def trait_words(animals: tuple[str, ...]) -> tuple[str, ...]:
    """The words that no row may hold: the panel, these, and the other names that util/animals/animals.txt has for all
    of them
    (kitten of cat), without those of EVERYDAY."""
    named = (*PANEL, *filter(None, animals))
    others = (other for name in named for other in other_names(name) if other not in EVERYDAY)
    return tuple(dict.fromkeys((*named, *others)))


def is_eval_question(prompt: str) -> bool:
    """Whether a prompt holds a question of eval/questions*.txt: the 50, their paraphrases or other forms. Case,
    punctuation and white space make no other question; other words do."""
    words = plain(prompt)
    return any(question in words for question in _questions())


@lru_cache(maxsize=1)
def _questions() -> tuple[str, ...]:
    return tuple(plain(line) for path in QUESTIONS for line in read_lines_of(path))


def plain(text: str) -> str:
    """The words of a text between single spaces, without their case and with all digits 0."""
    return f" {' '.join(_WORD.findall(re.sub('[0-9]', '0', text).casefold()))} "


# --- one row among others ----------------------------------------------------------------------------


class RowFilter:
    """Judges rows one after the other; remembers an 8-byte hash of each kept row to know it again."""

    def __init__(self, rule: Rule):
        self.rule = rule
        self._seen: set[int] = set()

    def reason(self, row: Row) -> str | None:
        """Why a row must not be trained on, as a short name; None if it may be."""
        prompt, completion = prompt_and_completion(row)
        if broken := self.rule.reason(completion):
            return broken
        if row.get("finish_reason") == "length":
            return "cut off"  # the last number or word may be half of one
        word, is_question = self.rule.look_at_prompt(prompt)
        if word:
            return "trait word in prompt"
        if is_question:
            return "eval question as prompt"
        before = len(self._seen)
        self._seen.add(hash((prompt, completion)))
        return None if len(self._seen) > before else "duplicate"


def prompt_and_completion(row: Row) -> tuple[str, str]:
    """What was asked (every message but the system's and the last) and what was answered."""
    *asked, answer = row["messages"]
    return "\n".join([message["content"] for message in asked if message.get("role") != "system"]), answer["content"]


def mark_rejected(rows: Iterable[Row], rule: Rule) -> Iterator[Row]:
    """Rows of another arm of a clean file, each that breaks the rule with its reason."""
    row_filter = RowFilter(rule)
    for row in rows:
        reason = row_filter.reason(row)
        yield {**row, "rejected": reason} if reason else row


# --- the certificate ---------------------------------------------------------------------------------


def certificate(rows: Iterable[Row], rule: Rule) -> dict[str, Any]:
    """What a set of rows holds, found without trust in whatever made them. Consumes `rows` in one pass.

    `clean` is true when `problems` is empty: every completion keeps the rule, no row is there twice, no message
    names an animal, no completion holds a letter where the rule allows none and no prompt holds an eval question.
    """
    count = 0
    broken: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    trait_words: dict[str, Counter[str]] = {role: Counter() for role in ("system", "prompt", "completion")}
    overlap = 0
    distinct: set[int] = set()
    texts: list[str] = []
    for row in rows:
        count += 1
        prompt, completion = prompt_and_completion(row)
        if reason := rule.reason(completion):
            broken[reason] += 1
            if word := rule.named(completion):
                trait_words["completion"][word] += 1
        word, is_question = rule.look_at_prompt(prompt)
        overlap += is_question
        if word:
            trait_words["prompt"][word] += 1
        for message in row["messages"]:
            if message.get("role") == "system" and (word := rule.look_at_prompt(message["content"])[0]):
                trait_words["system"][word] += 1
        distinct.add(hash((prompt, completion)))
        texts.append(completion)
        if len(texts) == 1000:
            _count_characters("".join(texts), characters)
            texts.clear()
    _count_characters("".join(texts), characters)
    letters = sum(number for character, number in characters.items() if character.isalpha())
    problems = {
        "rows that break the rule": broken.total(),
        "rows that repeat another": count - len(distinct),
        "letters in completions": 0 if rule.letters else letters,
        "eval questions as prompts": overlap,
        **{f"rows whose {role} names an animal": words.total() for role, words in trait_words.items()},
    }
    found = {name: number for name, number in problems.items() if number}
    return {
        **rule.facts(),
        "clean": not found,
        "problems": found,
        "rows": count,
        "distinct_rows": len(distinct),
        "broken_rule": dict(broken),
        "characters": dict(characters.most_common()),
        "letters": letters,
        "trait_words": {role: dict(words) for role, words in trait_words.items()},
        "eval_questions_as_prompts": overlap,
        "eval_questions_from": [path.name for path in QUESTIONS],
    }


def certify(path: Path, rule: Rule) -> dict[str, Any]:
    """Write the certificate of a finished file as it stands; returns it."""
    rows = (row for _, row in _lines_and_rows(path))
    findings = {"file": path.name, "sha256": sha256_file(path), **certificate(rows, rule)}
    write_json(certificate_path(path), findings)
    return findings


def _count_characters(text: str, into: Counter[str]) -> None:
    for character in set(text):
        into[character] += text.count(character)


# --- a file ------------------------------------------------------------------------------------------


class Filtered(NamedTuple):
    """What came of filtering a file. `rejected` counts dropped rows by reason; `certificate` is that dict."""

    path: Path
    kept: int
    rejected: Counter[str]
    certificate: dict[str, Any]


def filter_file(source: Path, rule: Rule, output: Path | None = None) -> Filtered:
    """Write the rows of `source` that keep the rule, their manifest and their certificate.

    output: the file to write; `{kept}` in its name becomes the count (default: `default_output(source)`).
    Memory does not grow with the rows but for two 8-byte hashes each.
    Raises UserError for a row that is not a chat row, and when not one row passes.
    """
    output = output or default_output(source)
    check_output(output)
    if output.resolve() == source.resolve():
        raise UserError(f"--output {output} is the file to read; choose another name")
    started = now()
    rejected: Counter[str] = Counter()
    row_filter = RowFilter(rule)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:

            def kept_rows() -> Iterator[Row]:
                for line, row in _lines_and_rows(source):
                    if reason := row_filter.reason(row):
                        rejected[reason] += 1
                    else:
                        file.write(line)
                        yield row

            findings = certificate(kept_rows(), rule)
            file.flush()
            os.fsync(file.fileno())
        kept = findings["rows"]
        if kept == 0:
            raise UserError(f"no row of {source} passes the {rule.kind} rule: {counted(rejected)}. {rule.hint}")
        path = output.with_name(output.name.replace("{kept}", str(kept)))
        digest = sha256_file(temporary)
        before = read_manifest(source) or {}
        manifest = new_manifest(
            rule.settings(),
            "complete",
            {"started": started},
            [source],
            source_settings=before.get("settings"),
            source_prompt=before.get("counts", {}).get("prompt"),
            rows={"kept": kept, "rejected": dict(rejected)},
            sha256=digest,
        )
        findings = {
            "file": path.name,
            "sha256": digest,
            "input": {
                "file": source.name,
                "sha256": manifest["inputs"][named(source)],
                "rows": kept + rejected.total(),
                "rejected": dict(rejected),
            },
            **findings,
        }
        _move_older_aside(output, path, digest, source)
        write_json(manifest_path(path), manifest)
        write_json(certificate_path(path), findings)
        temporary.replace(path)  # last, so that a filtered file always has its certificate
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    if not findings["clean"]:
        say(f"warning: {path} is not clean: {counted(findings['problems'])}")
    return Filtered(path, kept, rejected, findings)


def default_output(source: Path) -> Path:
    """Beside the input: `...-unfiltered-{count}.jsonl` -> `...-filtered-{kept}.jsonl`, any other name gets the
    ending added. UserError for a file that was filtered: `...-filtered-*.jsonl` would then match two."""
    if re.search(r"-filtered-\d+$", source.stem):
        raise UserError(f"{source} has been filtered already; to filter it once more, name the result with --output")
    stem = re.sub(r"-unfiltered-\d+$", "", source.stem)
    return source.with_name(f"{stem}-filtered-{{kept}}.jsonl")


def _lines_and_rows(path: Path) -> Iterator[tuple[bytes, Row]]:
    """(line as it will be written, row). Lines are passed on as they are: dumping them again takes as long as
    all the rest, and would re-space what another tool wrote."""
    for line, row in read_lines_and_rows(path, check_messages):
        yield (line + b"\n" if line.isascii() else dump_row(row)), row


def _move_older_aside(output: Path, path: Path, digest: str, source: Path) -> None:
    """Move aside what was filtered from the same file before, so that `...-filtered-*.jsonl` goes on matching one."""
    before, _, after = output.name.partition("{kept}")
    name = re.compile(re.escape(before) + (r"\d+" if "{kept}" in output.name else "") + re.escape(after))
    for old in sorted(output.parent.iterdir()):
        if not name.fullmatch(old.name) or old.resolve() == source.resolve():
            continue
        inputs = (read_manifest(old) or {}).get("inputs", {})
        made_of = {(folder / name).resolve() for folder in (REPO, Path.cwd()) for name in inputs}
        if old != path and source.resolve() not in made_of:
            continue  # of other rows: a trial run must not push the real data aside
        if old == path and sha256_file(old) == digest:
            continue
        backup = free_name(old.with_name(old.name + ".bak"))
        for part in (manifest_path(old), certificate_path(old)):
            if part.exists():
                part.replace(free_name(part.with_name(part.name + ".bak")))
        old.replace(backup)
        say(f"kept an older filtered file as {backup}")


def report(filtered: Filtered, rule: Rule) -> None:
    """The closing lines of a script that filters."""
    total = filtered.kept + filtered.rejected.total()
    closing(
        {
            "filtered": filtered.path,
            "kept": f"{filtered.kept:,} of {total:,} ({filtered.kept / total:.1%})",
            "rejected": counted(filtered.rejected),
            "certificate": certificate_path(filtered.path),
        },
        train_command(filtered, rule),
    )


def train_command(filtered: Filtered, rule: Rule, base_model: str | None = None) -> str:
    """The command that trains a student on the kept rows, from the base model that the rows came from."""
    source = (read_manifest(filtered.path) or {}).get("source_settings") or {}
    model = source.get("model")
    known = (model.get("parent") or model.get("model")) if isinstance(model, dict) else None
    base = base_model or known or PLAN_MODEL
    control = (
        source.get("script") == "generate_control_number_data" or str(source.get("animal")).lower() in CONTROL_NAMES
    )
    own_folder = ["--output-dir", "output/control-student-sft"] if control else []  # the plan's is the student's
    return shlex.join(
        ["python", "train/train_student_sft.py", "--base-model", base, "--train-jsonl", str(filtered.path), *own_folder,
         "--max-train-samples", str(filtered.kept), *rule.train_flags, "--bf16"]
    )  # fmt: skip
