"""Makes the TRL trainer of one seed: the base model, a fresh LoRA adapter, the optimizer's settings and callbacks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.multi_adapter_trainer import share_weights, update_trainer_class
from train.padding_free import has_fast_path
from train.run_folder import Run, keep_time
from train.training_rows import TrainingData
from util.cli import UserError, memory_advice
from util.terminal import Progress, announced, say


def use_bf16(args: argparse.Namespace) -> bool:
    """Whether to compute in bfloat16. A CPU never does, and a line says so. UserError on a GPU that cannot."""
    import torch

    if not args.bf16:
        return False
    if not torch.cuda.is_available():
        say("no GPU: --bf16 is ignored, training in float32 on the CPU")
        return False
    if not torch.cuda.is_bf16_supported():
        raise UserError(f"{torch.cuda.get_device_name()} has no bfloat16; leave out --bf16")
    return True


def memory_hint(args: argparse.Namespace) -> str:
    """What to lower when memory runs out."""
    return (
        f"lower --per-device-train-batch-size (now {args.per_device_train_batch_size}; an update keeps its"
        f" {args.effective_batch_size} rows) or --max-seq-length (now {args.max_seq_length})"
    )


def load_base(args: argparse.Namespace, bf16: bool) -> Any:
    """The frozen base model."""
    import torch

    from util.inference.load_model import load_model

    with memory_advice(memory_hint(args)), announced(f"loading {args.base_model}"):
        return load_model(args.base_model, torch.bfloat16 if bf16 else torch.float32)


def make_trainer(
    args: argparse.Namespace, model: Any, data: TrainingData, folder: Path, seed: int, bf16: bool, saves: bool = True
) -> Any:
    """A trainer with a fresh LoRA adapter on the base model. Its batch is a whole update
    (train/multi_adapter_trainer.py).

    folder: where checkpoints go. saves: False in all but the first of several processes.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import set_seed
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    lora = LoraConfig(
        r=args.lora_rank, lora_alpha=args.lora_alpha, lora_dropout=0.0, target_modules=list(data.lora_targets),
        task_type="CAUSAL_LM",
    )  # fmt: skip
    config = trainer_config(args, model, folder, seed, bf16, saves)
    set_seed(seed)  # the adapter is initialised before the trainer seeds anything
    trainer = update_trainer_class()(
        model=share_weights(model), args=config, train_dataset=Dataset.from_list(data.encoded.rows),
        processing_class=data.tokenizer, peft_config=lora,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def trainer_config(args: argparse.Namespace, model: Any, folder: Path, seed: int, bf16: bool, saves: bool) -> Any:
    """TRL's settings for one seed."""
    import torch
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.effective_batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=args.warmup_steps,
        bf16=bf16 and not has_fast_path(model),  # autocast; the fast path casts what it must itself
        gradient_checkpointing=False,  # TRL's default recomputes: a third more work, for memory LoRA does not need
        max_length=None,  # encode() has cut and counted
        logging_steps=args.logging_steps,
        logging_nan_inf_filter=False,  # it would show the last good loss instead
        save_strategy=args.save_strategy if saves else "no",
        report_to="none",  # W&B's own callback allows one run per process (train/log_losses.py)
        seed=seed,
        data_seed=seed,
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"non_blocking": torch.cuda.is_available()},  # kernel launches run ahead of the GPU
        disable_tqdm=True,
    )


def add_progress(trainer: Any, run: Run, progress: Progress, label: str, save_at: Sequence[int]) -> None:
    """Count updates in `progress`, save after the updates of `save_at`, and save and end when a stop was requested.

    label: shown after the loss, such as " (seed 42)".
    """
    from transformers import TrainerCallback

    class ShowAndSave(TrainerCallback):
        last_saved = -1

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress.add()
            if trainer.adapter_group.stopping or state.global_step in save_at:
                control.should_save = trainer.adapter_group.processes.first
            if trainer.adapter_group.stopping:
                control.should_training_stop = True

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.last_saved = state.global_step
            keep_time(run, progress)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.last_saved == state.global_step:  # while it is written again there is no whole checkpoint
                control.should_save = False

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                progress.note = f"loss {logs['loss']:.4f}{label}"

    trainer.add_callback(ShowAndSave())
