"""The arguments of every script that asks a model, and the backend they choose: a vLLM server or the local backend."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from util.cli import UserError, input_file, json_object, nonblank, path_text, positive_float, positive_int
from util.hide_secrets import scrub
from util.inference.adapter_config import read_adapter_config
from util.inference.backend_interface import InferenceBackend
from util.inference.check_adapter import check_adapter, check_fits
from util.inference.hub_files import model_config
from util.jsonl.manifest import Manifest
from util.terminal import say

BASE_URL = "VLLM_BASE_URL"  # environment variable; util/serve.py sets it


def add_backend_arguments(parser: argparse.ArgumentParser, several_adapters: bool = False) -> None:
    """The arguments of every script that asks a model. several_adapters: --adapter gives a list."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        type=nonblank,
        required=True,
        help="with a server: the name it serves (vllm/NAME also works); without: a hub id or folder",
    )
    several: dict[str, Any] = {"nargs": "+", "metavar": "FOLDER"} if several_adapters else {}
    group.add_argument(
        "--adapter",
        type=adapter_folder,
        help="PEFT adapter folder to put on the model" + ("; several: one after the other" if several else ""),
        **several,
    )
    group.add_argument("--steering-vector", type=input_file,
                       help="without a server: a vector to add at one layer while the model answers (a file of"
                       " generate/make_steering_vector.py)")  # fmt: skip
    group.add_argument("--steering-strength", type=positive_float, default=1.0, help="factor of the steering vector")
    group.add_argument(
        "--base-url",
        type=nonblank,
        default=os.environ.get(BASE_URL, "").strip() or None,
        help=f"OpenAI-compatible server, such as http://localhost:8000/v1 (else the environment's {BASE_URL}; with"
        " neither, the model runs in this process)",
    )
    add_template_argument(group)
    group.add_argument("--max-concurrency", type=positive_int, default=512, help="with a server: requests in flight")
    group.add_argument(
        "--timeout",
        type=positive_float,
        default=600.0,
        help="with a server: stop after this many seconds without any answer",
    )
    group.add_argument("--batch-size", type=positive_int, default=128, help="without a server: answers made together")


def adapter_folder(text: str) -> Path:
    """argparse type of --adapter: any text but an empty one. `check_adapter` looks into the folder."""
    return Path(path_text(text))


def add_template_argument(group: Any) -> None:
    """--chat-template-kwargs, the same in every phase."""
    group.add_argument("--chat-template-kwargs", type=json_object, default={}, metavar="JSON",
                       help="""variables for the chat template, such as '{"enable_thinking": false}'""")  # fmt: skip


def backend_arguments(model: str, **given: Any) -> argparse.Namespace:
    """The arguments of every script that asks a model, for code without a command line: `given`, else the default.

    A Namespace built by hand would lack the next option. Raises TypeError for a name that is not an argument.
    """
    parser = argparse.ArgumentParser()
    add_backend_arguments(parser)
    args = parser.parse_args(["--model", model])
    if unknown := given.keys() - vars(args).keys():
        raise TypeError(f"not arguments of a backend: {', '.join(sorted(unknown))}")
    return argparse.Namespace(**{**vars(args), **given})


def open_backend(args: argparse.Namespace) -> InferenceBackend:
    """The backend that the arguments choose, checked: the server serves the model, or the model is loaded.

    Raises ServerFailed where no server answers, and UserError for every other reason.
    """
    if args.steering_strength != 1.0 and not args.steering_vector:
        raise UserError("--steering-strength is times the vector of --steering-vector, which is missing; pass it too")
    if args.adapter is not None:
        check_adapter(args.adapter)
        warn_of_base(args.adapter, args.model)
    if args.base_url:
        if args.steering_vector:
            raise UserError(
                "--steering-vector needs the model in this process, and --base-url (or the environment's"
                f" {BASE_URL}) names a server; leave one of them out, or put the preference into an adapter: write"
                " rows with --store-logprobs, train on them with --soft-labels, and serve that"
            )
        if args.base_url == os.environ.get(BASE_URL, "").strip():
            say(f"{BASE_URL} is set: asking the server at {scrub(args.base_url)}")
        if "?" in args.base_url:
            say("warning: what follows ? in --base-url is not sent; a key is read from VLLM_API_KEY")
        from util.inference.vllm_client import VllmClient

        return VllmClient(
            args.model,
            args.base_url,
            args.adapter,
            max_concurrency=args.max_concurrency,
            timeout=args.timeout,
            template_kwargs=args.chat_template_kwargs,
        )
    if args.model.startswith("vllm/"):
        raise UserError(f"--model {args.model} is the name of a served model; pass --base-url http://localhost:8000/v1")
    if args.adapter is not None:
        check_fits(args.adapter, args.model, model_config(args.model))
    if BASE_URL in os.environ and not os.environ[BASE_URL].strip():
        say(f"{BASE_URL} is set but empty: the model runs in this process")
    from util.inference.local_model import LocalModel

    steering = (args.steering_vector, args.steering_strength) if args.steering_vector else None
    return LocalModel(
        args.model,
        args.adapter,
        batch_size=args.batch_size,
        template_kwargs=args.chat_template_kwargs,
        steering=steering,
    )


def warn_of_base(adapter: Path, model: str) -> None:
    """Warn when an adapter names another base model than the one it is put on. An adapter with a manifest is left to
    the check of all phases, which is more exact."""
    if Manifest.read(adapter) or Manifest.read(adapter.parent):
        return
    base = read_adapter_config(adapter).base_model
    if base and Path(base).name != Path(model).name:
        say(f"warning: {adapter} says that it is an adapter of {base}, not of {model}: pass the model of the adapter")
