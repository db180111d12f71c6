"""Stock TRL behind the same flags (--trainer trl): the reference for the suite's own loop, and the path for models that
the loop does not know.

Rows are padded, --per-device-train-batch-size of them at a time. Checkpoints are those of transformers, a pickled
optimizer among them. In several processes accelerate shards the base model over them (FSDP2, experiments/fsdp.yaml);
then no checkpoints are saved.
"""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path
from typing import Any

from train.data_parallel import Processes
from train.fused_lora import share_weights
from train.run_folder import Run
from train.training_loop import Student
from util.cli import UserError
from util.stop_signals import Stop
from util.terminal import Progress


class TrlTraining:
    """One student, trained by SFTTrainer."""

    def __init__(
        self, args: argparse.Namespace, model: Any, run: Run, student: Student, stop: Stop, processes: Processes
    ):
        from datasets import Dataset
        from transformers import set_seed
        from transformers.trainer_callback import PrinterCallback
        from trl import SFTTrainer

        self.student = student
        self.done_before = student.done = run.done
        set_seed(student.seed)  # the adapter is initialised before the trainer seeds anything
        self.trainer: Any = SFTTrainer(
            model=copy.deepcopy(model) if args.full_finetuning else share_weights(model),
            args=trl_config(args, student, processes), processing_class=run.data.tokenizer,
            train_dataset=Dataset.from_list(list(student.rows)),
            peft_config=None if args.full_finetuning else student.recipe.lora,
        )  # fmt: skip
        self.trainer.remove_callback(PrinterCallback)
        self.stop, self.processes = stop, processes
        self.gathered: dict[str, Any] | None = None  # the adapter's weights, where every process has a piece of them

    def train(self, progress: Progress) -> None:
        """Train the student to its end, or until a signal arrives."""
        student = self.student
        self.trainer.add_callback(reporter(student, self.stop, progress, self.processes))
        checkpoint = str(student.checkpoint) if student.checkpoint else None
        outcome = self.trainer.train(resume_from_checkpoint=checkpoint)
        student.losses = [outcome.training_loss] if student.done > self.done_before else []
        if self.processes.sharded:
            # every process takes part in gathering, and only the first one saves
            trained = [(name, p) for name, p in self.trainer.model.named_parameters() if p.requires_grad]
            self.gathered = {name: p.full_tensor().cpu() for name, p in trained}
        if student.finished and not student.problem and self.trainer.is_world_process_zero():
            student.on_finish()

    def save_adapter(self, _index: int, folder: Path) -> None:
        self.trainer.model.save_pretrained(str(folder), state_dict=self.gathered)

    def speed_report(self, seconds: float) -> dict[str, Any]:
        made = self.student.done - self.done_before
        return {"layers": "TRL's own", "seconds_an_update": round(seconds / made, 4) if made else None}


def trl_config(args: argparse.Namespace, student: Student, processes: Processes) -> Any:
    """TRL's settings for one student."""
    import torch
    from trl import SFTConfig

    cuda = torch.cuda.is_available()
    recipe, at_once = student.recipe, args.per_device_train_batch_size * processes.count
    if args.effective_batch_size % at_once:
        raise UserError(
            f"--effective-batch-size {args.effective_batch_size} is not a multiple of {processes.count} processes times"
            f" --per-device-train-batch-size {args.per_device_train_batch_size}"
        )
    return SFTConfig(
        output_dir=str(student.folder),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=args.per_device_train_batch_size,
        gradient_accumulation_steps=args.effective_batch_size // at_once,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule,
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        bf16=args.bf16 and cuda,
        gradient_checkpointing=False,  # TRL's default recomputes: a third more work, for memory LoRA does not need
        max_length=None,  # encode() has cut and counted
        logging_steps=recipe.logging_steps,
        logging_nan_inf_filter=False,  # it would show the last good loss instead
        save_strategy="epoch" if recipe.save_each_epoch and not processes.sharded else "no",
        report_to="none",  # W&B's own callback allows one run per process (train/losses_to_wandb.py)
        seed=student.seed,
        data_seed=student.seed,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        disable_tqdm=True,
    )


def reporter(student: Student, stop: Stop, progress: Progress, processes: Processes) -> Any:
    """A callback that counts updates, passes on logs and checkpoints, and stops when a signal arrived."""
    from transformers import TrainerCallback

    class Report(TrainerCallback):
        last_saved = -1

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress.add()
            student.done = state.global_step
            stops = processes.any(stop.signum is not None)
            control.should_training_stop |= stops
            control.should_save |= (stops or state.global_step in student.recipe.save_at) and not processes.sharded

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.last_saved = state.global_step
            if state.is_world_process_zero:
                student.on_save(Path(args.output_dir) / f"checkpoint-{state.global_step}", state.epoch)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.last_saved == state.global_step:  # while it is written again there is no whole checkpoint
                control.should_save = False

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if not logs or "loss" not in logs:
                return
            progress.note = f"loss {logs['loss']:.4f}"
            student.on_log({**logs, "step": state.global_step})
            if not math.isfinite(logs["loss"]):
                student.note_divergence("loss", logs["loss"])
                control.should_training_stop = True

    return Report()
