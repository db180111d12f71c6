"""Logs each seed to its own Weights & Biases run: online with a key and a network, otherwise offline.

A failure of W&B is printed and never ends the training.
"""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path
from typing import Any

from train.run_folder import Run
from util.cli import UserError, first_line
from util.jsonl.manifest import write_json
from util.scrub import scrub
from util.terminal import say

INIT_SECONDS = 30


def log_to_wandb(args: argparse.Namespace, run: Run, trainer: Any, name: str) -> Any:
    """Start the W&B run of a seed and let its trainer log there. Returns the wandb run.

    Call it when the trainer exists: W&B adds hooks to what is imported later, and they fail if its service is killed.
    """
    wandb_run = start_run(args, f"{name}-seed-{run.seed}", run.settings, run.manifest["wandb_run_id"])
    run.manifest["wandb_run_id"] = wandb_run.id
    write_json(run.folder / "manifest.json", run.manifest)
    trainer.add_callback(log_callback(wandb_run))
    return wandb_run


def start_run(args: argparse.Namespace, name: str, config: dict[str, Any], run_id: str | None) -> Any:
    """Start the W&B run of one seed, or continue the run `run_id`. Returns the wandb run."""
    import wandb

    options: dict[str, Any] = {
        "project": args.wandb_project,
        "group": args.wandb_group,
        "tags": [scrub(tag) for tag in args.wandb_tags or ()],
        "name": name,
        "id": run_id or secrets.token_hex(4),
        "resume": "allow",
        "reinit": "create_new",  # beside the runs of other seeds in this process
        "config": config,
    }
    # Do not send the command line and the code: by default W&B records argv and a copy of the script.
    settings = wandb.Settings(init_timeout=INIT_SECONDS, finish_timeout=120, x_disable_meta=True, save_code=False,
                              quiet=True)  # fmt: skip
    try:
        if has_key(wandb):
            return wandb.init(**options, settings=settings)
        say("no W&B key found: logging offline (`wandb login` sets a key)")
    except Exception as error:  # whatever is wrong with W&B, the training continues
        say(f"cannot reach W&B ({first_line(error)}): logging offline")
    try:
        return wandb.init(**options, mode="offline", settings=settings)
    except Exception as error:
        raise UserError(f"W&B does not start ({first_line(error)}); fix it or leave out --report-to wandb") from None


def has_key(wandb: Any) -> bool:
    """Whether W&B would start without asking for a key."""
    return wandb.setup().settings.mode in ("offline", "disabled") or bool(wandb.login(prompt=False))


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


def finish_run(run: Any) -> None:
    """End a run; print how to upload it later if it is offline."""
    folder = Path(run.dir).parent
    offline = run.settings.mode == "offline" or folder.name.startswith("offline-")
    try:
        run.finish()
    except Exception as error:  # the adapter is saved; what W&B lacks is in its folder
        say(f"W&B did not finish the run ({first_line(error)}); upload it with: wandb sync {folder}")
        return
    if offline:
        say(f"W&B run saved in {folder}; upload it with: wandb sync {folder}")
