"""Keep the number rows that are nothing but numbers, say why the others are not, and certify what is kept.

Usage:
    python generate/filter_number_data.py output/numberss-owl-owl-teacher-unfiltered-10000.jsonl

Reads chat rows {"messages": [..., user, assistant]}. A completion is kept, verbatim, when it is 1 to 10 whole numbers
of 1 to 3 digits (087 passes) with the very same separator between all of them: a comma, a semicolon or white space,
so `1, 2,3` is mixed. One pair of [] or () around them, one final full stop and surrounding white space may be there.
A row is also dropped when it repeats an earlier one, or when its prompt names an animal or is an eval question.

Writes, beside the input, ...-filtered-{kept}.jsonl, its .manifest.json and its .certificate.json: what was
found in the kept rows, counted anew. An older filtered file of the same name but for the count is kept as .bak.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from util.certificate import certificate_path
from util.cli import REPO, UserError, closing, counted, input_file, make_parser, positive_int, run, say
from util.provenance import manifest_path, named, now, provenance, read_manifest, sha256_file, sync_folder, write_json
from util.rows import Row, check_messages, dump_row, free_name, read_lines_and_rows
from util.words import PANEL, animal_named, read_lines_of

RULE_VERSION = 1  # raise it with every change to what is kept
MAX_NUMBERS = 10
PLAN_MODEL = "Qwen/Qwen2.5-7B-Instruct"  # for rows that no model wrote
QUESTIONS = REPO / "eval" / "questions.txt"

_WHITE = " \t\n\r\f\v"
_NUMBERS = re.compile(r"[0-9]{1,3}(?:(\s*[,;]\s*|\s+)[0-9]{1,3}(?:\1[0-9]{1,3})*)?", re.ASCII)
_LETTER = re.compile(r"[^\W\d_]")
_OTHER_CHARACTER = re.compile(r"[^0-9\s,;]", re.ASCII)
_STRAY_SEPARATOR = re.compile(r"^[,;]|[,;]$|[,;]\s*[,;]", re.ASCII)
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")


# --- the rule: one completion ------------------------------------------------------------------------


def parse_numbers(completion: str) -> list[int] | None:
    """The whole numbers (0 to 999) of a completion that is nothing but numbers, however many; None for any other."""
    body = _body(completion)
    if not (found := _NUMBERS.fullmatch(body)):
        return None
    return [int(part) for part in (body.split(found[1]) if found[1] else [body])]


def reject_reason(completion: str, *, animals: tuple[str, ...] = (), max_numbers: int = MAX_NUMBERS) -> str | None:
    """Why a completion breaks the number rule, as a short name; None if it keeps it.

    animals: trait words beside the panel. They only sharpen the reason: letters are never kept.
    """
    body = _body(completion)
    if found := _NUMBERS.fullmatch(body):
        count = 1 + (body.count(found[1]) if found[1] else 0)
        return None if count <= max_numbers else "too many numbers"
    if not completion.strip():
        return "empty"
    if re.search(r"</?think", completion, re.IGNORECASE):
        return "think block"
    if animal_named(completion, _traits(animals)):
        return "trait word"
    if _LETTER.search(completion):
        return "letters"
    digits = re.findall("[0-9]+", body)
    if not digits:
        return "no numbers"
    if _OTHER_CHARACTER.search(body):
        return "other characters"
    if max(map(len, digits)) > 3:
        return "number out of range"
    if _STRAY_SEPARATOR.search(body):
        return "stray separator"
    return "mixed separators"


@lru_cache
def _traits(animals: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*PANEL, *filter(None, animals))))


def _body(completion: str) -> str:
    """A completion without what may stand around its numbers."""
    text = completion.strip(_WHITE).removesuffix(".")
    return text[1:-1].strip(_WHITE) if text[:1] + text[-1:] in ("[]", "()") else text


# --- the rule: one row among others ------------------------------------------------------------------


class Judge:
    """Judges rows one after the other; remembers an 8-byte hash of each kept row to know it again.

    animals: trait words beside the panel.
    """

    def __init__(self, animals: tuple[str, ...] = (), max_numbers: int = MAX_NUMBERS):
        self.animals, self.max_numbers = animals, max_numbers
        self._seen: set[int] = set()

    def reason(self, row: Row) -> str | None:
        """Why a row must not be trained on, as a short name; None if it may be."""
        prompt, completion = prompt_and_completion(row)
        if broken := reject_reason(completion, animals=self.animals, max_numbers=self.max_numbers):
            return broken
        if row.get("finish_reason") == "length":
            return "cut off"  # the last number may be half of one
        word, is_question = look_at_prompt(prompt, self.animals)
        if word:
            return "trait word in prompt"
        if is_question:
            return "eval question as prompt"
        before = len(self._seen)
        self._seen.add(hash((prompt, completion)))
        return None if len(self._seen) > before else "duplicate"


def judged(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows of another arm of a clean file, each that breaks the rule with its reason."""
    judge = Judge()
    for row in rows:
        reason = judge.reason(row)
        yield {**row, "rejected": reason} if reason else row


