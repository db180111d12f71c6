"""A real vLLM server on this machine's CPU, started with the plan's own command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from util.inference.vllm_server import Running, free_port
from util.stop_signals import Stop

START_SECONDS = 300
# float32, because bfloat16 is very slow on CPUs without AVX-512. No chunked prefill, because a request with a seed that
# is prefilled in chunks kills vLLM 0.32 on CPU ("CPU Generator does not use offset").
CPU_FLAGS = (
    "--dtype", "float32", "--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096",
    "--generation-config", "vllm",
)  # fmt: skip


@contextmanager
def vllm_serve(
    model: Path, log: Path, *flags: str, runtime_adapters: bool = False, longest: int = 1024
) -> Iterator[str]:
    """Run `vllm serve MODEL --host 127.0.0.1 ...` in a process group of its own; yields its base URL."""
    port = free_port()
    command = [Path(sys.executable).with_name("vllm"), "serve", model, "--host", "127.0.0.1", "--port", port]
    command += ["--max-model-len", longest]
    environment = {
        **os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1" if runtime_adapters else "0",
    }  # fmt: skip
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(part) for part in (*command, *CPU_FLAGS, *flags)],
            env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        running = Running(process, f"http://127.0.0.1:{port}/v1", log)
        try:
            running.wait_until_it_answers(START_SECONDS, Stop())
            yield running.url
        finally:
            running.end()
