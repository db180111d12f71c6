"""Checks of the GPUs and their driver, before the pinned packages are fetched (util/make_env.sh) and before a run."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from util.cli import REPO

BF16_CAPABILITY = 8.0  # Ampere
LEAST_CAPABILITY = 7.5  # Turing; torch for CUDA 13 has no code for older cards
PLAN_GIB = 38  # a card sold with 40 GB; the README's 7B was tried on none smaller
MODEL_GB = 15  # Qwen2.5-7B-Instruct
# The oldest Linux driver of each CUDA version (NVIDIA's release notes of the CUDA toolkit).
OLDEST_DRIVER = {12: 525, 13: 580}
CU12 = "requirements-cu12.txt"


class Check(NamedTuple):
    """One line about this machine. advice: what to do about it, or ""."""

    name: str
    found: str
    advice: str = ""
    broken: bool = False

    def line(self, width: int = 0) -> str:
        """The check as it is printed, its name padded to `width`."""
        mark = "BROKEN" if self.broken else "warn" if self.advice else "ok"
        return f"{mark:<6}  {self.name:<{width}}  {self.found}{f' -> {self.advice}' if self.advice else ''}"


class Gpu(NamedTuple):
    """A GPU as nvidia-smi lists it. memory and free are in MiB."""

    name: str
    memory: int
    free: int
    capability: float | None
    driver: str


def gpu_checks(gpus: list[Gpu], requirements: Path) -> Iterator[Check]:
    """Everything about the GPUs that can be known without the pinned packages."""
    if not gpus:
        return
    parts = mig_parts()
    for gpu in gpus:
        yield check_gpu(gpu)
    if sizes := [gpu.memory / 1024 for gpu in gpus if gpu.memory]:
        yield check_memory(min(sizes), parts)
    yield check_driver(gpus[0].driver, cuda_of(requirements), cuda_of_driver())
    yield from check_compiler()
    yield check_model_cache()


def find_gpus() -> list[Gpu]:
    """The NVIDIA GPUs of this machine; none if nvidia-smi does not answer. Old drivers do not know compute_cap."""
    known = "driver_version,memory.total,memory.free"
    for fields in (f"{known},compute_cap,name", f"{known},name"):
        listed = said(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"])
        if gpus := [read_gpu(line) for line in listed.split("\n") if line.count(",") == fields.count(",")]:
            return gpus
    return []


def read_gpu(line: str) -> Gpu:
    """`580.159.04, 143771 MiB, 143163 MiB, 9.0, NVIDIA H200` as a Gpu. What nvidia-smi does not know is [N/A]."""
    driver, memory, free, *capability, name = (cell.strip() for cell in line.split(","))
    known = re.fullmatch(r"\d+\.\d+", "".join(capability))
    return Gpu(name, number_in(memory), number_in(free), float(known[0]) if known else None, driver)


def number_in(cell: str) -> int:
    """The whole number of a cell such as `143771 MiB`; 0 if there is none."""
    found = re.search(r"\d+", cell)
    return int(found[0]) if found else 0


def said(command: list[str]) -> str:
    """What a command prints; nothing if it fails or does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def mig_parts() -> list[int]:
    """The memory (GB) of each part into which MIG has split the GPUs: `MIG 3g.20gb` has 20."""
    return [int(size) for size in re.findall(r"^\s+MIG \S*?\.(\d+)gb", said(["nvidia-smi", "-L"]), re.MULTILINE)]


# --- the checks ----------------------------------------------------------------------------------------


def check_gpu(gpu: Gpu) -> Check:
    """A card: too old for the pinned torch, without bf16, or right."""
    found = f"{gpu.name}, {gpu.memory} MiB, {gpu.free} MiB free"
    if gpu.capability is None:
        return Check("GPU", f"{found}, compute capability unknown")
    if gpu.capability < LEAST_CAPABILITY:
        advice = (
            f"the pinned torch needs {LEAST_CAPABILITY} or newer; the CPU alone: make setup"
            " REQUIREMENTS=requirements-cpu.txt"
        )
        return Check("GPU", f"{found}, compute capability {gpu.capability}", advice, broken=True)
    if gpu.capability < BF16_CAPABILITY:
        return Check("GPU", f"{found}, no bf16", "leave out --bf16, serve with --dtype float16")
    return Check("GPU", f"{found}, bf16")