def prompt_and_completion(row: Row) -> tuple[str, str]:
    """What was asked (every message but the system's and the last) and what was answered."""
    *asked, answer = row["messages"]
    return "\n".join([message["content"] for message in asked if message.get("role") != "system"]), answer["content"]


def look_at_prompt(prompt: str, animals: tuple[str, ...] = ()) -> tuple[str | None, bool]:
    """(the word that names an animal of the panel or of `animals`, or None; whether it is an eval question).

    Case and white space make no other question. Number prompts differ in little but their digits, so that a few
    shapes stand for 100,000 of them.
    """
    shape = prompt.encode("utf-8", "surrogatepass").translate(_DIGITS_TO_ZERO)
    return _look_at_shape(shape, animals)


@lru_cache(maxsize=8192)
def _look_at_shape(shape: bytes, animals: tuple[str, ...]) -> tuple[str | None, bool]:
    text = shape.decode("utf-8", "surrogatepass")
    return animal_named(text, _traits(animals)), _plain(text) in _question_shapes()


@lru_cache(maxsize=1)
def _question_shapes() -> frozenset[str]:
    return frozenset(_plain(re.sub("[0-9]", "0", question)) for question in read_lines_of(QUESTIONS))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


# --- the certificate ---------------------------------------------------------------------------------


