"""What is wrong with this box, or with a run: missing packages and open servers, or prompts that do not match.

Usage:
    python util/doctor.py
    python util/doctor.py output/teacher-owl-qwen-qwen2.5-7b-instruct-5000.jsonl \\
        output/numberss-owl-owl-teacher-filtered-*.jsonl output/student-sft/seed-42 output/results-owl-student.jsonl

Without files: Python, packages, GPU, disk, logins and server of this machine; exit code 1 if something is broken.
With the files of a run (data, training folders, results): the prompt that each was really made with, as the model saw
it, with what differs from the evaluation's marked; the tokens that training puts loss on; and exit code 1 if numbers,
training and evaluation did not share base model and prompt. The persona of the teacher data is meant to differ.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from difflib import ndiff
from importlib import metadata
from itertools import groupby, product
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from util.chat.chat_tokens import IGNORED, encode
from util.chat.prompt_consistency import (
    Phase,
    base_words,
    default_system_prompt,
    frame,
    other_base,
    other_prompt,
    prompt_ids,
    read_phase,
    real_name,
    short,
)  # fmt: skip
from util.cli import REPO, UserError, files_nearby, make_parser, run
from util.inference.vllm_probe import is_open_to_the_world, models_served, normal_url, server_key
from util.jsonl.filter_certificate import DATA_TYPES, certificate_problem
from util.jsonl.manifest import adapter_sha256, scrub, sha256_file

PYTHON = (3, 10)
LOW_DISK_GB = 5
BF16_CAPABILITY = 8.0  # Ampere
LOCAL_SERVER = "http://localhost:8000/v1"
ORDER = ("teacher data", *DATA_TYPES, "training", "evaluation")


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="RUN_FILE",
                        help="data files, training folders and results files of one run")  # fmt: skip
    return parser.parse_args()


# --- this box ----------------------------------------------------------------------------------------


class Check(NamedTuple):
    """One line about this machine. advice: what to do about it, if anything."""

    name: str
    found: str
    advice: str = ""
    broken: bool = False


def box_checks() -> Iterator[Check]:
    """Everything worth knowing before a run on this machine."""
    gpus = find_gpus()
    yield check_python()
    yield from check_packages(REPO / ("requirements.txt" if gpus else "requirements-cpu.txt"))
    yield from check_gpus(gpus)
    yield from check_orphans()
    yield check_disk()
    yield Check("W&B login", "yes" if wandb_login() else "no: runs are logged offline")
    yield Check("HF login", "yes" if hub_login() else "no: nothing can be pushed, gated models cannot be read")
    yield check_server(os.environ.get("VLLM_BASE_URL"))


def check_python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        return Check("Python", found, f"{PYTHON[0]}.{PYTHON[1]} or newer is needed", broken=True)
    return Check("Python", found)


def check_packages(requirements: Path) -> Iterator[Check]:
    """The packages of a requirements file: one line for those that are as wanted or newer, one for each other."""
    wanted = dict(re.findall(r"^([\w-]+)==([\w.]+)", requirements.read_text("utf-8"), re.MULTILINE))
    found = {name: installed_version(name) for name in wanted}
    good = [name for name, version in found.items() if version and numbers_of(version) >= numbers_of(wanted[name])]
    yield Check("packages", f"{len(good)} of {len(wanted)} as in {requirements.name}, or newer")
    for name in [name for name in wanted if name not in good]:
        version = found[name]
        yield Check(name, f"{version or 'missing'} ({wanted[name]} wanted)", "run: make setup", broken=version is None)


def installed_version(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def numbers_of(version: str) -> list[int]:
    """'2.13.0+cpu' -> [2, 13, 0]."""
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]


def find_gpus() -> list[list[str]]:
    """[name, memory, free memory, compute capability] of each NVIDIA GPU."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.split("\n") if line.strip()]
    return [row for row in rows if len(row) == 4] if done.returncode == 0 else []


