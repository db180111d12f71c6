"""Start a vLLM server process, wait until it answers, and stop it with all its workers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

from util.checks.gpu_checks import find_gpus, usable_gpus
from util.cli import UserError
from util.inference.adapter_config import SUITE_RANK
from util.inference.hub_files import longest_context, model_config
from util.inference.vllm_probe import makes_tokens, models_served, server_key
from util.stop_signals import Stop
from util.terminal import announced, say

START_SECONDS = 1800.0  # a first start downloads the weights
GRACE_SECONDS = 30.0
LOG_LINES = 15
PARENT_DIED = 1  # prctl's PR_SET_PDEATHSIG
RANK = "--max-lora-rank"
ADAPTER_TYPES = ("auto", "float16", "bfloat16")  # the values of vLLM's --lora-dtype (vllm/config/lora.py)
CONTEXT = "--max-model-len"
GRAPHS, STEP, MOST_TOKENS = "--cudagraph-capture-sizes", "--max-num-batched-tokens", 2048


# At its first start vLLM lets FlashInfer compile a sampler for top-p and top-k: 100 s, and an error where there is no
# nvcc. The scripts use neither.
NO_COMPILER = {"VLLM_USE_FLASHINFER_SAMPLER": "0"}

ENGINE_ERROR = re.compile(r"(\((?!APIServer)[^)]*pid=\d+\)) ERROR [^]]*\] ?(.*)")
EXCEPTION = re.compile(r"[\w.]+(Error|Exception)\b")

Flags = Mapping[str, "str | Sequence[str] | None"]

# Short prompts and answers, one adapter at a time (docs/performance.md; bench/vllm_throughput.py measures what
# each gains).
# vLLM's own list of CUDA graphs ends at 512 tokens, half a step of 1,024 answers, and has 51 sizes to capture at each
# start. With at most 2,048 tokens a step, every step has a graph, also those in which new answers begin.
# Sampling fields come from the scripts, never from generation_config.json. A model's own Python code is never run.
FLAGS: Flags = {
    CONTEXT: "2048", "--max-num-seqs": "1024", STEP: str(MOST_TOKENS),
    "--gpu-memory-utilization": "0.95", "--generation-config": "vllm",
    "--no-trust-remote-code": None, "--enable-lora": None, RANK: str(SUITE_RANK),
    "--max-loras": "1", GRAPHS: (
        "1", "8", "32", "64", "128", "256", "384", "512", "640", "768", "896", "1024", "1280", "1536", "1792", "2048",
    ),
}  # fmt: skip


def vllm_command(model: str, port: int, flags: Sequence[str], defaults: Flags = FLAGS) -> list[str]:
    """The command `vllm serve` with flags for short answers; the caller's own flags win."""
    given = settings_in(flags)
    if "--max-cudagraph-capture-size" in given or "cudagraph_capture_sizes" in " ".join(flags):
        given[GRAPHS] = ""  # vLLM takes one or the other
    if given.get("--max-num-seqs", "").isdigit() and int(given["--max-num-seqs"]) > MOST_TOKENS:
        given |= {STEP: "", GRAPHS: ""}  # a step has at least one token of each sequence
    chosen = [part for flag, value in defaults.items() if flag not in given for part in (flag, *values_of(value))]
    return [find_vllm(), "serve", model, "--host", "127.0.0.1", "--port", str(port), *chosen, *flags]


def fit_context(defaults: Flags, longest: int | None) -> Flags:
    """The flags for a model whose longest context is `longest` tokens: vLLM refuses a longer one."""
    chosen = defaults.get(CONTEXT)
    if longest is None or not isinstance(chosen, str) or int(chosen) <= longest:
        return defaults
    return {**defaults, CONTEXT: str(longest)}


def settings_in(flags: Sequence[str]) -> dict[str, str]:
    """The flags of a command line, each with the word after it or after its `=`. vLLM also takes --max_num_seqs."""
    words = [word for flag in flags for word in flag.split("=", 1)]
    return {flag.replace("_", "-"): value for flag, value in pairwise([*words, ""]) if flag.startswith("-")}


def values_of(value: str | Sequence[str] | None) -> Sequence[str]:
    """The words that follow a flag."""
    return () if value is None else (value,) if isinstance(value, str) else value


def check_number_type(command: Sequence[str]) -> None:
    """UserError for a number type of adapters that vLLM does not have. And for a server on a GPU that takes adapters
    and computes in float32: vLLM's adapters there have 16 bits only, and it says so after a minute."""
    of_adapters = settings_in(command).get("--lora-dtype", "auto")
    if of_adapters not in ADAPTER_TYPES:
        raise UserError(
            f"--lora-dtype {of_adapters}: vLLM's adapters are float16 or bfloat16, or with auto of the model's type;"
            " leave it out"
        )
    switches = [flag for word in command if (flag := word.replace("_", "-")) in ("--enable-lora", "--no-enable-lora")]
    if switches[-1:] != ["--enable-lora"] or settings_in(command).get("--dtype") not in ("float32", "float"):
        return
    if find_gpus() and usable_gpus():
        raise UserError(
            "vLLM's adapters are bfloat16 or float16 only on a GPU, and --dtype float32 is given: leave it out, or pass"
            " --no-enable-lora and ask a model without an adapter"
        )


