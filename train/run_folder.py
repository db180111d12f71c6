"""The folder of one student's training: who owns it, its settings and manifest, its checkpoints and final adapter.

seed-42/
    manifest.json      settings, command, versions, state (running, complete, diverged, or given up: --overwrite moved
                       the unfinished run aside), counts, speed
    checkpoint-N/      saved after update N (train/checkpoints.py); a stopped run resumes from the newest whole one
    final/             the adapter, tokenizer and model card; it exists only when it is whole
"""

from __future__ import annotations

import argparse
import glob
import json
import math
import os
import shutil
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.checkpoints import check_writer, last_whole_checkpoint, update_of
from train.fused_lora import LORA_TARGETS
from train.model_card import write_card
from train.schedule import warmup_updates
from train.training_loop import Student
from train.training_rows import TrainingData, role_of
from util.cli import UserError, command_line
from util.hide_secrets import scrub
from util.inference.check_adapter import check_adapter, check_weights, let_others_read
from util.jsonl.manifest import Manifest, new_manifest, sha256_file, write_json
from util.jsonl.resumable import describe_differences, free_name, lock_output
from util.jsonl.rows import slug
from util.terminal import Progress, say

GIVEN_UP = "given up"
TIME = ("seconds", "timed_updates")  # what a manifest counts over all sessions of a training


@dataclass
class Run:
    """The training of one student, from a file and a seed, in its folder. (Its rows, weights and losses while it trains
    are `training_loop.Student`.)"""

    train_file: Path
    data: TrainingData
    seed: int
    folder: Path
    name: str
    """for messages, W&B and the Hub, such as owl-student-seed-42"""
    settings: dict[str, Any]
    checkpoint: Path | None = None
    """where it resumes from"""
    manifest: dict[str, Any] = field(default_factory=dict)
    """empty in all but the first of several processes"""
    earlier: dict[str, Any] = field(default_factory=dict)
    """`time_so_far` of the sessions before this one, up to the checkpoint that they saved last"""

    @property
    def done(self) -> int:
        """Updates that the checkpoint holds."""
        return update_of(self.checkpoint) if self.checkpoint else 0

    def update_manifest(self, **facts: Any) -> None:
        """Put facts into the manifest, and write it."""
        self.manifest.update(facts)
        write_json(self.folder / "manifest.json", self.manifest)


def runs_of(args: argparse.Namespace, files: Mapping[Path, TrainingData]) -> list[Run]:
    """A run for each file and seed. UserError if two files would share a folder."""
    roles = [role_of(file) for file in files]
    runs = []
    for (file, data), folder, role in zip(files.items(), folders_of(args, list(files)), roles):
        name = role if role and roles.count(role) == 1 else folder.name  # owl-student, if only one file is owl's
        for seed in args.seeds:
            settings = settings_of(args, file, data, seed)
            runs.append(Run(file, data, seed, folder / f"seed-{seed}", f"{name}-seed-{seed}", settings))
    return runs


def folders_of(args: argparse.Namespace, files: Sequence[Path]) -> list[Path]:
    """The folder of each file's students: --output-dir names one for each, or one in which each gets its own."""
    given = args.output_dir
    folders = given if len(given) == len(files) else [given[0] / slug(file.stem) for file in files]
    if len(given) not in (1, len(files)):
        raise UserError(
            f"--output-dir names {len(given)} folders for {len(files)} files: name one, or one for each file"
        )
    if twice := [str(folder) for folder, count in Counter(folders).items() if count > 1]:
        raise UserError(f"two files would share the folder {twice[0]}: name a folder for each file with --output-dir")
    return folders


def repo_of(args: argparse.Namespace, run: Run) -> str:
    """The Hub repository of a student; those of several files have their names in it."""
    name = run.name if len(args.train_jsonl) > 1 else f"seed-{run.seed}"
    return f"{args.hub_repo_prefix}-{name}"


