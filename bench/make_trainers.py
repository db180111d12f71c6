"""Makes the trainers that the training benchmarks compare: stock TRL's and the suite's, both with the plan's recipe."""

from __future__ import annotations

from typing import Any

from train.fused_lora import LORA_TARGETS
from train.multi_adapter_trainer import share_weights, update_trainer_class


def make_trainer(
    trainer_class: Any, model: Any, data: tuple[Any, list[Any]], updates: int, lora_rank: int, **options: Any
) -> Any:
    """A trainer with a fresh LoRA adapter on the model, for so many updates.

    data: tokenizer and encoded rows. options: further settings of TRL's SFTConfig.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTConfig

    tokenizer, rows = data
    config = SFTConfig(
        output_dir="output/bench-train", max_length=None, learning_rate=2e-4, warmup_steps=5, logging_steps=50,
        max_steps=updates, save_strategy="no", report_to="none", disable_tqdm=True, logging_nan_inf_filter=False,
        **options,
    )  # fmt: skip
    lora = LoraConfig(r=lora_rank, lora_alpha=8, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")
    trainer = trainer_class(
        model=share_weights(model), args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        peft_config=lora,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def make_stock_trainer(
    model: Any, data: Any, updates: int, lora_rank: int, effective: int, at_once: int, **options: Any
) -> Any:
    """TRL as it comes: padded rows, gradient checkpointing, `at_once` of an update's `effective` rows at a time."""
    from trl import SFTTrainer

    return make_trainer(
        SFTTrainer, model, data, updates, lora_rank, per_device_train_batch_size=at_once,
        gradient_accumulation_steps=effective // at_once, **options,
    )  # fmt: skip


def make_suite_trainer(model: Any, data: Any, updates: int, lora_rank: int, effective: int, **options: Any) -> Any:
    """A trainer as train/train_student_sft.py makes it; an `AdapterGroup` makes its updates."""
    return make_trainer(
        update_trainer_class(), model, data, updates, lora_rank, per_device_train_batch_size=effective,
        gradient_checkpointing=False, accelerator_config={"non_blocking": model.device.type == "cuda"}, **options,
    )  # fmt: skip
