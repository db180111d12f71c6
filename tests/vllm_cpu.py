"""A real vLLM server on this machine's CPU, started with the plan's own command line."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

START_SECONDS = 300
# float32 because bfloat16 crawls on CPUs without AVX-512; no chunked prefill because a request with a seed that is
# prefilled in chunks kills vLLM 0.32 on CPU ("CPU Generator does not use offset").
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
        try:
            wait_until_up(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(1)
    raise RuntimeError(f"vLLM did not come up; the end of its log:\n{log.read_text(errors='replace')[-3000:]}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
