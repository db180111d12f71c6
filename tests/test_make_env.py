"""util/make_env.sh on broken machines: each fault is repaired or named. Real venvs and pip, packages of our own."""

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from conftest import REPO, clean_environment

from util.checks.gpu_checks import check_compiler
from util.jsonl.manifest import sha256_file

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")]

TORCH = "2.13.0"


def make_wheel(folder: Path, name: str, version: str, main: str = "raise SystemExit(1)") -> None:
    """The smallest package that pip installs: it imports, and `python -m` of it runs `main`."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "")
        wheel.writestr(f"{name}/__main__.py", main)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


class Clone:
    """A clone of the suite, cut down to what makes the environment, on a machine with no network but two packages."""

    def __init__(self, folder: Path):
        self.folder, self.shelf, self.tools = folder / "suite", folder / "shelf", folder / "tools"
        for made in (self.folder, self.shelf, self.tools):
            made.mkdir(parents=True)
        shutil.copytree(REPO / "util", self.folder / "util", ignore=shutil.ignore_patterns("__pycache__"))
        (self.folder / "requirements-cpu.txt").write_text(f"torch=={TORCH}\ntiny==1.0\n")
        self.add_tool("nvidia-smi", "exit 1")
        for name, version in (("torch", TORCH), ("tiny", "1.0"), ("uv", "0.1")):
            make_wheel(self.shelf, name, version)
        self.environment = clean_environment(
            folder,
            {
                "PATH": f"{self.tools}:{os.environ['PATH']}", "PYTHON": sys.executable, "PIP_NO_INDEX": "1",
                "PIP_FIND_LINKS": str(self.shelf), "PIP_CONFIG_FILE": os.devnull,
            },
        )  # fmt: skip

    def add_tool(self, name: str, script: str) -> None:
        """Put a command in front of the machine's own."""
        tool = self.tools / name
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)

    def make_env(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["util/make_env.sh", "run"], cwd=self.folder, env={**self.environment, **environment},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def works(self) -> bool:
        """Whether both packages are in the environment, whole."""
        python = self.folder / ".venv" / "bin" / "python"
        asked = "import tiny, torch; from importlib.metadata import version; version('tiny'), version('torch')"
        return subprocess.run([python, "-c", asked], capture_output=True).returncode == 0

    def stamps(self) -> list[Path]:
        return list((self.folder / ".venv").glob(".installed-*"))


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def test_makes_the_environment_and_then_does_nothing(clone):
    done = clone.make_env()
    assert done.returncode == 0, done.stderr
    assert clone.works() and len(clone.stamps()) == 1
    (clone.shelf / f"torch-{TORCH}-py3-none-any.whl").unlink()  # pip would fail if it were asked again
    assert clone.make_env().returncode == 0


def test_without_network_the_line_names_what_could_not_be_fetched(clone):
    (clone.shelf / "tiny-1.0-py3-none-any.whl").unlink()
    done = clone.make_env()
    assert done.returncode == 1
    assert "requirements-cpu.txt" in done.stderr and "network" in done.stderr
    assert "tiny" in done.stderr, "pip's own line names the package"
    assert not clone.stamps()
    make_wheel(clone.shelf, "tiny", "1.0")  # the network is back
    assert clone.make_env().returncode == 0 and clone.works()


def test_a_full_disk_is_named_before_anything_is_installed(clone):
    clone.add_tool("df", "printf 'Filesystem 1024-blocks Used Available Capacity Mounted\\n/ 9 9 2097152 99%% /\\n'")
    done = clone.make_env()
    assert done.returncode == 1
    assert "2 GB free" in done.stderr and "5 GB are needed" in done.stderr


def test_a_killed_installation_is_finished(clone):
    python = Path(sys.executable)
    clone.add_tool("slow-python", f'case "$*" in *venv*) "{python}" "$@"; sleep 60;; *) exec "{python}" "$@";; esac')
    killed = subprocess.Popen(
        ["util/make_env.sh", "run"], cwd=clone.folder, start_new_session=True,
        env={**clone.environment, "PYTHON": str(clone.tools / "slow-python")},
    )  # fmt: skip
    pip = clone.folder / ".venv" / "bin" / "pip"
    deadline = time.monotonic() + 120
    while not pip.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not clone.stamps()
    done = clone.make_env()
    assert done.returncode == 0, done.stderr
    assert clone.works()


def test_a_half_made_environment_is_made_again(clone):
    (clone.folder / ".venv" / "bin").mkdir(parents=True)
    (clone.folder / ".venv" / "bin" / "python").symlink_to("/gone/python3")
    done = clone.make_env()
    assert done.returncode == 0, done.stderr
    assert "making it again" in done.stderr and clone.works()


def test_an_environment_of_older_requirements_is_brought_up_to_date(clone):
    assert clone.make_env().returncode == 0
    make_wheel(clone.shelf, "newer", "2.0")
    with (clone.folder / "requirements-cpu.txt").open("a") as file:
        file.write("newer==2.0\n")
    assert clone.make_env().returncode == 0
    assert list((clone.folder / ".venv").glob("lib*/python*/site-packages/newer"))
    assert len(clone.stamps()) == 1


def test_a_package_that_lost_its_record_is_installed_again(clone):
    assert clone.make_env().returncode == 0
    (site,) = (clone.folder / ".venv").glob("lib/python*/site-packages")
    shutil.rmtree(site / "tiny-1.0.dist-info")
    clone.stamps()[0].unlink()
    assert clone.make_env().returncode == 0 and clone.works()


def test_a_file_whose_hash_differs_is_not_installed(clone):
    wheel, lock = clone.shelf / "tiny-1.0-py3-none-any.whl", clone.folder / "requirements-cpu.lock"
    lock.write_text(f"tiny==1.0 --hash=sha256:{sha256_file(wheel)}\n")
    make_wheel(clone.shelf, "tiny", "1.0", main="print('evil')")
    done = clone.make_env()
    assert done.returncode == 1 and "requirements-cpu.lock" in done.stderr and not clone.stamps()
    assert "DO NOT MATCH THE HASHES" in done.stderr
    lock.write_text(f"tiny==1.0 --hash=sha256:{sha256_file(wheel)}\n")
    assert clone.make_env().returncode == 0 and clone.works()


def test_a_python_that_is_too_old_is_named(clone):
    clone.add_tool("python2.7", "exit 1")
    done = clone.make_env(PYTHON="python2.7")
    assert done.returncode == 1
    assert "python2.7 is not Python 3.10 or newer" in done.stderr and "PYTHON=" in done.stderr


OLDER = 'case "$*" in *"(3, 11)"*) exit 1;; *) exec "{python}" "$@";; esac'  # says of itself that it is 3.10
UV = """import subprocess, sys
assert sys.argv[1:6] == ["venv", "--quiet", "--seed", "--python", "3.12"], sys.argv
subprocess.run([{python!r}, "-m", "venv", sys.argv[6]], check=True)
"""


def test_python_3_10_gets_a_newer_one_from_uv(clone):
    clone.add_tool("python3.10", OLDER.format(python=sys.executable))
    make_wheel(clone.shelf, "uv", "0.1", main=UV.format(python=sys.executable))
    done = clone.make_env(PYTHON="python3.10")
    assert done.returncode == 0, done.stderr
    assert "older than 3.11" in done.stderr and clone.works()


def test_python_3_10_without_network_says_what_to_install(clone):
    clone.add_tool("python3.10", OLDER.format(python=sys.executable))
    done = clone.make_env(PYTHON="python3.10")  # the shelf's uv does nothing
    assert done.returncode == 1
    assert "install Python 3.11 or newer and set PYTHON=" in done.stderr


# --- GPU machines, folders of wheels, other systems ---------------------------------------------------


def test_a_driver_too_old_is_named_before_anything_is_fetched_and_another_set_is_remembered(clone):
    clone.add_tool("nvidia-smi", "case $1 in --query*) echo '550.54.15, 81920 MiB, 81000 MiB, 8.0, A100';; esac")
    (clone.folder / "requirements.txt").write_text("huge==1.0\n")
    (clone.folder / "requirements.lock").write_text("cuda-toolkit==13.0 --hash=sha256:00\n")
    clone.add_tool("df", "printf 'Filesystem 1024-blocks Used Available Capacity Mounted\\n/ 9 9 99999999 9%% /\\n'")
    done = clone.make_env()
    assert done.returncode == 1 and "550.54.15 is too old for CUDA 13" in done.stderr
    assert "nothing was fetched" in done.stderr and "huge" not in done.stderr
    assert clone.make_env(REQUIREMENTS="requirements-cpu.txt").returncode == 0 and clone.works()
    assert clone.make_env().returncode == 0, "the same set without naming it again"
    if not list(check_compiler()):  # else the set of CUDA 12 is refused here
        (clone.folder / "requirements-cu12.txt").write_text("tiny==1.0\n")
        assert clone.make_env(REQUIREMENTS="requirements-cu12.txt").returncode == 0
        assert "VLLM_USE_FLASHINFER_SAMPLER" in (clone.folder / ".venv" / "bin" / "activate").read_text()
    assert "there is no requirements-x.txt" in clone.make_env(REQUIREMENTS="requirements-x.txt").stderr


def test_a_folder_of_wheels_installs_without_network_and_a_half_fetched_one_is_named(clone):
    wheel = clone.shelf / "tiny-1.0-py3-none-any.whl"
    (clone.folder / "requirements-cpu.lock").write_text(f"tiny==1.0 --hash=sha256:{sha256_file(wheel)}\n")
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[:100])
    clone.environment["PIP_FIND_LINKS"] = ""
    done = clone.make_env(WHEELS=str(clone.shelf))
    assert done.returncode == 1 and "damaged: tiny-1.0" in done.stderr and "Traceback" not in done.stderr
    assert "there is no folder" in clone.make_env(WHEELS="nowhere").stderr
    wheel.write_bytes(whole)
    done = clone.make_env(WHEELS=str(clone.shelf))
    assert done.returncode == 0, done.stderr
    assert clone.works()


def test_windows_is_refused_and_wsl_named(clone):
    clone.add_tool("uname", "echo MINGW64_NT-10.0")
    done = clone.make_env()
    assert done.returncode == 1 and "WSL" in done.stderr
    script = "import sys; sys.platform = 'win32'; import util.cli"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "WSL" in done.stderr