def takes_adapters(flags: Sequence[str]) -> bool:
    """Whether adapters can be loaded while this server runs. vLLM refuses that with several API server processes, and
    it starts one for each GPU under --data-parallel-size."""
    given = settings_in(flags)
    names = ("--api-server-count", "-asc", "--data-parallel-size", "-dp")
    return next((given[name] for name in names if name in given), "1") == "1"


def find_vllm() -> str:
    """Path of the vllm command: beside this Python, or in the PATH. Raises UserError if there is none."""
    found = shutil.which("vllm", path=str(Path(sys.executable).parent)) or shutil.which("vllm")
    if found is None:
        raise UserError(
            "vllm is not installed here; on a GPU box run: make setup. Without a GPU leave out util/serve.py: the"
            " scripts run the model themselves"
        )
    return found


def free_port() -> int:
    """A loopback port where nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def die_with_parent() -> Callable[[], None] | None:
    """On Linux: a function that makes the kernel stop the server when this process is killed; None elsewhere."""
    if sys.platform != "linux":
        return None
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PARENT_DIED, signal.SIGTERM)


@contextmanager
def server(
    model: str, flags: Sequence[str], log: Path, start_seconds: float, stop: Stop, defaults: Flags = FLAGS
) -> Iterator[Running]:
    """A running vLLM that answers, in a process group of its own. It is always stopped with all its workers."""
    port = free_port()
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**NO_COMPILER, **os.environ, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": str(int(takes_adapters(flags)))}
    if CONTEXT not in settings_in(flags):
        defaults = fit_context(defaults, longest_context(model_config(model)))
    command = vllm_command(model, port, flags, defaults)
    check_number_type(command)
    say(f"starting vLLM for {model} on port {port}; its log is {log}")
    with log.open("ab") as file:
        begins = file.tell()
        process = subprocess.Popen(
            command, env=environment,
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True, preexec_fn=die_with_parent(),
        )  # fmt: skip
    running = Running(process, f"http://127.0.0.1:{port}/v1", log, begins)
    try:
        with announced("vLLM loads and compiles the model, which takes minutes the first time"):
            running.wait_until_it_answers(start_seconds, stop)
        yield running
    finally:
        running.end()


def first_error(log: str) -> list[str]:
    """Place, code and message of the first exception that a process of vLLM's engine logged; empty without one. What
    a log ends with is another process's, which says only that the engine failed."""
    logged = [found.groups() for found in map(ENGINE_ERROR.match, log.split("\n")) if found]
    at = next((i for i, (_, text) in enumerate(logged) if EXCEPTION.match(text)), None)
    if at is None:
        return []
    process, message = logged[at]
    trace = [text for name, text in logged[:at] if name == process and text.startswith("  ")]
    frames = [i for i, text in enumerate(trace) if text.startswith("  File ")]
    return [*(trace[frames[-1] :][:2] if frames else []), message]


class Running:
    """A server process, where it listens, and its log from the byte `begins` on."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path, begins: int = 0):
        self.process, self.url, self.log, self.begins = process, url, log, begins

    def wait_until_it_answers(self, seconds: float, stop: Stop) -> None:
        """Return when it lists its models. Raises UserError with what its log says if it dies or takes too long."""
        begun = time.monotonic()
        while self.process.poll() is None:
            stop.raise_if_requested()
            if models_served(self.url, server_key()) is not None:
                say(f"vLLM answers at {self.url} after {time.monotonic() - begun:.0f} s")
                return
            if time.monotonic() - begun > seconds:
                raise UserError(f"vLLM did not answer within {seconds:.0f} s; {self.from_log()}")
            time.sleep(0.5)
        raise UserError(
            f"vLLM ended with code {self.process.returncode} before it answered. If a flag is the reason, change it"
            f" (flags before `--` are passed to vLLM); {self.from_log()}"
        )

    def from_log(self) -> str:
        """The first error of its engine, or else the end of its log, with a heading."""
        text = self.log.read_bytes()[self.begins :].decode("utf-8", "replace")
        if error := first_error(text):
            return "\n  ".join([f"the first error in {self.log}:", *error])
        return "\n  ".join([f"the end of {self.log}:", *text.rstrip().split("\n")[-LOG_LINES:]])

    def trouble(self) -> str | None:
        """What is wrong with the server, or None. Its process can live on when its engine has died or hangs."""
        if self.process.poll() is not None:
            return "died"
        return None if makes_tokens(self.url, server_key()) else "stopped answering"

    def end(self) -> None:
        """Stop the server and everything in its process group."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_SECONDS)
        with suppress(ProcessLookupError):  # workers that outlived it would keep the GPU's memory
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def run_command(command: Sequence[str], environment: Mapping[str, str], stop: Stop) -> int:
    """Run the command to its end and return its exit code. Signals are passed on to it, but not Ctrl-C: the terminal
    sends it to the command too."""
    try:
        child = subprocess.Popen(command, env=environment)
    except OSError as error:
        raise UserError(f"cannot run {command[0]}: {error.strerror}") from None
    passed_on = False
    while True:
        with suppress(subprocess.TimeoutExpired):
            return child.wait(0.2)
        if stop.signum is not None and not passed_on:
            passed_on = True
            if stop.signum != signal.SIGINT:
                child.send_signal(stop.signum)
            elif not is_in_foreground():
                child.terminate()  # not SIGINT: for a command that has got one already, a second means "at once"


def is_in_foreground() -> bool:
    """Whether Ctrl-C in a terminal reaches this process, and with it the commands that it runs."""
    with suppress(OSError), Path("/dev/tty").open("rb") as terminal:
        return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    return False