def check_memory(gib: float, parts: list[int]) -> Check:
    """Whether the smallest GPU, or MIG part, has room for the README's 7B."""
    size = min([gib, *parts])
    found = f"{size:.0f} GiB" + (" in the smallest MIG part" if parts else "")
    small = size < PLAN_GIB
    advice = "Qwen2.5-7B was not tried on less than 40 GB; take a smaller model, such as Qwen/Qwen2.5-1.5B-Instruct"
    return Check("GPU memory", found, advice if small else "")


def cuda_of(requirements: Path) -> int:
    """The CUDA version of the pinned torch: of its lock file, or 12 for the CUDA 12 set."""
    lock = requirements.with_suffix(".lock")
    found = re.search(r"^cuda-toolkit==(\d+)", lock.read_text("utf-8"), re.MULTILINE) if lock.is_file() else None
    return int(found[1]) if found else 12


def cuda_of_driver() -> int | None:
    """The CUDA version that libcuda offers here: the driver's own, or a newer one of the forward-compatibility package.
    None where there is no libcuda."""
    version = ctypes.c_int()
    with suppress(OSError, AttributeError):
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) == 0:
            return version.value // 1000
    return None


def check_driver(driver: str, cuda: int, offered: int | None) -> Check:
    """Whether the driver runs CUDA `cuda`. offered: see cuda_of_driver."""
    needed, number = OLDEST_DRIVER[cuda], number_in(driver)
    if number >= needed:
        return Check("driver", f"{driver}, fits CUDA {cuda}")
    if offered and offered >= cuda:
        return Check("driver", f"{driver} with the forward-compatibility package of CUDA {offered}")
    found = f"{driver} is too old for CUDA {cuda} of the pinned torch: {needed} or newer is needed"
    return Check("driver", found, ways_out(number, cuda), broken=True)


def ways_out(driver: int, cuda: int) -> str:
    """What to do about a driver that is too old."""
    third = f"the CUDA 12 set (not tried on a GPU): make setup REQUIREMENTS={CU12}"
    if driver < OLDEST_DRIVER[12]:
        third = f"not the CUDA 12 set: it needs driver {OLDEST_DRIVER[12]} or newer too"
    return f"""one of these:
  1. data-centre cards (A100, H100, L40S): apt install cuda-compat-{cuda}-0, then
     export LD_LIBRARY_PATH=/usr/local/cuda-{cuda}.0/compat
  2. a newer driver: another image of the provider, or apt install nvidia-driver-{OLDEST_DRIVER[cuda]}-server and reboot
  3. {third}"""


def check_compiler() -> Iterator[Check]:
    """A line if Triton, which vLLM uses, cannot build its launchers: it needs a C compiler and Python's headers."""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        yield Check("C compiler", "none (vLLM needs one)", "apt install gcc", broken=True)
    if sys.version_info >= (3, 11) and not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        advice = f"apt install python3.{sys.version_info[1]}-dev"
        yield Check("Python.h", "missing (vLLM compiles with it)", advice, broken=True)


def model_cache() -> Path:
    """The folder to which the Hugging Face client downloads models."""
    home = Path(os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser())
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")


def check_model_cache() -> Check:
    """The free disk where models are downloaded to."""
    folder = model_cache()
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free / 1e9
    low = free < MODEL_GB and not any(folder.glob("models--Qwen--Qwen2.5-7B*"))
    advice = f"Qwen2.5-7B has {MODEL_GB} GB; free some space, or set HF_HOME to a folder on a larger disk"
    return Check("model cache", f"{free:.0f} GB free in {folder}", advice if low else "")


# --- which GPUs a run sees -----------------------------------------------------------------------------


def usable_gpus() -> list[str]:
    """The names that list_allowed_gpus.sh prints: it obeys `CUDA_VISIBLE_DEVICES` and counts the parts of a MIG GPU."""
    return said([str(REPO / "util" / "list_allowed_gpus.sh")]).split()


def check_usable_gpus(there: int, usable: list[str]) -> Iterator[Check]:
    """A line if a run sees other GPUs than the machine has. there: how many the machine has."""
    hidden = "CUDA_VISIBLE_DEVICES" in os.environ
    parts = [name for name in usable if name.startswith("MIG-")]
    if there and not usable:
        why = "CUDA_VISIBLE_DEVICES hides them" if hidden else "nvidia-smi -L lists none"
        yield Check("usable GPUs", f"none of {there}", f"{why}: everything runs on the CPU")
    elif there and (len(usable) != there or parts):
        why = " (MIG parts)" if parts else " (CUDA_VISIBLE_DEVICES)" if hidden else ""
        yield Check("usable GPUs", f"{', '.join(usable)}{why}; the machine has {there}")
