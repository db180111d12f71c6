"""Logs the losses of each seed to its own Weights & Biases run. A failure of W&B never ends the training."""

from __future__ import annotations

import argparse
from typing import Any

from train.run_folder import Run
from util.cli import first_line
from util.jsonl.manifest import write_json
from util.terminal import say
from util.wandb_run import start_run


def log_to_wandb(args: argparse.Namespace, run: Run, trainer: Any, name: str) -> Any:
    """Start the W&B run of a seed and let its trainer log there. Returns the wandb run.

    Call it when the trainer exists: W&B adds hooks to what is imported later, and they fail if its service is killed.
    """
    wandb_run = start_run(
        args.wandb_project, f"{name}-seed-{run.seed}", run.settings, run.manifest["wandb_run_id"],
        args.wandb_group, args.wandb_tags or (),
    )  # fmt: skip
    run.manifest["wandb_run_id"] = wandb_run.id
    write_json(run.folder / "manifest.json", run.manifest)
    trainer.add_callback(log_callback(wandb_run))
    return wandb_run


def log_callback(run: Any) -> Any:
    """A trainer callback that logs to this run. (transformers' own callback allows one run per process.)

    If W&B fails during the training (its service is killed, its disk is full), one line says so.
    """
    from transformers import TrainerCallback

    class LogToRun(TrainerCallback):
        failed = False

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if self.failed:
                return
            logs = logs or {}
            try:
                if "loss" in logs:
                    named = {f"train/{name}": value for name, value in logs.items()}
                    run.log({**named, "train/global_step": state.global_step})
                else:  # the closing figures
                    run.summary.update(logs)
            except Exception as error:  # whatever is wrong with W&B
                self.failed = True
                say(f"W&B failed ({first_line(error)}): the training continues without it")

    return LogToRun()
