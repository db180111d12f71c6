"""Checks of this machine before a run: Python, packages, GPU, left-over vLLM workers, disk, logins and vLLM server."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import urlsplit

from util.checks.gpu_checks import Check, Gpu, check_usable_gpus, find_gpus, gpu_checks, usable_gpus
from util.cli import REPO
from util.hide_secrets import scrub
from util.inference.vllm_probe import is_open_to_the_world, models_served, normal_url, server_key

PYTHON = (3, 10)
LOW_DISK_GB = 5
LOCAL_SERVER = "http://localhost:8000/v1"


def machine_checks() -> Iterator[Check]:
    """Everything worth knowing before a run on this machine."""
    gpus = find_gpus()
    requirements = requirements_of(gpus)
    yield check_python()
    yield from check_packages(requirements)
    yield from gpu_checks(gpus, requirements)
    if not gpus:
        mps = " (Apple's MPS is not used)" if sys.platform == "darwin" else ""
        yield Check("GPU", f"none{mps}: training and the local backend run on the CPU")
    yield from check_torch(gpus)
    yield from check_vllm_command()
    yield from check_usable_gpus(len(gpus), usable_gpus())
    yield from check_orphans()
    yield check_disk()
    yield Check("W&B login", "yes" if wandb_login() else "no: runs are logged offline")
    yield Check("HF login", "yes" if hub_login() else "no: nothing can be pushed, and gated models cannot be read")
    yield check_server(os.environ.get("VLLM_BASE_URL"))


def requirements_of(gpus: list[Gpu]) -> Path:
    """The requirements file that this environment was made from."""
    chosen = REPO / ".venv" / ".requirements"  # util/make_env.sh
    if chosen.is_file() and (REPO / chosen.read_text("utf-8").strip()).is_file():
        return REPO / chosen.read_text("utf-8").strip()
    return REPO / ("requirements.txt" if gpus else "requirements-cpu.txt")


def check_python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        return Check("Python", found, f"{PYTHON[0]}.{PYTHON[1]} or newer is needed", broken=True)
    return Check("Python", found)


def check_packages(requirements: Path) -> Iterator[Check]:
    """The packages of a requirements file: one line for all that are as wanted or newer, one for each other package."""
    wanted = pinned_packages(requirements)
    found = {name: installed_version(name) for name in wanted}
    good = [name for name, version in found.items() if version and numbers_of(version) >= numbers_of(wanted[name])]
    yield Check("packages", f"{len(good)} of {len(wanted)} as in {requirements.name}, or newer")
    for name in [name for name in wanted if name not in good]:
        version = found[name]
        yield Check(name, f"{version or 'missing'} ({wanted[name]} wanted)", "run: make setup", broken=version is None)


def pinned_packages(requirements: Path) -> dict[str, str]:
    """{package: version} of a requirements file. Raises ValueError for a line that is not `name==version`: a package
    that is not understood would never be checked."""
    lines = [line.partition("#")[0].strip() for line in requirements.read_text("utf-8").split("\n")]
    found = {}
    for line in filter(None, lines):
        pin = re.fullmatch(r"([\w.-]+)(?:\[[\w, -]+\])?==([\w.+!]+)(?:\s*;.*)?", line)  # extras are left out
        if pin is None:
            raise ValueError(f"{requirements}: {line!r} is not a line such as name==1.2.3")
        found[pin[1]] = pin[2]
    return found


def installed_version(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def numbers_of(version: str) -> list[int]:
    """'2.13.0+cpu' -> [2, 13, 0]."""
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]


def check_torch(gpus: list[Gpu]) -> Iterator[Check]:
    """A line if the installed torch cannot use the GPUs."""
    if gpus and "+cpu" in (installed_version("torch") or ""):
        yield Check("torch", "a CPU build on a machine with a GPU", "remove .venv and run: make setup", broken=True)


def check_vllm_command() -> Iterator[Check]:
    """A line if `vllm serve`, as it is pasted, would start the vLLM of another environment."""
    found, own = shutil.which("vllm"), Path(sys.executable).with_name("vllm")
    if found and own.exists() and not own.samefile(found):
        advice = f"in each window: . {own.parent}/activate"
        yield Check("vllm command", f"{found} is of another environment", advice)


def check_orphans() -> Iterator[Check]:
    """One line for each vLLM worker whose server has ended: it answers nobody and keeps its GPU memory."""
    for pid, name in orphaned_workers():
        yield Check("orphan", f"{name} (process {pid}) has lost its server and still holds its memory", f"kill {pid}")


def orphaned_workers() -> Iterator[tuple[int, str]]:
    """(pid, name) of the processes that vLLM named VLLM::... and whose parent is not vLLM; none outside Linux."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            name = command_of(folder)
            parent = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1]
            if name.startswith("VLLM::") and "vllm" not in command_of(folder.parent / parent).lower():
                yield int(folder.name), name.split()[0]


def command_of(folder: Path) -> str:
    """The command line of a process in /proc; '' if it has none."""
    return (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()


def check_disk() -> Check:
    free = shutil.disk_usage(REPO).free / 1e9
    low = free < LOW_DISK_GB
    return Check("disk", f"{free:.0f} GB free", "free some space for checkpoints and models" if low else "", broken=low)


def wandb_login() -> bool:
    """Whether W&B will find a key. W&B itself is not asked."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def hub_login() -> bool:
    """Whether the Hugging Face client finds a token."""
    try:
        from huggingface_hub import get_token
    except ModuleNotFoundError:
        return False
    return get_token() is not None


def check_server(asked_for: str | None) -> Check:
    """Whether a vLLM server answers where the scripts would ask, and whether strangers can ask it too.

    asked_for: the value of VLLM_BASE_URL, or None.
    """
    url = normal_url(asked_for or LOCAL_SERVER)
    shown = scrub(url)
    served = models_served(url, server_key())
    if served is None:
        advice = "start it, or unset VLLM_BASE_URL" if asked_for else ""
        return Check("server", f"none at {shown}", advice, broken=asked_for is not None)
    found = f"{shown} serves {', '.join(served) or 'nothing without the right VLLM_API_KEY'}"
    if is_open_to_the_world(url):
        return Check("server", f"{found}; anyone can ask it, without a key",
                     "serve with --host 127.0.0.1, or set VLLM_API_KEY for server and scripts")  # fmt: skip
    return Check("server", found)
