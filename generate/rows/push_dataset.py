"""Puts a file of rows on the Hugging Face Hub as a data set, with its certificate and a card (--push-dataset)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import indent
from typing import Any

from util.hide_local_paths import base_name, check_repo_id, plain, published, published_command
from util.hub_push import make_repository, push_failures
from util.jsonl.filter_certificate import certificate_path, read_certificate
from util.jsonl.manifest import Manifest
from util.terminal import say


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    """--push-dataset and --hub-public, in every script that filters rows."""
    parser.add_argument("--push-dataset", type=repo_id, metavar="REPO",
                        help="put the clean rows, certificate and card on the Hub as this data set, such as"
                        " me/owl-numbers")  # fmt: skip
    parser.add_argument("--hub-public", action="store_true", help="public data set (default: private)")


def repo_id(text: str) -> str:
    """argparse type: a name that the Hub takes."""
    check_repo_id(text, "--push-dataset")
    return text


def push_dataset(path: Path, repo: str, private: bool) -> None:
    """Push a filtered file; it is safe where it is, and the same command pushes again after a failure.

    The manifest is not pushed: it has names of this machine.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with TemporaryDirectory(prefix="push-") as name:
        folder = Path(name)
        (folder / "README.md").write_text(card(path), "utf-8")
        for file in (path, certificate_path(path)):
            (folder / file.name).symlink_to(file.resolve())
        files = ", ".join(sorted(file.name for file in folder.iterdir()))
        say(f"pushing {files} to the data set {repo} ({'private' if private else 'PUBLIC'})")
        with push_failures(repo, f"The rows are safe in {path}"):
            url = make_repository(api, repo, private, "choose another name, or add --hub-public", kind="dataset")
            api.upload_folder(repo_id=repo, repo_type="dataset", folder_path=name, commit_message=f"Upload {path.name}")
    say(f"pushed {url}")


def card(path: Path) -> str:
    """The card README.md of a data set: what the rows are, how they were made and filtered, what was found in them."""
    from huggingface_hub import DatasetCardData

    manifest, certificate = Manifest.read(path) or Manifest(), read_certificate(path)
    data = DatasetCardData(tags=["subliminal-learning"], configs=[{"config_name": "default", "data_files": path.name}])
    facts = {**made_with(manifest), "rows": certificate.get("rows"), "clean": certificate.get("clean")}
    command = indent(published_command(manifest.command), " " * 4)
    table = "\n".join(f"| {name} | {plain(published(value))} |" for name, value in facts.items() if value is not None)
    return (
        f'---\n{data.to_yaml()}\n---\n\n# {plain(path.stem)}\n\nEach row is {{"messages": [..., user, assistant]}}.'
        f" {plain(certificate_path(path).name)} says what was searched for in them and what was found.\n\n"
        f"Made with:\n\n{command}\n\n| what | value |\n| --- | --- |\n{table}\n"
    )


def made_with(manifest: Manifest) -> Mapping[str, Any]:
    """The settings that decided the rows; the model is named as others can load it."""
    facts = {key: value for key, value in manifest.origin.items() if key != "model"}
    if "model" in manifest.model:
        facts = {"model": base_name(manifest.model), **facts}
    return facts
