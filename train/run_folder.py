"""The folder of one seed's training: who owns it, its settings and manifest, its checkpoints and final adapter.

seed-42/
    manifest.json      settings, command, versions, state (running or complete), counts, speed
    checkpoint-N/      what TRL saves after update N; a stopped run resumes from the newest whole one
    final/             the adapter, tokenizer and model card; it exists only when it is whole
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.checkpoints import last_whole_checkpoint, update_of
from train.fused_lora import LORA_TARGETS
from train.model_card import write_card
from train.training_rows import TrainingData
from util.cli import UserError, command_line
from util.inference.check_adapter import check_adapter
from util.jsonl.manifest import Manifest, new_manifest, now, sha256_file, write_json
from util.jsonl.resumable import describe_differences, free_name, lock_output
from util.jsonl.rows import slug
from util.scrub import scrub
from util.terminal import Progress, say

TIME = ("seconds", "timed_updates")  # what a manifest counts over all sessions of a training


def folder_of(args: argparse.Namespace, seed: int) -> Path:
    return Path(args.output_dir) / f"seed-{seed}"


def updates_of(args: argparse.Namespace, data: TrainingData) -> int:
    """How many updates a training takes."""
    return math.ceil(len(data.encoded.rows) / args.effective_batch_size) * args.epochs


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
        **({} if list(data.lora_targets) == LORA_TARGETS else {"lora_targets": list(data.lora_targets)}),
    }


# --- whose folder it is ------------------------------------------------------------------------------


def take_folder(args: argparse.Namespace, seed: int, train_file: Path, data: TrainingData, locks: ExitStack) -> bool:
    """Lock a seed's folder and make it this run's own. Returns whether there is something left to train."""
    folder = folder_of(args, seed)
    locks.enter_context(lock_output(folder))
    settings = settings_of(args, train_file, data, seed)
    if not claim_folder(folder, settings, args.overwrite, args.resume):
        return True
    say(f"{folder / 'final'} is already finished; --overwrite trains it again")
    check_scheduled(folder, args.save_schedule)
    return False


def claim_folder(folder: Path, settings: dict[str, Any], overwrite: bool, resume: bool = False) -> bool:
    """Make the folder this run's own. Returns whether this run is finished there already.

    The plan trains teacher and student into the same folder. So the folder of another run is moved aside, under a name
    that says what is in it. With `resume` it is a UserError instead.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return False
    manifest = Manifest.read(folder) or Manifest()
    before = manifest.settings
    if before == settings and not overwrite:
        return manifest.state == "complete" and (folder / "final").is_dir()
    differing = describe_differences(before, settings) if before else "  it has no manifest"
    if resume:
        raise UserError(f"--resume: {folder} is of another run:\n{differing}\nGive this command that run's settings")
    label = slug(Path(manifest.train_jsonl or "earlier").stem)
    aside = free_name(folder.with_name(f"{folder.name}.{label}"))
    folder.rename(aside)
    why = "--overwrite" if before == settings else f"another run:\n{differing}"
    say(f"{folder} held {label}; moved to {aside} ({why})")
    return False


# --- checkpoints -------------------------------------------------------------------------------------


def check_schedule(args: argparse.Namespace, data: TrainingData) -> None:
    """UserError if the training would end before its last scheduled checkpoint."""
    last, updates = max(args.save_schedule, default=0), updates_of(args, data)
    if last > updates:
        raise UserError(
            f"--save-schedule names update {last} and the training has {updates}: leave it out, or raise --epochs (now"
            f" {args.epochs})"
        )


def check_scheduled(folder: Path, schedule: Sequence[int]) -> None:
    """UserError if a finished training lacks one of its scheduled checkpoints."""
    missing = [str(update) for update in schedule if not (folder / f"checkpoint-{update}").is_dir()]
    if missing:
        raise UserError(
            f"{folder} is finished and has no checkpoint after update {', '.join(missing)}; --overwrite trains it"
            " again with --save-schedule (the old folder is moved aside)"
        )


# --- from the first update to the last ---------------------------------------------------------------


