"""Trains the students of one command: which of them together, each into its folder, and what their manifests say."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from train.data_parallel import Processes
from train.hub import nth_epoch, push_early
from train.losses_to_wandb import log_to_wandb
from train.padding_free import FAMILIES, has_fast_path
from train.rows_at_once import limit_gpu_memory, why_not_together
from train.run_folder import Run, begin_run, counts_of, repo_of, save_final, time_so_far
from train.training_loop import Recipe, Student, TrainingLoop
from train.trl_trainer import TrlTraining
from util.cli import UserError, memory_advice
from util.inference.check_adapter import let_others_read
from util.jsonl.manifest import now
from util.stop_signals import Stop
from util.terminal import Progress, announced, say


@dataclass(frozen=True)
class Training:
    """What the students of one command share (their updates are made by `training_loop.TrainingLoop`)."""

    args: argparse.Namespace
    model: Any
    """the frozen base model"""
    processes: Processes
    stop: Stop
    pushing: Executor
    """pushes checkpoints in the background, one at a time"""


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


def load_base(args: argparse.Namespace, processes: Processes) -> Any:
    """The frozen base model. UserError for a recipe that cannot train over one that is sharded."""
    import torch

    from util.inference.load_model import load_model

    half = use_bf16(args) and not args.full_finetuning  # AdamW's steps are too small for weights in bfloat16
    if processes.sharded:
        check_sharded(args)
    limit_gpu_memory(args.gpu_memory_gib)
    with memory_advice(memory_hint(args)), announced(f"loading {args.base_model}"):
        dtype = torch.bfloat16 if half else torch.float32
        return load_model(args.base_model, dtype, "cpu" if processes.sharded else None)


def choose_trainer(args: argparse.Namespace, model: Any, processes: Processes) -> str:
    """--trainer, or trl, with a line that says why, for what the suite's loop cannot train. UserError for what neither
    can."""
    if args.trainer == "loop":
        why = why_trl(args, model)
        if why is None:
            return "loop"
        say(f"trained by stock TRL: {why}")
    if processes.count > 1 and not processes.sharded:
        raise UserError(
            f"TRL trains in one process here; models of {', '.join(FAMILIES)} without --trainer trl share their updates"
            " between processes, and experiments/fsdp.yaml is for models larger than a card"
        )
    if args.soft_labels:
        raise UserError(
            f"--soft-labels need the suite's loop: models of {', '.join(FAMILIES)}, without --lora-dropout and"
            " --full-finetuning"
        )
    return "trl"


def check_sharded(args: argparse.Namespace) -> None:
    """UserError for what cannot train over a base model that is sharded over several processes."""
    students = len(args.seeds) * len(args.train_jsonl)
    if args.trainer != "trl" or args.full_finetuning or args.save_schedule or students > 1:
        raise UserError(
            "a base model that is sharded over processes (accelerate launch with FSDP) trains with --trainer trl, one"
            " file and one seed, without --full-finetuning and --save-schedule; a model that fits on one card needs no"
            " FSDP: start it with torchrun"
        )
    say("the base model is sharded over the processes; no checkpoints are saved: a run that is stopped starts again")


def why_trl(args: argparse.Namespace, model: Any) -> str | None:
    """Why the suite's own loop cannot train this; None if it can."""
    if not has_fast_path(model):
        return f"the suite's loop knows {', '.join(FAMILIES)}, not {model.config.model_type}"
    if args.full_finetuning:
        return "all weights are trained"
    return "the suite's loop has no dropout" if args.lora_dropout else None


def recipe_of(args: argparse.Namespace, run: Run) -> Recipe:
    """The recipe of the arguments, with the adapter that suits the base model of the run."""
    from peft import LoraConfig

    lora = LoraConfig(
        r=args.lora_rank, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout, use_rslora=args.rslora,
        target_modules=list(run.data.lora_targets), task_type="CAUSAL_LM", base_model_name_or_path=args.base_model,
    )  # fmt: skip
    # PEFT makes it a set, which is written in another order by each process: the same adapter would get another hash
    lora.target_modules = sorted(run.data.lora_targets)
    return Recipe(
        epochs=args.epochs, rows_an_update=args.effective_batch_size, learning_rate=args.learning_rate, lora=lora,
        schedule=args.lr_scheduler_type, warmup=args.warmup_steps, weight_decay=args.weight_decay,
        logging_steps=args.logging_steps, save_each_epoch=args.save_strategy == "epoch", save_at=args.save_schedule,
    )  # fmt: skip


