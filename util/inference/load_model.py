"""Load a model, its tokenizer and LoRA adapters with transformers and peft."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from util.chat.chat_template import (
    check_template_kwargs,
    completion_suffix,
    set_template_kwargs,
    template_facts,
)
from util.chat.chat_tokens import template_end
from util.cli import REPO, UserError, first_line, is_out_of_memory
from util.inference.check_adapter import check_adapter, check_fits
from util.inference.hub_files import use_cache_without_network
from util.jsonl.manifest import sha256_file, sha256_text

WEIGHT_FILES = (
    "*.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja",
)  # fmt: skip


def load_tokenizer(model: str, template_kwargs: Mapping[str, Any] | None = None) -> Any:
    """The model's tokenizer, padding on the left. UserError if it is not found or has no chat template.

    template_kwargs: what its chat template is given (--chat-template-kwargs); it is checked, unless it is None.
    """
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, model)
    if not tokenizer.chat_template:
        raise UserError(f"{model} has no chat template, so it is not a chat model; use its -Instruct version")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if template_kwargs is not None:
        check_template_kwargs(tokenizer, model, template_kwargs)
    return set_template_kwargs(tokenizer, template_kwargs or {})


def load_model(model: str, dtype: Any = None, device: str | None = None) -> Any:
    """The model in eval mode. By default on the GPU if there is one, bfloat16 there and float32 on a CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    device = device or best_device()
    if dtype is None:
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
    # safetensors only: a pickle may run code when it is read
    return _from_pretrained(AutoModelForCausalLM, model, dtype=dtype, use_safetensors=True).to(device).eval()


def load_config(model: str) -> Any:
    """The model's config alone."""
    from transformers import AutoConfig

    return _from_pretrained(AutoConfig, model)


def best_device() -> str:
    """'cuda' where there is a GPU, else 'cpu'."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def check_folder(model: str) -> None:
    """Raise UserError for a path without a model."""
    path = Path(model)
    if path.is_dir():
        if (path / "adapter_config.json").is_file():
            raise UserError(f"{model} is a LoRA adapter; pass its base model here; the adapter has a flag of its own")
        if not (path / "config.json").is_file():
            inside = ", ".join(sorted(child.parent.name for child in path.glob("*/config.json")))
            raise UserError(
                f"{model} holds no model (no config.json){f'; there is one in: {inside}' if inside else ''}"
            )
    elif path.is_file():
        raise UserError(f"{model} is a file; pass the folder of the model")
    elif model.startswith("vllm/"):
        raise UserError(f"{model} is the name of a served model; pass its base model's hub id or folder")
    elif "://" in model:  # of a store that vLLM reads
        return
    elif not path.is_absolute() and (REPO / path).is_dir():
        raise UserError(f"no folder {model} here; there is {REPO / path}: pass that, or run this in {REPO}")
    elif path.is_absolute() or len(path.parts) > 2 or (len(path.parts) == 2 and Path(path.parts[0]).is_dir()):
        fetched = "; util/get_model.py fetches some models into output/models" if path.parent.name == "models" else ""
        raise UserError(f"no folder {model}{folders_nearby(path)}{fetched}")


def folders_nearby(path: Path) -> str:
    """' (there is: a, b)' for the folders beside a missing one, or ''."""
    names = sorted(child.name for child in path.parent.iterdir() if child.is_dir()) if path.parent.is_dir() else []
    return f" (there is: {', '.join(names[:8])})" if names else ""


def _from_pretrained(kind: Any, model: str, **options: Any) -> Any:
    from safetensors import SafetensorError
    from transformers.utils import logging

    check_folder(model)
    if not Path(model).is_dir():
        use_cache_without_network()
    logging.disable_progress_bar()
    try:
        # False, not unset: transformers would ask on the terminal whether to run the Python code of the model's folder
        return kind.from_pretrained(model, trust_remote_code=False, **options)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{model} needs Python code of its own, and the suite never runs code of a model; take a model whose"
                " architecture is part of transformers"
            ) from None
        reason = first_line(error)
        raise UserError(
            f"cannot load the model {model!r}: {reason} Check the spelling (a hub id such as"
            f" Qwen/Qwen2.5-7B-Instruct, or a folder), the network, and for a gated model `hf auth login`. The name of"
            f" a served model needs --base-url"
        ) from None


def model_facts(
    model: str, config: Any, template_kwargs: Mapping[str, Any] | None = None, files: str | None = None
) -> dict[str, Any]:
    """What identifies the weights: the hub commit, or for a folder the hash of its files; and what the chat template is
    given, if anything. files: that hash, if it is known already."""
    files = files or files_sha256(model)
    weights = {"files_sha256": files} if files else {"revision": getattr(config, "_commit_hash", None)}
    return {"model": model, **weights, **template_facts(template_kwargs)}


def files_sha256(model: str) -> str | None:
    """The hash of the files of a model's folder; None for a hub id."""
    if not Path(model).is_dir():
        return None
    files = sorted({file for pattern in WEIGHT_FILES for file in Path(model).glob(pattern)})
    with ThreadPoolExecutor() as threads:  # 15 GB take one core ten seconds
        return sha256_text("".join(threads.map(sha256_file, files)))


def put_adapter(model: Any, adapter: Path, name: str = "default") -> Any:
    """The model with one more PEFT adapter on it. Raises UserError for an adapter of another model, and for one whose
    config or weights are not numbers.

    The adapter gets the model's number type, as in vLLM. In float32 every linear layer would convert its input.
    """
    from peft import PeftModel

    check_adapter(adapter)
    check_fits(adapter, model.config.name_or_path or "this model", model.config.to_dict())
    try:
        if not isinstance(model, PeftModel):
            model = PeftModel.from_pretrained(model, str(adapter), adapter_name=name, autocast_adapter_dtype=False)
        else:
            model.load_adapter(str(adapter), adapter_name=name, autocast_adapter_dtype=False)
    except Exception as error:  # PEFT and torch raise many kinds for an adapter that does not fit
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        raise UserError(
            f"the adapter {adapter} does not fit this model ({first_line(error)}); was it trained on another model?"
        ) from None
    return model.eval()


def without_adapters(model: Any) -> Any:
    """The transformers model inside the adapters of `put_adapter`, or the model itself if it has none."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def end_of_turn_ids(model: Any, tokenizer: Any) -> set[int]:
    """Token ids that end an answer: those of the generation config, of the tokenizer and of the chat template.

    Training teaches the end that the template writes. A model whose configs name only another one would never stop.
    """
    ids = model.generation_config.eos_token_id
    listed = ids if isinstance(ids, list) else [ids]
    of_template = template_end(tokenizer, completion_suffix(tokenizer))
    return {i for i in (*listed, tokenizer.eos_token_id, *of_template) if i is not None}