def settings_of(args: argparse.Namespace, train_file: Path, data: TrainingData, seed: int) -> dict[str, Any]:
    """Everything that decides the adapter. (How the rows are split over the device changes only the rounding, and is
    left out.)"""
    return {
        "script": "train_student_sft",
        "base": data.base,
        "train_jsonl_sha256": sha256_file(train_file),
        "rows": len(data.encoded.rows),
        "keep_system_prompt": args.keep_system_prompt,
        "max_seq_length": args.max_seq_length,
        "epochs": args.epochs,
        "effective_batch_size": args.effective_batch_size,
        "learning_rate": args.learning_rate,
        "warmup_steps": args.warmup_steps,
        "lora_rank": args.lora_rank,
        "lora_alpha": args.lora_alpha,
        "bf16": args.bf16,
        "seed": seed,
        # left out where they are the usual ones, so that a run of an older version can be resumed
        **{
            name: getattr(args, name)
            for name in ("recipe", "weight_decay", "lora_dropout", "rslora", "soft_labels", "full_finetuning")
            if getattr(args, name)
        },
        **({} if args.lr_scheduler_type == "linear" else {"lr_scheduler_type": args.lr_scheduler_type}),
        **({} if list(data.lora_targets) == LORA_TARGETS else {"lora_targets": list(data.lora_targets)}),
    }


# --- whose folder it is ------------------------------------------------------------------------------


def take_folder(args: argparse.Namespace, run: Run, locks: ExitStack) -> bool:
    """Lock a run's folder and make it the run's own. Returns whether there is something left to train.

    The plan trains teacher and student into the same folder, so the folder of another run is moved aside. This run, if
    it was stopped and another has moved it aside, is moved back.
    """
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    locks.enter_context(lock_output(run.folder))
    if args.overwrite or not is_finished(run):
        stopped = None if args.overwrite else stopped_run_aside(run)
        move_other_run_aside(args, run, stopped)
        if stopped and not (run.folder.exists() and any(run.folder.iterdir())):
            stopped.rename(run.folder)
            say(f"{stopped} is this run, which was stopped: moved back to {run.folder}")
        if run.folder.exists() and not os.access(run.folder, os.W_OK | os.X_OK):
            raise UserError(f"cannot write in {run.folder}; choose another --output-dir or fix its permissions")
        return True
    say(f"{run.folder / 'final'} is already finished; --overwrite trains it again")
    check_schedule_was_kept(run.folder, args.save_schedule)
    return False


def is_finished(run: Run) -> bool:
    """Whether a run with these settings has ended in this folder, and its final adapter is still whole."""
    manifest = Manifest.read(run.folder) or Manifest()
    ended = manifest.settings == run.settings and manifest.state == "complete"
    return ended and is_whole_final(run.folder / "final", run.settings)


def stopped_run_aside(run: Run) -> Path | None:
    """The folder of this very run beside its own, where another run has moved it, if there is a checkpoint to resume.

    None if two folders beside it are of this run: older versions did not write which one --overwrite gave up.
    """
    beside = run.folder.parent.glob(f"{glob.escape(run.folder.name)}.*")
    found = [(path, manifest) for path in beside if path.is_dir() and (manifest := Manifest.read(path))]
    own = [each for each in found if each[1].settings == run.settings and each[1].state != GIVEN_UP]
    if len(own) != 1 or own[0][1].state != "running":
        return None
    return own[0][0] if last_whole_checkpoint(own[0][0]) else None


def move_other_run_aside(args: argparse.Namespace, run: Run, stopped: Path | None = None) -> None:
    """Rename the folder if it holds a run of other settings, or --overwrite is given. Its new name says what is in it.
    With --resume another run is a UserError instead, unless this run is found aside: `stopped`."""
    folder, settings = run.folder, run.settings
    if not folder.exists() or not any(folder.iterdir()):
        return
    manifest = Manifest.read(folder) or Manifest()
    before = manifest.settings
    if before == settings and not args.overwrite:
        return
    differing = describe_differences(before, settings) if before else "  it has no manifest"
    if args.resume and not stopped:
        raise UserError(f"--resume: {folder} is of another run:\n{differing}\nGive this command that run's settings")
    label = slug(Path(manifest.train_jsonl or "earlier").stem)
    aside = free_name(folder.with_name(f"{folder.name}.{label}"))
    folder.rename(aside)
    if before == settings and manifest.state == "running":  # its own command must not move it back
        facts = json.loads((aside / "manifest.json").read_text("utf-8"))
        write_json(aside / "manifest.json", {**facts, "state": GIVEN_UP})
    why = "--overwrite" if before == settings else f"another run; --output-dir gives each a folder:\n{differing}"
    say(f"{folder} held {label}; moved to {aside} ({why})")


