"""Is the Hugging Face Hub in reach, and what does a model's config.json say before the model is loaded?"""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from util.terminal import say

CONNECT_SECONDS = 5
# Where vLLM looks for a model's longest context (vllm/transformers_utils/model_arch_config_convertor.py).
CONTEXT_KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_sequence_length",
    "max_seq_length", "seq_len",
)  # fmt: skip


@lru_cache(maxsize=1)
def use_cache_without_network() -> None:
    """Let the hub's client look into the cache only where the hub cannot be reached: it would try for half a minute."""
    from huggingface_hub import constants

    hub = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or getproxies():  # a proxy may reach what this machine cannot
        return
    try:
        socket.create_connection((hub.hostname, hub.port or 443), CONNECT_SECONDS).close()
    except OSError as error:
        reason = error.strerror or error
        say(f"{hub.hostname} cannot be reached ({reason}): only models in this machine's cache are found")
        constants.HF_HUB_OFFLINE = True


def model_config(model: str, download: bool = True) -> dict[str, Any]:
    """The config.json of a folder or of a hub id; {} if it cannot be read (vLLM then says why). download: False to look
    only on this machine."""
    path = Path(model) / "config.json"
    with suppress(ImportError, OSError, ValueError):
        if not Path(model).is_dir():
            from huggingface_hub import hf_hub_download

            if download:
                use_cache_without_network()
            path = Path(hf_hub_download(model, "config.json", local_files_only=not download))
        found = json.loads(path.read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


def longest_context(config: dict[str, Any]) -> int | None:
    """How many tokens a model takes at most, by its config; None if it does not say."""
    text = config.get("text_config")
    some = text if isinstance(text, dict) else config
    return min((some[key] for key in CONTEXT_KEYS if type(some.get(key)) is int and some[key] > 0), default=None)
