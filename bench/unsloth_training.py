"""Times the updates of Unsloth's trainer on rows of bench/training_speed.py, which starts this script (--ways unsloth).

It needs a GPU and the package unsloth, in a Python of its own if need be. Model folders without weights get random
ones in output/bench-train, because Unsloth reads its weights from files.

Usage:
    python bench/unsloth_training.py --model shapes/qwen7b --output output/unsloth.json
    python bench/unsloth_training.py --model shapes/qwen7b --tuned --output output/unsloth-tuned.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from bench.compared_trainers import FOLDER, RATE, WARM_UP_STEPS
from bench.random_number_rows import number_rows
from bench.random_weights import has_weights, make_model
from bench.update_times import WARM_UP, timed
from util.chat.chat_tokens import encode
from util.cli import make_parser, nonblank, output_name, positive_int, run
from util.jsonl.manifest import write_json

LONGEST = 256  # tokens of a row


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--model", type=nonblank, required=True, help="folder; without weights random ones are made")
    parser.add_argument("--updates", type=positive_int, default=10, help="timed updates")
    parser.add_argument("--effective-batch-size", type=positive_int, default=60, help="rows in one update")
    parser.add_argument("--per-device-train-batch-size", type=positive_int, default=6, help="rows at once")
    parser.add_argument("--lora-rank", type=positive_int, default=8, help="rank of the adapter")
    parser.add_argument("--lora-alpha", type=positive_int, default=8, help="scale of the adapter: alpha / rank")
    parser.add_argument("--tuned", action="store_true", help="all rows of an update at once, no checkpointing")
    parser.add_argument("--output", type=output_name(".json"), required=True, help="JSON file for the figures")
    return parser.parse_args()


def make_trainer(args: argparse.Namespace) -> Any:
    """Unsloth's trainer, as its documentation makes one for LoRA."""
    from unsloth import FastLanguageModel  # isort: skip  # it changes TRL and transformers, so it comes first
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from train.fused_lora import LORA_TARGETS

    folder = args.model if has_weights(args.model) else make_model(Path(args.model), FOLDER / Path(args.model).name)
    model, tokenizer = FastLanguageModel.from_pretrained(str(folder), LONGEST, load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(
        model, r=args.lora_rank, target_modules=LORA_TARGETS, lora_alpha=args.lora_alpha, lora_dropout=0, bias="none",
        use_gradient_checkpointing=False if args.tuned else "unsloth", random_state=0,
    )  # fmt: skip
    updates, at_once = WARM_UP + args.updates, args.per_device_train_batch_size
    at_once = args.effective_batch_size if args.tuned else at_once
    rows = encode(number_rows(updates * args.effective_batch_size), tokenizer, LONGEST).rows
    plain: dict[str, Any] = {"gradient_checkpointing": False, "padding_free": False} if args.tuned else {}
    config = SFTConfig(
        output_dir=str(FOLDER), max_length=LONGEST, learning_rate=RATE, lr_scheduler_type="linear",
        warmup_steps=WARM_UP_STEPS, max_steps=updates, bf16=True, optim="adamw_torch", weight_decay=0.0,
        logging_steps=50, save_strategy="no", report_to="none", disable_tqdm=True, dataset_num_proc=1, seed=0,
        per_device_train_batch_size=at_once, gradient_accumulation_steps=args.effective_batch_size // at_once,
        **plain,
    )  # fmt: skip
    return SFTTrainer(model=model, processing_class=tokenizer, train_dataset=Dataset.from_list(rows), args=config)


def main() -> int:
    args = parse_args()
    write_json(args.output, timed(make_trainer(args)))
    return 0


if __name__ == "__main__":
    run(main)
