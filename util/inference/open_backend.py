"""Open the model that the arguments ask for: a server (vLLM) or a model in this process."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from util.cli import UserError, nonblank, positive_float, positive_int
from util.jsonl.manifest import Manifest
from util.terminal import say

if TYPE_CHECKING:
    pass
from util.inference.interface import InferenceBackend


def add_backend_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every script that asks a model."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        type=nonblank,
        required=True,
        help="name served by the server (vllm/NAME also works), or a hub id or folder",
    )
    group.add_argument("--adapter", type=Path, help="PEFT adapter folder to put on the model")
    group.add_argument(
        "--base-url",
        type=nonblank,
        default=os.environ.get("VLLM_BASE_URL"),
        help="OpenAI-compatible server such as http://localhost:8000/v1 (else VLLM_BASE_URL; with neither, the model"
        " runs in this process)",
    )
    group.add_argument("--max-concurrency", type=positive_int, default=512, help="server: requests in flight")
    group.add_argument(
        "--timeout",
        type=positive_float,
        default=600.0,
        help="server: stop after so many seconds without any answer",
    )
    group.add_argument("--batch-size", type=positive_int, default=128, help="embedded: answers made together")


def open_backend(args: argparse.Namespace) -> InferenceBackend:
    """The backend the arguments ask for, checked: a server answers and serves the model, a folder loads."""
    if args.adapter is not None:
        check_adapter(args.adapter)
        warn_of_base(args.adapter, args.model)
    if args.base_url:
        from util.inference.vllm_client import VllmClient

        return VllmClient(
            args.model, args.base_url, args.adapter, max_concurrency=args.max_concurrency, timeout=args.timeout
        )
    if args.model.startswith("vllm/"):
        raise UserError(f"--model {args.model} is asked of a server; pass --base-url http://localhost:8000/v1")
    from util.inference.local_model import LocalModel

    return LocalModel(args.model, args.adapter, batch_size=args.batch_size)


def warn_of_base(adapter: Path, model: str) -> None:
    """Say so when an adapter names another base model than the one it is put on (where its manifest is there, phases
    are compared by that, more exactly)."""
    if Manifest.read(adapter) or Manifest.read(adapter.parent):
        return
    try:
        config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{adapter}/adapter_config.json is not whole ({error}); copy it again") from None
    base = config.get("base_model_name_or_path") or ""
    if base and Path(base).name != Path(model).name:
        say(f"warning: {adapter} says that it is an adapter of {base}, not of {model}")


def check_adapter(folder: Path) -> None:
    """Raise UserError unless the folder holds a PEFT adapter."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; pass the adapter folder that training wrote (final/)")
    if (folder / "final").is_dir():
        raise UserError(f"{folder} is a training's folder; its adapter is {folder / 'final'}")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} is not a LoRA adapter: it has no {name}; pass the folder that training wrote (final/)"
            )
