"""How fast a training is: the suite's loop, with one student and with several, against stock TRL and other ways.

Every way makes the same updates, one after the other, and its figure is the median of the timed ones. Rows are the
suite's number prompts with random answers. A folder of config and tokenizer alone gets random weights, which train at
the same speed. The ways (--ways; "times" compares with the first):

    trl           stock TRL as it comes: padded rows, gradient checkpointing, --per-device-train-batch-size rows at once
    trl-tuned     the same with all rows of an update at once and no checkpointing
    loop          what train/train_student_sft.py does, one student
    students      --students of them together, each with rows of its own
    processes     --students processes side by side on one card, each with one student
    checkout      the loop of another checkout of the suite (--checkout FOLDER), up to commit 11581f7
    unsloth       Unsloth with its own checkpointing, --per-device-train-batch-size rows at once (where it is installed)
    unsloth-tuned the same with all rows of an update at once and no checkpointing

Usage:
    python bench/training_speed.py --model Qwen/Qwen2.5-7B-Instruct --output output/bench-train.json
    python bench/training_speed.py --model shapes/qwen1.5b --effective-batch-size 16 --students 8 \\
        --ways loop students processes
    python bench/training_speed.py --model pocket/model --updates 4 --students 3 --ways loop students        # on a CPU
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from bench.compared_trainers import lora_config, make_loop, make_stock_trainer
from bench.random_number_rows import number_rows
from bench.random_weights import load_or_random
from bench.update_times import WARM_UP, timed
from train.rows_at_once import limit_gpu_memory
from util.chat.chat_tokens import encode
from util.cli import REPO, UserError, make_parser, nonblank, output_name, positive_float, positive_int, run
from util.jsonl.manifest import provenance, write_json
from util.terminal import Progress, say, table

COLUMNS = ("rows_at_once", "seconds", "student_updates_per_second", "tokens_per_second", "times", "useful_tflops",
           "peak_gib", "train_loss")  # fmt: skip
WAYS = ("trl", "trl-tuned", "loop", "students", "processes", "checkout", "unsloth", "unsloth-tuned")


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--model", type=nonblank, required=True, help="hub id or folder; without weights random ones are made"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["trl", "trl-tuned", "loop"], help="what is timed")
    parser.add_argument("--updates", type=positive_int, default=10, help="timed updates of each way")
    parser.add_argument("--effective-batch-size", type=positive_int, default=60, help="rows in one update")
    parser.add_argument("--per-device-train-batch-size", type=positive_int, default=6,
                        help="rows that stock TRL takes at once")  # fmt: skip
    parser.add_argument("--lora-rank", type=positive_int, default=8, help="rank of the adapters")
    parser.add_argument("--lora-alpha", type=positive_int, default=8, help="scale of the adapters: alpha / rank")
    parser.add_argument("--students", type=positive_int, default=1, help="how many train together, or side by side")
    parser.add_argument("--gpu-memory-gib", type=positive_float, metavar="GIB", help="cap the memory of the GPU")
    parser.add_argument("--checkout", type=Path, metavar="FOLDER", help="another checkout of the suite")
    parser.add_argument("--wait-for", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)  # of --ways processes
    parser.add_argument("--profile", action="store_true", help="print where an update of `loop` spends its time")
    parser.add_argument("--output", type=output_name(".json"), help="JSON file for the figures")
    args = parser.parse_args()
    if args.effective_batch_size % args.per_device_train_batch_size:
        parser.error("--effective-batch-size is not a multiple of --per-device-train-batch-size")
    if "checkout" in args.ways and not args.checkout:
        parser.error("--ways checkout needs --checkout FOLDER")
    return args


# --- the ways ----------------------------------------------------------------------------------------


def made_here(args: argparse.Namespace, way: str, model: Any, data: Any) -> Any:
    """The trainer of a way that trains in this process."""
    lora = lora_config(args.lora_rank, args.lora_alpha)
    recipe = {"updates": WARM_UP + args.updates, "lora": lora, "effective": args.effective_batch_size}
    at_once = args.effective_batch_size if way.endswith("-tuned") else args.per_device_train_batch_size
    options = {"at_once": at_once, "gradient_checkpointing": not way.endswith("-tuned")}
    if way.startswith("trl"):
        return make_stock_trainer(model(), data, bf16=model().device.type == "cuda", **options, **recipe)
    students = args.students if way == "students" else 1
    return make_loop(model(), data[1], args.per_device_train_batch_size, students, **recipe)


def in_processes(args: argparse.Namespace) -> dict[str, Any]:
    """`loop` in --students processes at once: student updates by all of them, and the slowest one's seconds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *same_flags(args), "--lora-alpha", str(args.lora_alpha), "--ways", "loop",
                   "--students", str(args.students), "--wait-for", folder]  # fmt: skip
        outputs = [Path(folder) / f"{number}.json" for number in range(args.students)]
        processes = [subprocess.Popen([*command, "--output", str(output)]) for output in outputs]
        if sum(process.wait() != 0 for process in processes):
            raise UserError("one of the processes failed; its message is above")
        found = [json.loads(output.read_text())["results"][0] for output in outputs]
    rate = sum(1 / one["seconds"] for one in found)
    return {"seconds": max(one["seconds"] for one in found), "student_updates_per_second": round(rate, 2)}