@dataclass
class Run:
    """The training of one seed in its folder."""

    seed: int
    folder: Path
    settings: dict[str, Any]
    checkpoint: Path | None
    """where it resumes from"""
    manifest: dict[str, Any]
    """empty in all but the first of several processes"""
    earlier: dict[str, Any]
    """`time_so_far` of the sessions before this one, up to the checkpoint that they saved last"""

    @property
    def done(self) -> int:
        """Updates that the checkpoint holds."""
        return update_of(self.checkpoint) if self.checkpoint else 0


def begin_run(args: argparse.Namespace, seed: int, train_file: Path, data: TrainingData, writes: bool) -> Run:
    """Start the run of a seed, or resume it from its last whole checkpoint; its manifest then says "running"."""
    folder, settings = folder_of(args, seed), settings_of(args, train_file, data, seed)
    checkpoint = last_whole_checkpoint(folder)
    if args.resume and checkpoint is None:
        raise UserError(f"--resume: {folder} holds no whole checkpoint; leave out --resume to start")
    if checkpoint:
        say(f"resuming from {checkpoint}")
    before = Manifest.read(folder) or Manifest()
    earlier = {name: before.counts.get(name, 0) for name in TIME} if checkpoint else {}
    manifest = begin_manifest(args, train_file, settings, folder, before, earlier) if writes else {}
    return Run(seed, folder, settings, checkpoint, manifest, earlier)


def begin_manifest(
    args: argparse.Namespace, train_file: Path, settings: dict[str, Any], folder: Path, before: Manifest,
    counts: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Write the manifest of a run that starts or resumes, and return it. before: the one that it had."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = new_manifest(
        settings,
        "running",
        before,
        [train_file],
        arguments=json.loads(scrub(json.dumps(vars(args), default=str))),
        train_jsonl=train_file.name,
        wandb_run_id=before.wandb_run_id,
        counts=counts,
    )
    write_json(folder / "manifest.json", manifest)
    return manifest


def save_final(run: Run, model: Any, tokenizer: Any) -> None:
    """Write final/ whole or not at all: adapter, tokenizer and model card."""
    temporary = run.folder / "final.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(str(temporary))
    tokenizer.save_pretrained(str(temporary))
    check_adapter(temporary)  # the last update may have made it NaN, which the loss of no later one can show
    write_card(temporary, run.settings, scrub(command_line()))
    shutil.rmtree(run.folder / "final", ignore_errors=True)  # of a run that died before its manifest was complete
    temporary.rename(run.folder / "final")


def time_so_far(run: Run, progress: Progress) -> dict[str, Any]:
    """The seconds of all sessions of a run, and how many updates were made in them. Updates after the last checkpoint
    of a session that was killed are made again, and their seconds are not counted."""
    here = {"seconds": progress.seconds, "timed_updates": progress.new}
    return {name: round(run.earlier.get(name, 0) + here[name], 1) for name in TIME}


def keep_time(run: Run, progress: Progress) -> None:
    """Put the seconds and updates so far into the manifest, whenever a checkpoint is saved."""
    if run.manifest:
        run.manifest["counts"] = time_so_far(run, progress)
        write_json(run.folder / "manifest.json", run.manifest)


def finish_manifest(run: Run, counts: dict[str, Any], speed: dict[str, Any]) -> None:
    """Say in the manifest that the run is complete, and what it did."""
    done = {"state": "complete", "finished": now(), "counts": counts, "speed": speed}
    write_json(run.folder / "manifest.json", run.manifest | done)


def counts_of(run: Run, data: TrainingData, epochs: int, outcome: Any, progress: Progress) -> dict[str, Any]:
    """What the run did, for its manifest.

    seconds, timed_updates and tokens_per_second are of all seeds that trained together and of all sessions. train_loss
    is the mean over the updates since the checkpoint that the run resumed from.
    """
    import torch

    tokens = sum(len(row["input_ids"]) for row in data.encoded.rows) * epochs
    updates, cuda, time = outcome.global_step, torch.cuda.is_available(), time_so_far(run, progress)
    return {
        "rows": len(data.encoded.rows),
        "rows_cut": data.encoded.cut,
        "rows_dropped": data.encoded.dropped,
        "rows_with_stored_token_ids": data.encoded.exact,
        "updates": updates,
        "resumed_at_update": run.done,
        "tokens": tokens,
        "tokens_per_second": round(tokens * time["timed_updates"] / max(updates * time["seconds"], 1e-9), 1),
        **time,
        "train_loss": round(outcome.training_loss, 6) if updates > run.done else None,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
    }
