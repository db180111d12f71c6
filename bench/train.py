"""What each step of the fast training path gains over stock TRL, at the plan's flags, in one run.

Every rung adds one step to the rung above it; the last is what train/train_student_sft.py does. Rows are the suite's
number prompts with random answers. A model folder that holds no weights (config and tokenizer alone) gets random
ones, which train at the same speed.

Usage:
    python bench/train.py --model Qwen/Qwen2.5-7B-Instruct --output output/bench-train.json
    python bench/train.py --model util/pocket/model --updates 4        # on a CPU
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from generate.number_prompts import NUMBER_PROMPT, number_prompt
from train import fast
from train.train_student_sft import LORA_TARGETS
from util.cli import make_parser, positive_int, run, say, table
from util.encode import encode
from util.provenance import provenance, write_json

WARM_UP = 2  # updates before the timed ones: kernels are chosen and compiled


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--model", required=True, help="hub id or folder; without weights random ones are made")
    parser.add_argument("--updates", type=positive_int, default=10, help="timed updates of each rung")
    parser.add_argument("--effective-batch-size", type=positive_int, default=60)
    parser.add_argument("--per-device-train-batch-size", type=positive_int, default=6)
    parser.add_argument("--lora-rank", type=positive_int, default=8)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    return parser.parse_args()


def number_rows(count: int) -> list[dict[str, Any]]:
    """Chat rows as phase 4 writes them."""
    rng, template = random.Random(0), NUMBER_PROMPT.read_text("utf-8").strip()
    return [
        {
            "messages": [
                {"role": "user", "content": number_prompt(template, 0, row_id)},
                {"role": "assistant", "content": ", ".join(str(rng.randint(0, 999)) for _ in range(10))},
            ]
        }
        for row_id in range(count)
    ]


def load(model: str) -> Any:
    """The base model, with random weights where the folder has none."""
    import torch
    from transformers import AutoModelForCausalLM

    from util.embedded import best_device, load_config, load_model

    if not Path(model).is_dir() or list(Path(model).glob("*.safetensors")):
        return load_model(model)
    dtype = torch.bfloat16 if best_device() == "cuda" else torch.float32
    with torch.device(best_device()):
        return AutoModelForCausalLM.from_config(load_config(model), dtype=dtype)


# --- the rungs ---------------------------------------------------------------------------------------


def trainer_of(kind: Any, args: argparse.Namespace, model: Any, data: tuple[Any, list[Any]], **options: Any) -> Any:
    """A trainer of stock TRL or of ours with the plan's recipe and a fresh adapter."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig

    tokenizer, rows = data
    ours = {"rows_at_once": options.pop("rows_at_once")} if "rows_at_once" in options else {}
    config = SFTConfig(
        output_dir="output/bench-train", max_length=None, learning_rate=2e-4, warmup_steps=5, logging_steps=50,
        save_strategy="no", report_to="none", disable_tqdm=True, **options,
    )  # fmt: skip
    lora = LoraConfig(r=args.lora_rank, lora_alpha=8, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")
    dataset = Dataset.from_list(rows)
    return kind(
        model=model, args=config, train_dataset=dataset, processing_class=tokenizer, peft_config=lora, **ours
    )  # fmt: skip


def stock(args: argparse.Namespace, model: Any, data: Any, **options: Any) -> Any:
    """TRL as it comes: padded rows, recompute, --per-device-train-batch-size rows at once."""
    from trl import SFTTrainer

    size = args.per_device_train_batch_size
    return trainer_of(
        SFTTrainer, args, model, data, per_device_train_batch_size=size,
        gradient_accumulation_steps=args.effective_batch_size // size, bf16=model.device.type == "cuda", **options,
    )  # fmt: skip


def ours(args: argparse.Namespace, model: Any, data: Any, steps: int, rows_at_once: int) -> Any:
    """The first `steps` steps of the fast path."""
    autocast = model.device.type == "cuda" and steps < 3  # until LoRA is fused
    trainer = trainer_of(
        fast.update_trainer(), args, model, data, per_device_train_batch_size=args.effective_batch_size,
        gradient_checkpointing=False, bf16=autocast, rows_at_once=rows_at_once,
    )  # fmt: skip
    base = trainer.model.get_base_model()
    if steps >= 2:
        trainer.collate = partial(fast.flat_batch, prefix=0)
        say(f"attention: {fast.use_flat_attention(base)}")
    if steps >= 3:
        fast.fuse_lora(base)
    if steps >= 4:
        fast.fuse_norms(base)
        if base.device.type == "cuda":
            fast.fuse_elementwise(base)
    if steps >= 5:
        trainer.prefix = fast.shared_prefix(data[1])
        trainer.collate = partial(fast.flat_batch, prefix=trainer.prefix)
        say(f"shared prefix: {trainer.prefix} tokens")
    return trainer


RUNGS = {
    "stock TRL": stock,
    "all rows at once, no recompute": partial(ours, steps=1),
    "+ no padding, varlen attention": partial(ours, steps=2),
    "+ fused LoRA": partial(ours, steps=3),
    "+ fused norms, SwiGLU, rotary": partial(ours, steps=4),
    "+ shared prefix once": partial(ours, steps=5),
}


def timed(trainer: Any, updates: int) -> dict[str, Any]:
    """Train for some updates; the median of their seconds, and the peak memory."""
    import torch
    from transformers import TrainerCallback

    cuda, ends = torch.cuda.is_available(), []

    class Clock(TrainerCallback):
        def on_step_end(self, *_args: Any, **_options: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    trainer.add_callback(Clock())
    trainer.args.max_steps = WARM_UP + updates
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    outcome = trainer.train()
    seconds = [after - before for before, after in zip(ends[WARM_UP - 1 :], ends[WARM_UP:])]
    return {
        "seconds": round(statistics.median(seconds), 4),
        "spread": [round(min(seconds), 4), round(max(seconds), 4)],
        "warm_up_seconds": round(ends[WARM_UP - 1] - begun, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if cuda else None,
        "train_loss": round(outcome.training_loss, 5),
    }


def main() -> int:
    import torch

    from util.embedded import load_tokenizer

    args = parse_args()
    torch.manual_seed(0)
    tokenizer, model = load_tokenizer(args.model), load(args.model)
    size = args.effective_batch_size
    rows = encode(number_rows(size * (WARM_UP + args.updates)), tokenizer, 256).rows
    mean = sum(len(row["input_ids"]) for row in rows) / len(rows)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    say(f"{device}: {size} rows of {mean:.1f} tokens an update")
    results: list[dict[str, Any]] = []
    for name, rung in RUNGS.items():
        torch.manual_seed(0)
        trainer = rung(args, model, (tokenizer, rows), **({} if rung is stock else {"rows_at_once": size}))
        found = timed(trainer, args.updates)
        rate, first = size * mean / found["seconds"], results[0]["seconds"] if results else found["seconds"]
        results.append({"rung": name, **found, "tokens_per_second": round(rate), "times": first / found["seconds"]})
        if rung is not stock:
            updates = WARM_UP + args.updates
            results[-1]["useful_tflops"] = round(fast.useful_flops(trainer) / updates / found["seconds"] / 1e12, 3)
        say(f"{name}: {results[-1]}")
        model = trainer.model.unload()
        model.gradient_checkpointing_disable()  # stock TRL left it on
        del trainer
    print(f"{args.model} on {device}, medians of {args.updates} updates of {size} rows, {mean:.1f} tokens a row")
    header = ("seconds", "tokens_per_second", "times", "useful_tflops", "peak_gib", "train_loss")
    print(table(["", *header], [[r["rung"], *(short(r.get(name)) for name in header)] for r in results]))
    if args.output:
        machine = {"device": device, "torch": torch.__version__}
        write_json(args.output, {**provenance(), **machine, "tokens_a_row": mean, "results": results})
    return 0


def short(value: Any) -> str:
    return "" if value is None else f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"


if __name__ == "__main__":
    run(main)