def of_checkout(args: argparse.Namespace) -> dict[str, Any]:
    """One adapter, trained by the bench of another checkout, whose full fast path was rung 5."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "bench.json"
        script = args.checkout / "bench" / "train.py"
        command = [sys.executable, script, *same_flags(args), "--rungs", "5", "--output", output]
        if subprocess.run(list(map(str, command)), check=False).returncode:
            raise UserError(f"{script} failed; its message is above")
        found: dict[str, Any] = json.loads(output.read_text())["results"][0]
    return {name: found.get(name) for name in ("seconds", "useful_tflops", "peak_gib", "train_loss")}


def of_unsloth(args: argparse.Namespace, tuned: bool) -> dict[str, Any]:
    """One adapter, trained by Unsloth in a process of its own: it changes TRL and transformers when it is imported."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "unsloth.json"
        command = [sys.executable, str(REPO / "bench" / "unsloth_training.py"), *same_flags(args), "--lora-alpha",
                   str(args.lora_alpha), "--output", str(output), *(["--tuned"] if tuned else [])]  # fmt: skip
        if subprocess.run(command, check=False).returncode:
            raise UserError("Unsloth failed; its message is above")
        found: dict[str, Any] = json.loads(output.read_text())
    return found


def same_flags(args: argparse.Namespace) -> list[str]:
    names = ("model", "updates", "effective_batch_size", "per_device_train_batch_size", "lora_rank")
    return [part for name in names for part in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]


# --- timing ------------------------------------------------------------------------------------------


def print_profile(trainer: Any) -> None:
    """Where three more updates spend their time, by kernel, and on a GPU also by what Python did meanwhile."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.cuda.is_available()
    numbers = range(len(trainer.students))
    for student in trainer.students:
        student.done -= 3
    begun = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as found:
        for _ in range(3):
            trainer.update(numbers, Progress(0))
        if cuda:
            torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    events = found.key_averages()
    if cuda:
        kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(event.self_device_time_total for event in kernels) / 3e3
        launched = sum(event.count for event in kernels) / 3
        print(f"an update: {busy:.1f} ms of kernels, {launched:.0f} of them, in {seconds / 3 * 1e3:.1f} ms (profiled)")
        print(events.table(sort_by="self_cuda_time_total", row_limit=25, max_name_column_width=60))
    print(events.table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60))


def time_here(args: argparse.Namespace, way: str, model: Callable[[], Any], data: Any) -> dict[str, Any]:
    """The figures of a way that trains in this process."""
    import torch

    torch.manual_seed(0)
    trainer = made_here(args, way, model, data)
    if args.wait_for:
        (args.wait_for / f"ready-{os.getpid()}").touch()
        while len(list(args.wait_for.glob("ready-*"))) < args.students:
            time.sleep(0.05)
    found = timed(trainer)
    if hasattr(trainer, "students"):
        updates = WARM_UP + args.updates
        found["rows_at_once"] = trainer.rows_at_once
        if args.profile:
            print_profile(trainer)
        found["useful_tflops"] = round(trainer.useful_flops() / updates / found["seconds"] / 1e12, 3)
    return found


def time_all(args: argparse.Namespace, data: Any, mean: float, save: Callable[[Any], None]) -> list[dict[str, Any]]:
    """The figures of every way. mean: tokens of a row. save: called with the figures so far, after every way."""
    import torch

    others: dict[str, Callable[[Any], dict[str, Any]]] = {
        "processes": in_processes, "checkout": of_checkout, "unsloth": partial(of_unsloth, tuned=False),
        "unsloth-tuned": partial(of_unsloth, tuned=True),
    }  # fmt: skip
    results: list[dict[str, Any]] = []
    loaded: list[Any] = []

    def model() -> Any:
        """The base model, loaded when it is first wanted: other processes want the card's memory too."""
        if not loaded:
            loaded.append(load_or_random(args.model))
        return loaded[0]

    for way in args.ways:
        if way.startswith("unsloth") and find_spec("unsloth") is None:
            say(f"{way}: left out, because Unsloth is not installed")
            continue
        students = args.students if way in ("students", "processes") else 1
        if way in others:
            loaded.clear()
            torch.cuda.empty_cache()
            found = others[way](args)
        else:
            found = time_here(args, way, model, data)
        found.setdefault("student_updates_per_second", round(students / found["seconds"], 3))
        rate = found["student_updates_per_second"] * args.effective_batch_size * mean
        first = results[0]["tokens_per_second"] if results else rate
        found |= {"way": way, "students": students, "tokens_per_second": round(rate), "times": round(rate / first, 3)}
        say(f"{way}: {found['student_updates_per_second']} student updates/s, {round(rate):,} tokens/s")
        results.append(found)
        save(results)
    return results


def main() -> int:
    args = parse_args()
    import torch

    from util.inference.load_model import load_tokenizer

    torch.manual_seed(0)
    limit_gpu_memory(args.gpu_memory_gib)
    size = args.effective_batch_size
    count = size * (WARM_UP + args.updates)
    rows = encode(number_rows(count), load_tokenizer(args.model), 256).rows
    mean = sum(len(row["input_ids"]) for row in rows) / len(rows)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    say(f"{device}: {size} rows of {mean:.1f} tokens an update")
    about = {**provenance(), "device": device, "torch": torch.__version__, "gpu_memory_gib": args.gpu_memory_gib,
             "rows_an_update": size, "tokens_a_row": mean}  # fmt: skip

    def save(results: list[dict[str, Any]]) -> None:
        if args.output:
            write_json(args.output, {**about, "results": results})

    results = time_all(args, (load_tokenizer(args.model), rows), mean, save)
    print(f"{args.model} on {device}, medians of {args.updates} updates of {size} rows, {mean:.1f} tokens a row")
    lines = [
        [f"{found['way']} ({found['students']})", *(short(found.get(name)) for name in COLUMNS)] for found in results
    ]
    print(table(["way (students)", *COLUMNS], lines))
    return 0


def short(value: Any) -> str:
    return "" if value is None else f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"


if __name__ == "__main__":
    run(main)