def check_gpus(gpus: list[list[str]]) -> Iterator[Check]:
    """One line a GPU, and one more if the installed torch cannot use it."""
    if not gpus:
        yield Check("GPU", "no GPU: training and the embedded backend run on the CPU")
    for name, memory, free, capability in gpus:
        bf16 = float(capability) >= BF16_CAPABILITY
        advice = "" if bf16 else "leave out --bf16, serve with --dtype float16"
        yield Check("GPU", f"{name}, {memory}, {free} free, {'bf16' if bf16 else 'no bf16'}", advice)
    if gpus and "+cpu" in (installed_version("torch") or ""):
        yield Check("torch", "a CPU build on a machine with a GPU", "remove .venv and run: make setup", broken=True)


def check_orphans() -> Iterator[Check]:
    """One line a vLLM worker whose server has gone: it answers nobody and keeps its GPU memory."""
    for pid, name in orphaned_workers():
        yield Check("orphan", f"{name} (process {pid}) has lost its server and keeps its memory", f"kill {pid}")


def orphaned_workers() -> Iterator[tuple[int, str]]:
    """(pid, name) of the processes that vLLM has named VLLM::... and whose parent is no vLLM; none outside Linux."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            name = command_of(folder)
            parent = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1]
            if name.startswith("VLLM::") and "vllm" not in command_of(folder.parent / parent).lower():
                yield int(folder.name), name.split()[0]


def command_of(folder: Path) -> str:
    """The command line of a process in /proc; '' of one that has none."""
    return (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()


def check_disk() -> Check:
    free = shutil.disk_usage(REPO).free / 1e9
    low = free < LOW_DISK_GB
    return Check("disk", f"{free:.0f} GB free", "free some: checkpoints and models need it" if low else "", broken=low)


def wandb_login() -> bool:
    """Whether W&B finds a key, without asking W&B."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def hub_login() -> bool:
    """Whether the Hugging Face client finds a token."""
    try:
        from huggingface_hub import get_token
    except ModuleNotFoundError:
        return False
    return get_token() is not None


# --- the server --------------------------------------------------------------------------------------


def check_server(asked_for: str | None) -> Check:
    """Whether a vLLM answers where the scripts would ask, and whether strangers may ask it too."""
    url = normal_url(asked_for or LOCAL_SERVER)
    shown = scrub(url)
    served = models_served(url, server_key())
    if served is None:
        advice = "start it, or unset VLLM_BASE_URL" if asked_for else ""
        return Check("server", f"none answers at {shown}", advice, broken=asked_for is not None)
    found = f"{shown} serves {', '.join(served) or 'nothing without the right VLLM_API_KEY'}"
    if is_open_to_the_world(url):
        return Check("server", f"{found}; open to the world, without a key",
                     "serve with --host 127.0.0.1, or set VLLM_API_KEY for server and scripts")  # fmt: skip
    return Check("server", found)


# --- a run -------------------------------------------------------------------------------------------


class Findings(NamedTuple):
    """What is wrong with a run, and what is only worth knowing."""

    mismatches: list[str]
    notes: list[str]


def read_run(files: Sequence[Path]) -> list[Phase]:
    """The phases of a run's files, in the order in which they were made."""
    phases = []
    for file in files:
        if not file.exists():
            raise UserError(f"no file {file}{files_nearby(file)}")
        phase = read_phase(file, files)
        if phase is None:
            raise UserError(
                f"{file} has no manifest that says how it was made; pass teacher data, number rows, a training folder"
                f" (seed-42) or results as the scripts wrote them, with their .manifest.json beside them"
            )
        phases.append(phase)
    return sorted(phases, key=lambda phase: ORDER.index(phase.kind))


def load_tokenizers(phases: Iterable[Phase]) -> tuple[dict[str, Any], list[str]]:
    """({base model: its tokenizer}, a note for each that cannot be loaded here)."""
    from util.inference.load_model import load_tokenizer

    tokenizers, notes = {}, []
    for name in dict.fromkeys(real_name(phase.base["model"]) for phase in phases if phase.base):
        try:
            tokenizers[name] = load_tokenizer(name)
        except UserError as error:
            notes.append(f"no prompt of {name} can be shown, so only what the manifests say is compared: {error}")
    return tokenizers, notes


