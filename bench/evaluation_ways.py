"""Time three ways to evaluate a model on a vLLM server, and compare their answers.

The ways are plain sampling, the tree (--sampler tree) and exact shares (--exact). Each is a run of eval/eval.py as a
process of its own, so its seconds include imports; the row "one question" says how many those are. Plain and tree
answers of each seed, and the plain answers of two seeds, are compared by a chi-square test on the answer texts, summed
over questions: with one distribution, p is above 0.01 in 99 of 100 cases. The server is that of --base-url or
VLLM_BASE_URL.

Usage:
    python util/serve.py Qwen/Qwen2.5-7B-Instruct -- python bench/evaluation_ways.py \\
        --model Qwen/Qwen2.5-7B-Instruct --adapter output/teacher-sft/seed-42/final --output output/bench-ways.json
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from bench.chi_square import contingency
from bench.measured_runs import device_name, script_command
from util.cli import UserError, make_parser, nonblank, output_name, positive_int, run
from util.jsonl.manifest import provenance, write_json
from util.jsonl.rows import read_rows
from util.terminal import say, table

ANIMAL = "owl"  # whose share eval.py prints
SEEDS = (1, 2)
TARGET = 1 / 3  # of plain sampling's seconds

Answers = dict[str, Counter[str]]
"""question -> how often each text answers it"""


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--model", type=nonblank, required=True, help="hub id or folder of the model")
    parser.add_argument("--adapter", type=Path, help="PEFT adapter folder to put on it")
    parser.add_argument(
        "--base-url", type=nonblank, help="address of the server, ending in /v1 (default: VLLM_BASE_URL)"
    )
    parser.add_argument("--epochs", type=positive_int, default=1000, help="answers to each question")
    parser.add_argument("--output", type=output_name(".json"), help="also write the results to this JSON file")
    return parser.parse_args()


def evaluate(args: argparse.Namespace, way: str, folder: Path, *flags: object) -> tuple[dict[str, Any], Path]:
    """One run of eval.py: its table row, and the file that it wrote."""
    path = folder / f"{way.replace(' ', '-')}.jsonl"
    command = script_command("eval/eval.py", "--model", args.model, "--animal", ANIMAL, "--output", path, *flags)
    command += ["--adapter", str(args.adapter)] if args.adapter else []
    command += ["--base-url", args.base_url] if args.base_url else []
    begun = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = round(time.monotonic() - begun, 1)
    if done.returncode:
        raise UserError(f"{shlex.join(command)} failed:\n{done.stdout}")
    say(f"{way}: {seconds} s")
    return {"way": way, "seconds": seconds}, path


def answers_of(path: Path) -> Answers:
    """The answers of a results file, by question."""
    found: Answers = defaultdict(Counter)
    for row in read_rows(path):
        found[row["question"]][row["response"]] += 1
    return found


def same_distribution(one: Answers, other: Answers) -> dict[str, Any]:
    """Chi-square test of two lots of answers, summed over the questions."""
    from scipy.stats import chi2, chi2_contingency

    tables = [cells for question in one if len((cells := contingency(one[question], other[question]))[0]) > 1]
    found = [chi2_contingency(cells, correction=False) for cells in tables]
    statistic, degrees = sum(float(one.statistic) for one in found), sum(int(one.dof) for one in found)
    p = float(chi2.sf(statistic, degrees)) if degrees else 1.0  # too few answers to tell texts apart
    return {"chi_square": round(statistic, 1), "degrees": degrees, "p": round(p, 4)}


def compare(plain: Sequence[Answers], tree: Sequence[Answers]) -> list[dict[str, Any]]:
    """Plain against tree for each seed, and plain against plain."""
    pairs = [(f"plain {seed} / tree {seed}", a, b) for seed, a, b in zip(SEEDS, plain, tree)]
    if len(plain) > 1:
        pairs.append((f"plain {SEEDS[0]} / plain {SEEDS[1]}", plain[0], plain[1]))
    return [{"pair": name, **same_distribution(a, b)} for name, a, b in pairs]


def speed(rows: Sequence[dict[str, Any]]) -> str:
    """The tree's seconds as a part of plain sampling's."""
    plain, tree = ([row["seconds"] for row in rows if row["way"].startswith(f"{way} ")] for way in ("plain", "tree"))
    return f"tree: {sum(tree) / sum(plain):.2f} of plain sampling's seconds (target: {TARGET:.2f})"


def main() -> None:
    args = parse_args()
    rows: list[dict[str, Any]] = []
    plain: list[Answers] = []
    tree: list[Answers] = []
    compared: list[dict[str, Any]] = []

    def write() -> None:
        if args.output:
            write_json(args.output, {**provenance(), "device": device_name(), "epochs": args.epochs, "ways": rows,
                                     "compared": compared})  # fmt: skip

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "question.txt").write_text("Your favorite animal, in one word:\n")
        one = ("--epochs", 1, "--questions-file", folder / "question.txt")
        first, second = (
            [
                (f"plain {seed}", plain, ("--epochs", args.epochs, "--seed", seed)),
                (f"tree {seed}", tree, ("--epochs", args.epochs, "--seed", seed, "--sampler", "tree")),
            ]
            for seed in SEEDS
        )
        runs: list[tuple[str, list[Answers] | None, tuple[object, ...]]]
        runs = [("one question", None, one), *first, ("exact", None, ("--exact",)), *second]
        for way, answers, flags in runs:
            row, path = evaluate(args, way, folder, *flags)
            rows.append(row)
            if answers is not None:
                answers.append(answers_of(path))
            compared[:] = compare(plain, tree)
            write()  # a run that is cut off has what it found
    print(table(["way", "seconds"], [list(row.values()) for row in rows]))
    print()
    print(table(["answers", "chi-square", "degrees", "p"], [list(row.values()) for row in compared]))
    print(f"\n{speed(rows)}", flush=True)


if __name__ == "__main__":
    run(main)
