"""How fast a training is: what each step of the suite's fast path gains over stock TRL, at the plan's flags.

All rungs run one after the other in one process. Each rung adds one step to the rung before. Rung 5 is what
train/train_student_sft.py does; rung 6 (with --adapters N) is the same for N seeds together. Rows are the suite's
number prompts with random answers. A model folder without weights (config and tokenizer alone) gets random ones, which
train at the same speed.

Usage:
    python bench/train.py --model Qwen/Qwen2.5-7B-Instruct --adapters 5 --output output/bench-train.json
    python bench/train.py --model pocket/model --updates 4 --adapters 3 --rungs 5 6       # on a CPU
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from bench.make_trainers import make_stock_trainer, make_suite_trainer
from bench.random_weights import load_or_random
from bench.shared import number_rows
from train import fused_lora, padding_free
from train.multi_adapter_trainer import AdapterGroup, useful_flops
from util.chat.chat_tokens import encode
from util.cli import make_parser, output_name, positive_int, run
from util.jsonl.manifest import provenance, write_json
from util.terminal import say, table

WARM_UP = 2  # updates before the timed ones: kernels are chosen and compiled
COLUMNS = ("rows_at_once", "seconds", "tokens_per_second", "times", "useful_tflops", "peak_gib", "train_loss")


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--model", required=True, help="hub id or folder; without weights random ones are made")
    parser.add_argument("--updates", type=positive_int, default=10, help="timed updates of each rung")
    parser.add_argument("--effective-batch-size", type=positive_int, default=60, help="rows in one update")
    parser.add_argument("--per-device-train-batch-size", type=positive_int, default=6,
                        help="rows that stock TRL takes at once")  # fmt: skip
    parser.add_argument("--lora-rank", type=positive_int, default=8, help="rank of the adapters")
    parser.add_argument("--adapters", type=positive_int, default=1, help="adapters of rung 6, which trains several")
    parser.add_argument("--rungs", type=int, nargs="+", choices=range(len(RUNGS)), metavar="N",
                        help="only these, counted from 0 (default: all)")  # fmt: skip
    parser.add_argument("--output", type=output_name(".json"), help="JSON file for the figures")
    args = parser.parse_args()
    if args.effective_batch_size % args.per_device_train_batch_size:
        parser.error("--effective-batch-size is not a multiple of --per-device-train-batch-size")
    return args


# --- the rungs ---------------------------------------------------------------------------------------


def recipe(args: argparse.Namespace) -> dict[str, int]:
    return {"updates": WARM_UP + args.updates, "lora_rank": args.lora_rank, "effective": args.effective_batch_size}


def stock(args: argparse.Namespace, model: Any, data: Any) -> Any:
    """TRL as it comes, with autocast to bfloat16 on a GPU."""
    at_once = args.per_device_train_batch_size
    return make_stock_trainer(model, data, at_once=at_once, bf16=model.device.type == "cuda", **recipe(args))


class FirstSteps(AdapterGroup):
    """One adapter with the first `steps` steps of the fast path."""

    def __init__(self, trainer: Any, rows: list[Any], rows_at_once: int, steps: int):
        self.steps = steps
        super().__init__([trainer], rows, rows_at_once, exact=True)

    def choose_path(self, rows: Sequence[Any], asked: int, exact: bool) -> dict[str, Any]:
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        padded = DataCollatorForLanguageModeling(self.trainers[0].processing_class.pad_token_id)
        self.rows_at_once, self.collate = asked, lambda rows, adapters: padded(rows)
        if self.steps < 5:
            self.prefix = 0
        if self.steps >= 2:
            padding_free.score_loss_tokens_only()
            self.collate = self.flat
            say(f"attention: {padding_free.use_flat_attention(self.base)}")
        if self.steps >= 3:
            compiled = self.steps >= 4 and self.base.device.type == "cuda"
            fused_lora.fuse_linears([self.trainers[0].model], self.pass_state, compile_elementwise=compiled)
        if self.steps >= 4:
            fused_lora.fuse_norms(self.base)
        return {}


def first_steps(args: argparse.Namespace, model: Any, data: Any, steps: int) -> AdapterGroup:
    """One adapter with the first `steps` steps of the fast path, the whole update at once."""
    autocast = model.device.type == "cuda" and steps < 3  # the fused LoRA linears need none
    trainer = make_suite_trainer(model, data, bf16=autocast, **recipe(args))
    return FirstSteps(trainer, data[1], args.effective_batch_size, steps)


def together(args: argparse.Namespace, model: Any, data: Any) -> AdapterGroup:
    """Several adapters, as train/train_student_sft.py trains them."""
    seeds = range(args.adapters)
    trainers = [make_suite_trainer(model, data, seed=s, data_seed=s, bf16=False, **recipe(args)) for s in seeds]
    return AdapterGroup(trainers, data[1], args.per_device_train_batch_size, exact=False)


RUNGS: dict[str, Callable[..., Any]] = {
    "stock TRL": stock,
    "all rows at once, no gradient checkpointing": partial(first_steps, steps=1),
    "+ no padding, varlen attention": partial(first_steps, steps=2),
    "+ fused LoRA linears": partial(first_steps, steps=3),
    "+ fused norms, compiled SwiGLU and rotary": partial(first_steps, steps=4),
    "+ shared prefix once": partial(first_steps, steps=5),
    "+ {} adapters together": together,
}


# --- timing ------------------------------------------------------------------------------------------


def mark(cuda: bool) -> Any:
    """This moment. On a GPU it is an event: the moment when the GPU has done all work so far, without waiting."""
    import torch

    if not cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(before: Any, after: Any) -> float:
    """Seconds from one mark to another."""
    return after - before if isinstance(after, float) else before.elapsed_time(after) / 1000


def timed(trained: Any) -> dict[str, Any]:
    """Train a stock trainer or an adapter group; returns the median seconds of an update, and the peak memory."""
    import torch
    from transformers import TrainerCallback

    cuda, ends = torch.cuda.is_available(), []

    class Clock(TrainerCallback):
        def on_step_end(self, *_args: Any, **_options: Any) -> None:
            ends.append(mark(cuda))

    adapter_group = isinstance(trained, AdapterGroup)
    (trained.trainers[0] if adapter_group else trained).add_callback(Clock())
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    begun = mark(cuda)
    outcome = trained.train([None] * len(trained.trainers))[0] if adapter_group else trained.train()
    if cuda:
        torch.cuda.synchronize()
    seconds = [between(before, after) for before, after in zip(ends[WARM_UP - 1 :], ends[WARM_UP:])]
    return {
        "seconds": round(statistics.median(seconds), 4),
        "spread": [round(min(seconds), 4), round(max(seconds), 4)],
        "warm_up_seconds": round(between(begun, ends[WARM_UP - 1]), 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if cuda else None,
        "train_loss": round(outcome.training_loss, 5),
    }


def run_rungs(args: argparse.Namespace, model: Any, data: tuple[Any, list[Any]], mean: float) -> list[dict[str, Any]]:
    """The figures of every rung. mean: tokens of a row."""
    import torch

    size, updates = args.effective_batch_size, WARM_UP + args.updates
    results: list[dict[str, Any]] = []
    for number, (name, rung) in enumerate(RUNGS.items()):
        adapters = args.adapters if rung is together else 1
        if (args.rungs and number not in args.rungs) or (rung is together and adapters == 1):
            continue
        torch.manual_seed(0)
        trained = rung(args, model, data)
        found = timed(trained)
        rate = adapters * size * mean / found["seconds"]
        first = results[0]["tokens_per_second"] if results else rate
        found |= {"rung": name.format(adapters), "tokens_per_second": round(rate), "times": rate / first}
        if rung is not stock:
            found["rows_at_once"] = trained.rows_at_once
            found["useful_tflops"] = round(useful_flops(trained) / updates / found["seconds"] / 1e12, 3)
        if rung is together and number - 1 in (args.rungs or [number - 1]):
            found["times_in_a_row"] = round(adapters * results[-1]["seconds"] / found["seconds"], 3)
            say(f"{adapters} adapters together are {found['times_in_a_row']} times as fast as one after the other")
        say(f"{found['rung']}: {found['seconds']} s an update, {round(rate):,} tokens/s")
        results.append(found)
        del trained
    return results


def main() -> int:
    args = parse_args()
    import torch

    from util.inference.load_model import load_tokenizer

    torch.manual_seed(0)
    tokenizer, model = load_tokenizer(args.model), load_or_random(args.model)
    size = args.effective_batch_size
    rows = encode(number_rows(size * (WARM_UP + args.updates)), tokenizer, 256).rows
    mean = sum(len(row["input_ids"]) for row in rows) / len(rows)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    say(f"{device}: {size} rows of {mean:.1f} tokens an update")
    results = run_rungs(args, model, (tokenizer, rows), mean)
    print(f"{args.model} on {device}, medians of {args.updates} updates of {size} rows, {mean:.1f} tokens a row")
    print(table(["", *COLUMNS], [[found["rung"], *(short(found.get(name)) for name in COLUMNS)] for found in results]))
    if args.output:
        machine = {"device": device, "torch": torch.__version__}
        write_json(args.output, {**provenance(), **machine, "tokens_a_row": mean, "results": results})
    return 0


def short(value: Any) -> str:
    return "" if value is None else f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"


if __name__ == "__main__":
    run(main)
