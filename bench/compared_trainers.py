"""Makes what the training benchmarks compare: stock TRL's trainer and the suite's loop, both with the plan's recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.fused_lora import LORA_TARGETS, share_weights
from train.training_loop import Recipe, Student, TrainingLoop

RATE, WARM_UP_STEPS = 2e-4, 5
FOLDER = Path("output/bench-train")  # nothing is written there


def lora_config(rank: int = 8, alpha: int = 8) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")


def make_stock_trainer(
    model: Any, data: tuple[Any, Sequence[Any]], updates: int, lora: Any, effective: int, at_once: int,
    **options: Any,
) -> Any:  # fmt: skip
    """TRL as it comes: padded rows, gradient checkpointing, `at_once` of an update's `effective` rows at a time.

    data: tokenizer and encoded rows. options: further settings of TRL's SFTConfig.
    """
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    tokenizer, rows = data
    config = SFTConfig(
        output_dir=str(FOLDER), max_length=None, learning_rate=RATE, lr_scheduler_type="linear",
        warmup_steps=WARM_UP_STEPS, logging_steps=50, max_steps=updates, save_strategy="no", report_to="none",
        disable_tqdm=True, logging_nan_inf_filter=False, per_device_train_batch_size=at_once,
        gradient_accumulation_steps=effective // at_once, **options,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=share_weights(model), args=config, train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer, peft_config=lora,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def make_loop(
    model: Any, rows: Sequence[Any], at_once: int, students: int, updates: int, lora: Any, effective: int,
    seed: int = 0, exact: bool = False, logging_steps: int = 50,
) -> Any:  # fmt: skip
    """The suite's loop with so many students, each with the rows in another order, for one epoch of `updates`."""
    recipe = Recipe(1, effective, RATE, lora, warmup=WARM_UP_STEPS, logging_steps=logging_steps)
    rows = rows[: updates * effective]
    made = [Student([*rows[i:], *rows[:i]], seed + i, recipe, FOLDER, f"student {i}") for i in range(students)]
    return TrainingLoop(model, made, at_once, exact)