def groups_of(training: Training, runs: Sequence[Run]) -> list[Sequence[Run]]:
    """Which runs train together: all of them, or where the updates of no two fit at once, each by itself."""
    if len(runs) == 1:
        return [runs]
    args, names = training.args, ", ".join(run.name for run in runs)
    rows = [row for run in runs for row in run.data.encoded.rows]
    rows_a_process = math.ceil(args.effective_batch_size / training.processes.count)
    exact = args.micro_batch == "exact"
    if args.trainer == "trl":
        why: str | None = "--trainer trl"
    else:
        why = why_not_together(training.model, rows, rows_a_process, len(runs), exact)
    if why:
        say(f"{len(runs)} students, one after the other ({why}): {names}")
        return [[run] for run in runs]
    say(f"{len(runs)} students, together over one base model (--micro-batch exact: one after the other): {names}")
    return [runs]


def train_together(training: Training, runs: Sequence[Run]) -> list[str]:
    """Train some students over one base model, each into its folder. Returns what went wrong with any of them."""
    args, first = training.args, training.processes.first
    for run in runs:
        begin_run(args, run, first)
    students = [
        Student(run.data.encoded.rows, run.seed, recipe_of(args, run), run.folder, run.name, run.checkpoint)
        for run in runs
    ]
    with announced("setting up the training"):
        trainer = trainer_of(training, runs, students)
    total, done = sum(student.updates for student in students), sum(run.done for run in runs)
    with Progress(total, done, unit="updates") as progress, memory_advice(memory_hint(args)):
        for index, (run, student) in enumerate(zip(runs, students)):
            wandb_run = log_to_wandb(args, run) if args.report_to == "wandb" and first else None
            if wandb_run:
                student.on_log = wandb_run.log
            student.on_save = partial(after_checkpoint, training, run, progress)
            student.on_finish = partial(save_finished, runs, index, student, trainer, progress, wandb_run)
        trainer.train(progress)
    problems = [(run, student.problem) for run, student in zip(runs, students) if student.problem]
    for run, problem in problems:
        if first:
            run.update_manifest(state="diverged", finished=now(), problem=problem)
    training.stop.raise_if_requested()
    alone = len(args.seeds) * len(args.train_jsonl) == 1
    return [problem if alone else f"{run.name}: {problem}" for run, problem in problems]


def trainer_of(training: Training, runs: Sequence[Run], students: Sequence[Student]) -> Any:
    """What trains the students: `TrainingLoop`, or `TrlTraining` for one."""
    args, model, stop, processes = training.args, training.model, training.stop, training.processes
    if args.trainer == "trl":
        return TrlTraining(args, model, runs[0], students[0], stop, processes)
    exact = args.micro_batch == "exact"
    return TrainingLoop(model, students, args.per_device_train_batch_size, exact, stop, processes)


def after_checkpoint(training: Training, run: Run, progress: Progress, checkpoint: Path, epoch: float) -> None:
    """Put the time so far into the manifest, and push the checkpoint if it is one of those that are pushed."""
    let_others_read(checkpoint)
    run.update_manifest(counts=time_so_far(run, progress))
    args = training.args
    if args.push_to_hub and (whole := nth_epoch(epoch, args.upload_checkpoints_every_n_epochs)):
        training.pushing.submit(push_early, checkpoint, whole, repo_of(args, run), not args.hub_public)


def save_finished(
    runs: Sequence[Run], index: int, student: Student, trainer: Any, progress: Progress, wandb_run: Any
) -> None:
    """Save the final adapter of a student that has made its last update, and complete its manifest."""
    run = runs[index]
    save_final(run, partial(trainer.save_adapter, index))
    counts = counts_of(run, student, progress)
    speed = {"trained_together": [str(one.folder) for one in runs], **trainer.speed_report(progress.seconds)}
    run.update_manifest(state="complete", finished=now(), counts=counts, speed=speed)
    if wandb_run:
        wandb_run.end({"train_loss": counts["train_loss"]})