def is_whole_final(final: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the adapter of a finished training is still there. A copy of the folder may have broken off."""
    if not final.is_dir() or settings.get("full_finetuning"):
        return final.is_dir()
    try:
        check_adapter(final)
    except UserError as error:
        say(f"{error}. It is made again from the last whole checkpoint, or from the start")
        return False
    return True


# --- checkpoints -------------------------------------------------------------------------------------


def check_schedule_fits(args: argparse.Namespace, data: TrainingData) -> None:
    """UserError if the training would end before its last scheduled checkpoint; a warning if it would end before its
    learning rate is at its peak."""
    updates = math.ceil(len(data.encoded.rows) / args.effective_batch_size) * args.epochs
    last = max(args.save_schedule, default=0)
    if last > updates:
        raise UserError(
            f"--save-schedule names update {last} and the training has {updates}: leave it out, or raise --epochs (now"
            f" {args.epochs})"
        )
    if (warmup := warmup_updates(args.warmup_steps, updates)) >= updates:
        say(
            f"warning: the warm-up has {warmup:,} updates and the training {updates:,}, so the learning rate never"
            " reaches --learning-rate; lower --warmup-steps"
        )


def check_schedule_was_kept(folder: Path, schedule: Sequence[int]) -> None:
    """UserError if a finished training lacks one of its scheduled checkpoints."""
    missing = [str(update) for update in schedule if not (folder / f"checkpoint-{update}").is_dir()]
    if missing:
        raise UserError(
            f"{folder} is finished and has no checkpoint after update {', '.join(missing)}; --overwrite trains it"
            " again with --save-schedule (the old folder is moved aside)"
        )


# --- from the first update to the last ---------------------------------------------------------------


def begin_run(args: argparse.Namespace, run: Run, writes: bool) -> None:
    """Start a run, or resume it from its last whole checkpoint; its manifest then says "running"."""
    run.checkpoint = last_whole_checkpoint(run.folder)
    if args.resume and run.checkpoint is None:
        raise UserError(f"--resume: {run.folder} holds no whole checkpoint; leave out --resume to start")
    if run.checkpoint:
        check_writer(run.checkpoint, args.trainer)
        say(f"resuming from {run.checkpoint}")
    before = Manifest.read(run.folder) or Manifest()
    run.earlier = {name: before.counts.get(name, 0) for name in TIME} if run.checkpoint else {}
    if not writes:
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    run.manifest = new_manifest(
        run.settings,
        "running",
        before,
        [run.train_file],
        arguments=json.loads(scrub(json.dumps(vars(args), default=str))),
        train_jsonl=run.train_file.name,
        wandb_run_id=before.wandb_run_id,
    )
    run.update_manifest(counts=run.earlier)


def save_final(run: Run, save_adapter: Callable[[Path], Any]) -> None:
    """Write final/ whole or not at all: adapter, tokenizer, model card. UserError for weights that are not finite."""
    temporary = run.folder / "final.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    save_adapter(temporary)
    run.data.tokenizer.save_pretrained(str(temporary))
    # The last update may have made the weights NaN, and no later loss shows it.
    if not run.settings.get("full_finetuning"):
        check_adapter(temporary)
    for path in temporary.glob("model*.safetensors"):
        check_weights(path)
    let_others_read(temporary)
    write_card(temporary, run.settings, scrub(command_line()))
    shutil.rmtree(run.folder / "final", ignore_errors=True)  # of a run that died before its manifest was complete
    temporary.rename(run.folder / "final")


def time_so_far(run: Run, progress: Progress) -> dict[str, Any]:
    """The seconds of all sessions of a run, and how many updates were made in them. Updates after the last checkpoint
    of a session that was killed are made again, and their seconds are not counted."""
    here = {"seconds": progress.seconds, "timed_updates": progress.new}
    return {name: round(run.earlier.get(name, 0) + here[name], 1) for name in TIME}


def counts_of(run: Run, student: Student, progress: Progress) -> dict[str, Any]:
    """What the run did, for its manifest.

    seconds, timed_updates and tokens_per_second are of all students that train together, so far, and of all sessions.
    train_loss is the mean over the updates since the checkpoint that the run resumed from.
    """
    import torch

    encoded, cuda = run.data.encoded, torch.cuda.is_available()
    tokens, epochs = sum(len(row["input_ids"]) for row in encoded.rows), student.recipe.epochs
    time = time_so_far(run, progress)
    return {
        "rows": len(encoded.rows),
        "rows_cut": encoded.cut,
        "rows_dropped": encoded.dropped,
        "rows_with_stored_token_ids": encoded.exact,
        "updates": student.done,
        "resumed_at_update": run.done,
        "tokens": tokens * epochs,
        "tokens_per_second": round(
            tokens * epochs * time["timed_updates"] / max(student.updates * time["seconds"], 1e-9), 1
        ),
        **time,
        "train_loss": round(statistics.fmean(student.losses), 6) if student.losses else None,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
    }
