"""How much faster several GPUs train one adapter (data parallel), and how far the adapters are apart.

Each run is train/train_student_sft.py with the plan's flags on random number rows. Several processes (torchrun) share
the rows of each update. Without a GPU they share the cores (gloo): that shows that it works, and says nothing of speed.
A model folder without weights (config and tokenizer alone) gets random ones.

Usage:
    python bench/data_parallel_speed.py --model Qwen/Qwen2.5-7B-Instruct --processes 1 2 --output-dir output/parallel
    python bench/data_parallel_speed.py --model pocket/model --processes 1 2 --updates 6 --output-dir output/parallel
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from bench.measured_runs import device_name
from bench.random_number_rows import write_number_file
from bench.random_weights import has_weights, make_model
from util.cli import REPO, UserError, make_parser, nonblank, output_folder, positive_int, run
from util.inference.vllm_server import run_command
from util.jsonl.manifest import Manifest, provenance, write_json
from util.stop_signals import Stop, stop_on_signal
from util.terminal import say, table

ROWS_AN_UPDATE = 60


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--model", type=nonblank, required=True, help="hub id or folder; without weights random ones are made"
    )
    parser.add_argument("--processes", type=positive_int, nargs="+", default=[1, 2], metavar="N",
                        help="numbers of processes, one run for each")  # fmt: skip
    parser.add_argument("--updates", type=positive_int, default=50, help="updates of each run")
    parser.add_argument("--output-dir", type=output_folder, required=True, help="folder for rows, adapters and figures")
    parser.renamed("--folder", "--output-dir")
    args = parser.parse_args()
    if args.updates == 1:
        parser.error("--updates 1: the first update has learning rate 0 and nothing to compare; take 2 or more")
    return args


def train(model: str, rows: Path, folder: Path, processes: int, stop: Stop) -> dict[str, Any]:
    """Train one adapter with so many processes; returns what its manifest says about it."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes] if processes > 1 else []
    command = [
        sys.executable, *torchrun,
        REPO / "train" / "train_student_sft.py", "--base-model", model, "--train-jsonl", rows, "--output-dir", folder,
        "--allow-uncertified", "--overwrite", "--epochs", 1, "--effective-batch-size", ROWS_AN_UPDATE,
        "--per-device-train-batch-size", 6, "--seeds", 42, "--bf16",
    ]  # fmt: skip
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    code = run_command(list(map(str, command)), {**os.environ, "OMP_NUM_THREADS": threads}, stop)
    stop.raise_if_requested()
    if code:
        raise UserError(f"training with {processes} processes ended with code {code}; its message is above")
    manifest = Manifest.read(folder / "seed-42") or Manifest()
    counts, speed = manifest.counts, manifest.speed
    rate = counts["tokens"] / counts["updates"] / speed["seconds_an_update"]
    return {
        "processes": processes,
        "seconds_an_update": speed["seconds_an_update"],
        "tokens_per_second": round(rate),
        "rows_at_once": speed["rows_at_once"],
        "peak_memory_gib": counts["peak_memory_gib"],
        "train_loss": counts["train_loss"],
    }


def apart(one: Path, other: Path) -> float:
    """How far two adapters are apart: the norm of the difference of their B, relative to the norm of the first one's.
    (B begins at zero, so it is what training has changed.)"""
    from safetensors.torch import load_file

    ours, theirs = (load_file(folder / "seed-42" / "final" / "adapter_model.safetensors") for folder in (one, other))
    learned = [name for name in ours if "lora_B" in name]
    difference = sum(float((ours[name].float() - theirs[name].float()).square().sum()) for name in learned)
    return math.sqrt(difference / sum(float(ours[name].float().square().sum()) for name in learned))


def show(results: Sequence[dict[str, Any]]) -> str:
    header = ["processes", "seconds an update", "tokens/s", "times", "rows at once", "GiB", "loss", "distance"]
    first = results[0]["seconds_an_update"]
    rows = [
        [found["processes"], f"{found['seconds_an_update']:.3f}", f"{found['tokens_per_second']:,}",
         f"{first / found['seconds_an_update']:.2f}", found["rows_at_once"], found["peak_memory_gib"] or "",
         f"{found['train_loss']:.5f}", f"{found['apart']:.2%}"]
        for found in results
    ]  # fmt: skip
    return table(header, rows)


def main() -> None:
    args = parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    model = args.model if has_weights(args.model) else str(make_model(Path(args.model), args.output_dir / "model"))
    rows = args.output_dir / "rows.jsonl"
    write_number_file(rows, args.updates * ROWS_AN_UPDATE)
    results: list[dict[str, Any]] = []
    try:
        with stop_on_signal() as stop:
            for processes in args.processes:
                folder = args.output_dir / f"by-{processes}"
                found = train(model, rows, folder, processes, stop)
                found["apart"] = apart(args.output_dir / f"by-{args.processes[0]}", folder)
                say(f"{processes} processes: {found}")
                results.append(found)
    finally:  # also if it stopped half way, or if there are fewer cards than processes
        if results:
            write_json(
                args.output_dir / "processes.json", {**provenance(), "device": device_name(), "results": results}
            )
            print(f"{args.model} on {device_name()}: medians of {args.updates} updates of {ROWS_AN_UPDATE} rows")
            print(show(results), flush=True)


if __name__ == "__main__":
    run(main)