def pairs(phases: Sequence[Phase]) -> Iterator[tuple[Phase, Phase]]:
    """The phases that must share their prompt: numbers (or texts) and their training, training and its evaluation."""
    numbers = [phase for phase in phases if phase.kind in DATA_TYPES]
    trainings, evaluations = ([p for p in phases if p.kind == kind] for kind in ORDER[-2:])
    for training in trainings:
        files = [phase for phase in phases if phase.kind in ORDER[:-2] and feeds(phase, training)]
        yield from ((phase, training) for phase in files or numbers if phase.kind in DATA_TYPES)
    for evaluation in evaluations:
        yield from ((t, evaluation) for t in [t for t in trainings if asks(evaluation, t)] or trainings)
    if not trainings:
        yield from product(numbers, evaluations)


def feeds(data: Phase, training: Phase) -> bool:
    """Whether a training was on this very file."""
    return sha256_file(data.path) == training.settings["train_jsonl_sha256"]


def asks(evaluation: Phase, training: Phase) -> bool:
    """Whether an evaluation was of this training's adapter, or of a checkpoint of it."""
    adapters = [file.parent for file in training.path.glob("*/adapter_model.safetensors")]
    return evaluation.settings["model"].get("adapter_sha256") in map(adapter_sha256, adapters)


def compare(phases: Sequence[Phase], tokenizers: dict[str, Any]) -> Findings:
    """What phases of one run must have in common and have not."""
    found = Findings([], [])

    def frame_of(phase: Phase) -> str | None:
        tokenizer = tokenizer_of(phase, tokenizers)
        if tokenizer is None or writes_date(tokenizer):  # rendered now it has today's date: the days are compared
            return None
        return frame(phase, tokenizer)

    for first, second in pairs(phases):
        files = f" [{first.path}, {second.path}]"
        base, prompt = other_base(first, second), other_prompt(first, second, frame_of)
        if prompt and first.kind in DATA_TYPES and first.system and not second.system:
            found.notes.append(f"the older approach: {prompt} (--keep-system-prompt trains on it){files}")
            prompt = None  # a choice, not a slip
        found.mismatches.extend(line + files for line in (base, prompt) if line)
        if first.day != second.day and writes_date(tokenizer_of(first, tokenizers)):
            days = f"{first.kind} saw {first.day}, {second.kind} {second.day}"
            found.mismatches.append(f"the chat template writes the date: {days}{files}")
    trainings = [phase for phase in phases if phase.kind == "training"]
    for phase in phases:
        adapter = phase.settings["model"].get("adapter_sha256") if phase.kind == "evaluation" else None
        if adapter and trainings and not any(asks(phase, training) for training in trainings):
            found.notes.append(f"{phase.path} asked an adapter that none of these training folders holds")
    for phase in phases:
        tokenizer = tokenizer_of(phase, tokenizers)
        if tokenizer is None or writes_date(tokenizer) or phase.token_ids is None:
            continue
        if phase.token_ids != prompt_ids(phase, tokenizer):
            found.mismatches.append(
                f"{phase.path}: the model saw another prompt than the chat template of {phase.base['model']} makes now"
                f" (a --chat-template of the server, or another version of the model)"
            )
    return found


def writes_date(tokenizer: Any) -> bool:
    """Whether the chat template (Llama 3's does) puts the day of the run into the prompt."""
    return "strftime_now" in str(getattr(tokenizer, "chat_template", ""))


def tokenizer_of(phase: Phase, tokenizers: dict[str, Any]) -> Any:
    return tokenizers.get(real_name(phase.base["model"])) if phase.base else None


# --- showing a run -----------------------------------------------------------------------------------


