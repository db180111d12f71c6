"""Logs the losses of each student to its own Weights & Biases run. A failure of W&B never ends the training."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from train.run_folder import Run
from util.cli import first_line
from util.terminal import say
from util.wandb_run import finish_run, start_run


def log_to_wandb(args: argparse.Namespace, run: Run) -> WandbLog:
    """Start the W&B run of a student, or continue it.

    Call it when the trainer exists: W&B adds hooks to what is imported later, and they fail if its service is killed.
    """
    group, tags, earlier_id = args.wandb_group, args.wandb_tags or (), run.manifest["wandb_run_id"]
    log = WandbLog(start_run(args.wandb_project, run.name, run.settings, earlier_id, group, tags))
    run.update_manifest(wandb_run_id=log.run.id)
    return log


class WandbLog:
    """The W&B run of a student. If W&B fails during the training (its service is killed, its disk is full), one line
    says so."""

    def __init__(self, run: Any):
        self.run, self.failed = run, False

    def log(self, logs: Mapping[str, float]) -> None:
        """Log the figures of an update, one of which is its "step"."""
        named = {f"train/{name}": value for name, value in logs.items() if name != "step"}
        self.attempt(lambda: self.run.log({**named, "train/global_step": logs["step"]}))

    def end(self, summary: Mapping[str, Any]) -> None:
        """Add closing figures, and finish."""
        self.attempt(lambda: self.run.summary.update(summary))
        finish_run(self.run)

    def attempt(self, action: Callable[[], Any]) -> None:
        """Do something with W&B, until it fails for the first time."""
        if self.failed:
            return
        try:
            action()
        except Exception as error:  # whatever is wrong with W&B
            self.failed = True
            say(f"W&B failed ({first_line(error)}): the training continues without it")
