"""What is wrong with this machine, or with a run: missing packages and open servers, or prompts that do not match.

Usage:
    python util/doctor.py
    python util/doctor.py --model Qwen/Qwen2.5-72B-Instruct
    python util/doctor.py output/teacher-owl-qwen-qwen2.5-7b-instruct-5000.jsonl \\
        output/numberss-owl-owl-teacher-filtered-*.jsonl output/student-sft/seed-42 output/results-owl-student.jsonl

Without files: checks Python, packages, GPU, disk, logins and server of this machine. The exit code is 1 if something
is broken.
With --model: how many cards of which size each phase needs, estimated from the model's config.
With the files of a run (data, training folders, results): shows the prompt that each was made with, as the model saw
it, and which of its tokens carry loss in training. What differs from the prompt of the evaluation is marked. The exit
code is 1 if numbers, training and evaluation do not share base model and prompt (the persona of the teacher data is
meant to differ), or if a link is broken: rows or an adapter are not those that the next file was made from.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from util.checks.chain_links import chain_of
from util.checks.machine_checks import machine_checks
from util.checks.print_run_prompts import show_loss, show_phase
from util.checks.run_checks import compare, load_tokenizers, read_run, tokenizer_of
from util.cli import make_parser, nonblank, run
from util.model_memory import CARDS, GIB, HALF, fewest, serves, trains, weight_counts
from util.terminal import table


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="RUN_FILE",
                        help="data files, training folders and results files of one run")  # fmt: skip
    parser.add_argument("--model", type=nonblank, help="hub id or folder: say how many cards each phase needs")
    args = parser.parse_args()
    if args.files and args.model:
        parser.error("--model is about a model and the files are about a run: pass one of them")
    return args


def examine_model(model: str) -> int:
    """Print how many cards of which size each phase needs. Returns the exit code."""
    from util.inference.load_model import load_config

    config = load_config(model).get_text_config()
    weights, largest = weight_counts(config)
    print(f"{model}: {weights / 1e6:,.0f} million weights, {HALF * weights / GIB:.1f} GiB in bfloat16")
    print("Cards of one machine that each phase needs at least (an estimate; -: more than 8):")
    serving = [fewest(partial(serves, config, weights, gib=gib)) for gib in CARDS]
    training = [fewest(partial(trains, config, weights, largest, gib=gib)) for gib in CARDS]
    phases = [["vllm serve (steps 1, 3, 4 and 6)", *serving], ["training (steps 2 and 5)", *training]]
    print(table(["memory of a card", *(f"{gib} GB" for gib in CARDS)], phases))
    print("Several cards: vllm serve and util/serve.py take --tensor-parallel-size N, training experiments/fsdp.yaml.")
    return 0


def examine_run(files: Sequence[Path]) -> int:
    """Print the prompts of a run and what does not match. Returns the exit code."""
    phases = read_run(files)
    tokenizers, notes = load_tokenizers(phases)
    shown = [phase for phase in phases if tokenizer_of(phase, tokenizers)]
    for phase in phases:
        show_phase(phase, tokenizers, shown[-1] if shown else None)
    for phase in phases:
        if phase.row and tokenizer_of(phase, tokenizers):
            show_loss(phase, tokenizer_of(phase, tokenizers))
    found, chain = compare(phases, tokenizers), chain_of(phases)
    for line in dict.fromkeys(chain.whole):
        print(f"link: {line}")
    for line in dict.fromkeys([*notes, *found.notes, *chain.notes]):
        print(f"note: {line}")
    for line in dict.fromkeys(found.mismatches):
        print(f"MISMATCH: {line}")
    for line in dict.fromkeys(chain.broken):
        print(f"BROKEN LINK: {line}")
    if not (found.mismatches or chain.broken):
        print("no mismatch found in these files")
    return 1 if found.mismatches or chain.broken else 0


def examine_machine() -> int:
    """Print the state of this machine. Returns the exit code."""
    checks = list(machine_checks())
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(check.line(width))
    return 1 if any(check.broken for check in checks) else 0


def main() -> int:
    args = parse_args()
    if args.model:
        return examine_model(args.model)
    return examine_run(args.files) if args.files else examine_machine()


if __name__ == "__main__":
    run(main)
