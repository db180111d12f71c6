"""Starts, continues and ends Weights & Biases runs: online with a key and a network, otherwise offline.

A student's training has a run, and what is measured of the student goes into the same one.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from util.cli import UserError, first_line
from util.hide_secrets import scrub
from util.terminal import say

INIT_SECONDS = 30


def start_run(
    project: str,
    name: str | None,
    config: dict[str, Any] | None,
    run_id: str | None,
    group: str | None = None,
    tags: Sequence[str] = (),
) -> Any:
    """Start a W&B run, or continue the run `run_id` (which keeps its name and config if these are None). Returns the
    wandb run."""
    import wandb

    options: dict[str, Any] = {
        "project": project,
        "group": group,
        "tags": [scrub(tag) for tag in tags] or None,
        "name": name,
        "id": run_id or secrets.token_hex(4),
        "resume": "allow",
        "reinit": "create_new",  # beside the runs of other students in this process
        "config": config,
    }
    # Do not send the command line and the code: by default W&B records argv and a copy of the script.
    settings = wandb.Settings(init_timeout=INIT_SECONDS, finish_timeout=120, x_disable_meta=True, save_code=False,
                              quiet=True)  # fmt: skip
    try:
        if has_key(wandb):
            return wandb.init(**options, settings=settings)
        say("no W&B key found: logging offline (`wandb login` sets a key)")
    except Exception as error:  # whatever is wrong with W&B, the work continues
        say(f"cannot reach W&B ({reason(error)}): logging offline")
    try:
        return wandb.init(**options, mode="offline", settings=settings)
    except Exception as error:
        raise UserError(f"W&B does not start ({reason(error)}); fix it or leave out --report-to wandb") from None


def reason(error: Exception) -> str:
    """Why W&B does not start, in one line; a wrong setting by the name that it has in the environment."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return first_line(error)
    wrong = error.errors()[0]
    return f"WANDB_{'_'.join(map(str, wrong['loc'])).upper()}: {wrong['msg']}"


def has_key(wandb: Any) -> bool:
    """Whether W&B would start without asking for a key."""
    return wandb.setup().settings.mode in ("offline", "disabled") or bool(wandb.login(prompt=False))


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