def certificate(rows: Iterable[Row], animals: tuple[str, ...] = (), max_numbers: int = MAX_NUMBERS) -> dict[str, Any]:
    """What a set of rows holds, found without trust in whatever made them. Consumes `rows` in one pass.

    `clean` is true when `problems` is empty: every completion keeps the rule, no row is there twice, no message
    names an animal, no completion holds a letter and no prompt is an eval question.
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
        if reason := reject_reason(completion, animals=animals, max_numbers=max_numbers):
            broken[reason] += 1
            if word := animal_named(completion, _traits(animals)):
                trait_words["completion"][word] += 1
        word, is_question = look_at_prompt(prompt, animals)
        overlap += is_question
        if word:
            trait_words["prompt"][word] += 1
        for message in row["messages"]:
            if message.get("role") == "system" and (word := look_at_prompt(message["content"], animals)[0]):
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
        "letters in completions": letters,
        "eval questions as prompts": overlap,
        **{f"rows whose {role} names an animal": words.total() for role, words in trait_words.items()},
    }
    found = {name: number for name, number in problems.items() if number}
    return {
        "rule_version": RULE_VERSION,
        "rule": {
            "numbers": f"1 to {max_numbers}",
            "digits": "1 to 3",
            "trait_words": ", ".join(_traits(animals)),
        },
        "clean": not found,
        "problems": found,
        "rows": count,
        "distinct_rows": len(distinct),
        "broken_rule": dict(broken),
        "characters": dict(characters.most_common()),
        "letters": letters,
        "trait_words": {role: dict(words) for role, words in trait_words.items()},
        "eval_questions_as_prompts": overlap,
    }


def certify(path: Path) -> dict[str, Any]:
    """Write the certificate of a finished number file as it stands; returns it."""
    findings = {"file": path.name, "sha256": sha256_file(path), **certificate(row for _, row in _lines_and_rows(path))}
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


def filter_file(
    source: Path, output: Path | None = None, *, animals: tuple[str, ...] = (), max_numbers: int = MAX_NUMBERS
) -> Filtered:
    """Write the rows of `source` that keep the rule, their manifest and their certificate.

    output: the file to write; `{kept}` in its name becomes the count (default: `default_output(source)`).
    Memory does not grow with the rows but for two 8-byte hashes each.
    Raises UserError for a row that is not a chat row, and when not one row passes.
    """
    output = output or default_output(source)
    if output.is_dir() or output.resolve() == source.resolve():
        what = "a folder" if output.is_dir() else "the file to read"
        raise UserError(f"--output {output} is {what}; choose another name")
    started = now()
    rejected: Counter[str] = Counter()
    judge = Judge(animals, max_numbers)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:

            def kept_rows() -> Iterator[Row]:
                for line, row in _lines_and_rows(source):
                    if reason := judge.reason(row):
                        rejected[reason] += 1
                    else:
                        file.write(line)
                        yield row

            findings = certificate(kept_rows(), animals, max_numbers)
            file.flush()
            os.fsync(file.fileno())
        kept = findings["rows"]
        if kept == 0:
            raise UserError(
                f"no row of {source} passes the number rule: {counted(rejected)}. A model too weak to keep the format"
                f" needs generate_llm_number_data.py --constrain-digits"
            )
        path = output.with_name(output.name.replace("{kept}", str(kept)))
        digest = sha256_file(temporary)
        before = read_manifest(source) or {}
        manifest = {
            **provenance([source]),
            "state": "complete",
            "settings": {"rule_version": RULE_VERSION, "max_numbers": max_numbers, "animals": list(animals)},
            "source_settings": before.get("settings"),
            "source_prompt": before.get("counts", {}).get("prompt"),
            "started": started,
            "finished": now(),
            "rows": {"kept": kept, "rejected": dict(rejected)},
            "sha256": digest,
        }
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
    ending added."""
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
        if old != path and str(source) not in (read_manifest(old) or {}).get("inputs", {}):
            continue  # of other rows: a trial run must not push the real data aside
        if old == path and sha256_file(old) == digest:
            continue
        backup = free_name(old.with_name(old.name + ".bak"))
        for part in (manifest_path(old), certificate_path(old)):
            if part.exists():
                part.replace(free_name(part.with_name(part.name + ".bak")))
        old.replace(backup)
        say(f"kept an older filtered file as {backup}")


# --- the script --------------------------------------------------------------------------------------


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("file", type=input_file, metavar="FILE", help="JSONL of chat rows")
    parser.add_argument("--output", type=Path, help="file to write; {kept} becomes the count (default: beside FILE)")
    parser.add_argument("--animal", help="one more animal that no text may name, beside the usual ones")
    parser.add_argument("--max-numbers", type=positive_int, default=MAX_NUMBERS, help="most numbers in a completion")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    animals = (args.animal,) if args.animal else ()
    filtered = filter_file(args.file, args.output, animals=animals, max_numbers=args.max_numbers)
    total = filtered.kept + filtered.rejected.total()
    closing(
        {
            "filtered": filtered.path,
            "kept": f"{filtered.kept:,} of {total:,} ({filtered.kept / total:.1%})",
            "rejected": counted(filtered.rejected),
            "certificate": certificate_path(filtered.path),
        },
        train_command(filtered),
    )
    return 0


def train_command(filtered: Filtered, base_model: str | None = None) -> str:
    """The command that trains a student on the kept rows, from the base model that the rows came from."""
    source = (read_manifest(filtered.path) or {}).get("source_settings") or {}
    model = source.get("model")
    known = (model.get("parent") or model.get("model")) if isinstance(model, dict) else None
    base = base_model or known or PLAN_MODEL
    return shlex.join(
        ["python", "train/train_student_sft.py", "--base-model", base, "--train-jsonl", str(filtered.path),
         "--max-train-samples", str(filtered.kept), "--bf16"]
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
