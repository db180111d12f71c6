"""Pushes adapters and checkpoints to the Hugging Face Hub.

Pushing is separate from training: a failed push loses nothing, and the same command only pushes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from train.checkpoints import STATE, checkpoints_in, is_whole
from train.model_card import published_folder, pushed_files
from util.cli import UserError, first_line
from util.hub_push import make_repository, push_failures
from util.terminal import say

PUBLIC_ALREADY = (
    "choose another --hub-repo-prefix or add --hub-public (the adapter is trained: the command then only pushes)"
)


def push_all(folders: Mapping[str, Path], private: bool, every_n_epochs: int | None) -> bool:
    """Push each adapter to the main branch of its repository, and the checkpoint of every n-th epoch to a branch
    checkpoint-epoch-N. A second call pushes only what is missing.

    folders: repository id -> folder of a seed. A failure is printed, and the others are still pushed. Returns whether
    all were pushed.
    """
    pushed = True
    for repo_id, folder in folders.items():
        checkpoints = {branch_of(epoch): place for epoch, place in epoch_checkpoints(folder, every_n_epochs)}
        try:
            say(f"pushed {push({'main': folder / 'final', **checkpoints}, repo_id, private)}")
        except UserError as error:
            say(f"warning: {error}")
            pushed = False
    return pushed


def push(places: Mapping[str, Path], repo_id: str, private: bool) -> str:
    """Push folders, each to its branch, and create the repository if necessary. Returns the address.

    UserError after a failure, with what to do.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    safe = f"The adapter is safe in {next(iter(places.values()))}"
    with push_failures(repo_id, safe), ExitStack() as folders:
        ready = {branch: folders.enter_context(published_folder(place)) for branch, place in places.items()}
        for branch, folder in ready.items():
            announce(repo_id, branch, private, folder)
        url = make_repository(api, repo_id, private, PUBLIC_ALREADY)
        for branch, folder in ready.items():
            if branch != "main":
                api.create_branch(repo_id, branch=branch, exist_ok=True)
            api.upload_folder(
                repo_id=repo_id, folder_path=str(folder), revision=branch, commit_message=f"Upload {folder.name}"
            )
    return url


def push_early(checkpoint: Path, epoch: int, repo_id: str, private: bool) -> None:
    """Push a checkpoint while the training continues. A failure is only printed: `push_all` tries again."""
    try:
        push({branch_of(epoch): checkpoint}, repo_id, private)
    except UserError as error:
        say(f"warning: {first_line(error)} (another attempt follows after training)")


def branch_of(epoch: int) -> str:
    return f"checkpoint-epoch-{epoch}"


def announce(repo_id: str, branch: str, private: bool, folder: Path) -> None:
    """Print what is sent where, and who can see it, before anything leaves the machine."""
    files = pushed_files(folder)
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    names = ", ".join(str(file.relative_to(folder)) for file in files)
    say(f"pushing {names} ({megabytes:.1f} MB) to {repo_id}, {branch} ({'private' if private else 'PUBLIC'})")


def epoch_checkpoints(folder: Path, every_n_epochs: int | None) -> Iterator[tuple[int, Path]]:
    """(epoch, checkpoint folder) of each n-th epoch, in order."""
    for checkpoint in filter(is_whole, checkpoints_in(folder)):
        epoch = json.loads((checkpoint / STATE).read_text("utf-8"))["epoch"]
        if whole := nth_epoch(epoch, every_n_epochs):
            yield whole, checkpoint


def nth_epoch(epoch: float, every_n_epochs: int | None) -> int | None:
    """The epoch as a whole number if it has just ended and is a multiple of n, else None."""
    whole = round(epoch)
    return whole if every_n_epochs and abs(epoch - whole) < 1e-6 and whole % every_n_epochs == 0 else None
