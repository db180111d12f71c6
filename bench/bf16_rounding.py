"""How far bfloat16 training is from float32: stock TRL and the suite's fast path, measured in the same way.

bfloat16 rounds differently at every order of the same arithmetic, so two bfloat16 paths never agree to the last digit.
What can be compared is each path's distance from float32. For each seed (adapter and data order) the same updates are
made three times from the same weights (the model's, rounded to bfloat16): by stock TRL in float32, which is the
reference, by stock TRL with bfloat16 autocast, and by the fast path.

  loss      mean distance of an update's loss from the reference
  gradient  distance of the first update's gradient from the reference, relative to the reference's norm
  adapter   distance of the final adapter from the reference, relative to how far the reference moved in training

Usage:
    python bench/bf16_rounding.py --model pocket/model
    python bench/bf16_rounding.py --model Qwen/Qwen2.5-0.5B-Instruct --output output/bench-rounding.json
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from bench.compared_trainers import lora_config, make_loop, make_stock_trainer
from bench.random_number_rows import number_rows
from bench.random_weights import load_or_random
from util.chat.chat_tokens import encode
from util.cli import make_parser, nonblank, output_name, positive_int, run
from util.jsonl.manifest import provenance, write_json
from util.terminal import Progress, say, table

MEASURES = ("loss", "gradient", "adapter")


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--model", type=nonblank, required=True, help="hub id or folder; without weights random ones are made"
    )
    parser.add_argument("--seed-count", type=positive_int, default=3, help="how many adapters and data orders to try")
    parser.renamed("--seeds", "--seed-count")
    parser.add_argument("--updates", type=positive_int, default=10, help="updates of each run")
    parser.add_argument("--effective-batch-size", type=positive_int, default=12, help="rows in one update")
    parser.add_argument("--lora-rank", type=positive_int, default=8, help="rank of the adapters")
    parser.add_argument("--output", type=output_name(".json"), help="JSON file for the figures")
    args = parser.parse_args()
    if args.updates == 1:
        parser.error(
            "--updates 1: the learning rate of the first update is 0, so the adapter does not move; use 2 or more"
        )
    return args


def train_stock(args: argparse.Namespace, model: Any, data: tuple[Any, list[Any]], seed: int) -> dict[str, Any]:
    """Losses, first gradient, and the adapter before and after training by stock TRL. A bfloat16 model trains with
    autocast."""
    import torch
    from transformers import TrainerCallback

    torch.manual_seed(seed)
    size = args.effective_batch_size
    trainer = make_stock_trainer(
        model, data, args.updates, lora_config(args.lora_rank), size, size, seed=seed, data_seed=seed,
        bf16=model.dtype == torch.bfloat16, gradient_checkpointing=False, use_cpu=model.device.type == "cpu",
    )  # fmt: skip
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    gradient: list[Any] = []

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, *_args: Any, **_options: Any) -> None:
            if not gradient:
                gradient.append(flat([p.grad for p in trained]))

    trainer.add_callback(Keep())
    trainer.args.logging_steps = 1
    begin = flat(trained)
    trainer.train()
    losses = [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]
    return {"losses": losses, "gradient": gradient[0], "begin": begin, "end": flat(trained)}


def train_fast(args: argparse.Namespace, model: Any, data: tuple[Any, list[Any]], seed: int) -> dict[str, Any]:
    """The same by the suite's loop."""
    size = args.effective_batch_size
    loop = make_loop(model, data[1], size, 1, args.updates, lora_config(args.lora_rank), size, seed, exact=True)
    named = loop.adapters.named_views
    begin, gradient = flat(list(named(loop.adapters.values.data[0]).values())), []  # type: Any, list[Any]
    change = loop.change_adapters

    def keep(training: list[int]) -> Any:
        norms = change(training)  # which clips the gradient
        if not gradient:
            gradient.append(flat(list(named(loop.adapters.values.grad[0]).values())))
        return norms

    loop.change_adapters = keep
    loop.train(Progress(args.updates))
    end = flat(list(named(loop.adapters.values.data[0]).values()))
    return {"losses": loop.students[0].losses, "gradient": gradient[0], "begin": begin, "end": end}


def flat(tensors: list[Any]) -> Any:
    import torch

    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def distances(found: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    """The three measures of the docstring."""
    gradient, end = reference["gradient"], reference["end"]
    return {
        "loss": statistics.mean(abs(a - b) for a, b in zip(found["losses"], reference["losses"])),
        "gradient": float((found["gradient"] - gradient).norm() / gradient.norm()),
        "adapter": float((found["end"] - end).norm() / (end - reference["begin"]).norm()),
    }


def main() -> int:
    args = parse_args()
    import torch

    from util.inference.load_model import load_tokenizer

    torch.manual_seed(0)
    tokenizer, model = load_tokenizer(args.model), load_or_random(args.model).to(torch.bfloat16)
    exact_model = copy.deepcopy(model).float()
    count = args.effective_batch_size * args.updates
    data = tokenizer, encode(number_rows(count), tokenizer, 256).rows
    errors: dict[str, list[dict[str, float]]] = {"stock TRL, bfloat16 autocast": [], "fast path, bfloat16": []}
    references = [train_stock(args, exact_model, data, seed) for seed in range(args.seed_count)]
    for name, train in zip(errors, (train_stock, train_fast)):
        for seed, reference in enumerate(references):
            errors[name].append(distances(train(args, model, data, seed), reference))
            say(f"seed {seed}, {name}: {errors[name][-1]}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    print(f"{args.model} on {device}: distance from float32, mean (min to max) of {args.seed_count} seeds")
    rows = [[name, *(spread([e[measure] for e in found]) for measure in MEASURES)] for name, found in errors.items()]
    print(table(["", *MEASURES], rows))
    if args.output:
        write_json(args.output, {**provenance(), "device": device, "torch": torch.__version__, "errors": errors})
    return 0


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2g} ({min(values):.2g} to {max(values):.2g})"


if __name__ == "__main__":
    run(main)