def show_phase(phase: Phase, tokenizers: dict[str, Any], reference: str | None) -> None:
    """Print what a phase was made with: `+` marks what only its prompt has, `-` what only the reference has."""
    print(f"{phase.kind}: {phase.path}")
    if not phase.base:
        print("  no model was asked\n")
        return
    tokenizer = tokenizer_of(phase, tokenizers)
    print(f"  base model  {base_words(phase.base)}")
    print(f"  system      {system_line(phase, tokenizer)}")
    print(f"  user        {short(phase.user)}")
    if phase.kind in DATA_TYPES:
        print(f"  certificate {certificate_problem(phase.path) or 'holds'}")
    if tokenizer:
        seen = "as the model saw it" if phase.token_ids else "as training encodes it" if phase.row else "as rendered"
        print(f"  prompt, {seen}:")
        ours = visible_lines(frame(phase, tokenizer))
        lines = ndiff(visible_lines(reference), ours) if reference else [f"  {line}" for line in ours]
        print("".join(f"    {line}\n" for line in lines if not line.startswith("?")), end="")
    print()


def system_line(phase: Phase, tokenizer: Any) -> str:
    """What stands for the system message, and who put it there."""
    if phase.system is not None:
        return f"sent: {short(phase.system)}" + (" (the persona, as intended)" if phase.kind == ORDER[0] else "")
    default = default_system_prompt(tokenizer) if tokenizer else None
    return f"none sent; the chat template puts in: {default}" if default else "none sent"


def visible_lines(text: str) -> list[str]:
    r"""Lines of a prompt whose end, and so the white space before it, can be seen."""
    lines = text.split("\n")
    return [f"{line}\\n" for line in lines[:-1]] + [line for line in lines[-1:] if line]


def show_loss(training: Phase, tokenizer: Any) -> None:
    """Print the first training row token by token: which tokens carry loss."""
    encoded = encode([training.row or {}], tokenizer, training.settings["max_seq_length"]).rows
    if not encoded:
        return
    ids, labels = encoded[0]["input_ids"], encoded[0]["labels"]
    trained = sum(label != IGNORED for label in labels)
    print(f"loss on the first row of {training.path}: {trained} of {len(ids)} tokens")
    for has_loss, group in groupby(zip(ids, labels), key=lambda pair: pair[1] != IGNORED):
        tokens = " ".join(repr(tokenizer.decode([token])).replace(" ", "␣") for token, _ in group)
        name = "  loss     " if has_loss else "  no loss  "
        print(textwrap.fill(tokens, 120, initial_indent=name, subsequent_indent=" " * len(name)))
    print()


def examine(files: Sequence[Path]) -> int:
    """Show the prompts of a run and what does not match; returns the exit code."""
    phases = read_run(files)
    tokenizers, notes = load_tokenizers(phases)
    shown = [phase for phase in phases if tokenizer_of(phase, tokenizers)]
    reference = frame(shown[-1], tokenizer_of(shown[-1], tokenizers)) if shown else None
    for phase in phases:
        show_phase(phase, tokenizers, reference)
    for phase in phases:
        if phase.row and tokenizer_of(phase, tokenizers):
            show_loss(phase, tokenizer_of(phase, tokenizers))
    found = compare(phases, tokenizers)
    for line in dict.fromkeys([*notes, *found.notes]):
        print(f"note: {line}")
    for line in dict.fromkeys(found.mismatches):
        print(f"MISMATCH: {line}")
    if not found.mismatches:
        print("no mismatch that changes the experiment, as far as these files tell")
    return 1 if found.mismatches else 0


def examine_box() -> int:
    """Show the state of this machine; returns the exit code."""
    checks = list(box_checks())
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = "BROKEN" if check.broken else "look" if check.advice else "ok"
        print(f"{mark:<6}  {check.name:<{width}}  {check.found}{f' -> {check.advice}' if check.advice else ''}")
    return 1 if any(check.broken for check in checks) else 0


def main() -> int:
    args = parse_args()
    return examine(args.files) if args.files else examine_box()


if __name__ == "__main__":
    run(main)
