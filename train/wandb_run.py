"""One Weights & Biases run for each seed: online with a key and a network, offline otherwise, never in the way."""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path
from typing import Any

from util.cli import UserError, first_line
from util.jsonl.manifest import scrub
from util.terminal import say

INIT_SECONDS = 30


def start_run(args: argparse.Namespace, name: str, config: dict[str, Any], run_id: str | None) -> Any:
    """Start (or with `run_id` go on with) the run of one seed. Returns the wandb run."""
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
    # The command line and the code stay here: W&B would record argv and a copy of the script.
    settings = wandb.Settings(init_timeout=INIT_SECONDS, finish_timeout=120, x_disable_meta=True, save_code=False,
                              quiet=True)  # fmt: skip
    try:
        if has_key(wandb):
            return wandb.init(**options, settings=settings)
        say("no W&B key found (`wandb login` sets one): logging offline")
    except Exception as error:  # whatever ails W&B, training goes on
        say(f"W&B cannot be reached ({first_line(error)}): logging offline")
    try:
        return wandb.init(**options, mode="offline", settings=settings)
    except Exception as error:
        raise UserError(f"W&B does not start ({first_line(error)}); mend it or leave out --report-to wandb") from None


def has_key(wandb: Any) -> bool:
    """Whether W&B would start without asking for a key."""
    return wandb.setup().settings.mode in ("offline", "disabled") or bool(wandb.login(prompt=False))


def log_to(run: Any) -> Any:
    """A trainer callback that logs to this run. (transformers' own logs to the one run of the process.)

    When W&B fails in the middle (its service is killed, its disk is full) one line says so, and the training goes on
    without it.
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
            except Exception as error:  # whatever ails W&B
                self.failed = True
                say(f"W&B failed ({first_line(error)}): the training goes on without it")

    return LogToRun()


def finish_run(run: Any) -> None:
    """End a run; tell how to upload it later if it was offline."""
    folder = Path(run.dir).parent
    offline = run.settings.mode == "offline" or folder.name.startswith("offline-")
    try:
        run.finish()
    except Exception as error:  # the adapter is saved; what W&B has not got is in its folder
        say(f"W&B did not take the end of the run ({first_line(error)}); upload it with: wandb sync {folder}")
        return
    if offline:
        say(f"W&B run kept in {folder}; upload it with: wandb sync {folder}")
