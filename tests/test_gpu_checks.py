"""What doctor and `make setup` say of a GPU machine, from answers of nvidia-smi (tests/nvidia-smi.txt)."""

import os
import subprocess
import sys

import pytest
from conftest import REPO, clean_environment

from util.checks import gpu_checks, machine_checks
from util.checks.gpu_checks import cuda_of, find_gpus
from util.checks.wheel_folder import Pin, is_wanted, missing_pins, pins_of
from util.jsonl.manifest import sha256_file

SMI = """#!/bin/sh
[ "$1" = -L ] && part=2 || part=1
exec awk -v machine="$MACHINE" -v part=$part -v fields="$1" '
    /^== /{inside = ($2 == machine); now = 1; next}
    /^-L$/{now = 2; next}
    inside && now == part && (part == 2 || gsub(",", ",") == gsub(",", ",", fields))' ANSWERS
"""
SET = REPO / "requirements.txt"


@pytest.fixture
def checks(tmp_path, monkeypatch):
    """checks("mig") -> {name: check} of gpu_checks on that machine, which has a compiler and a large disk."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(SMI.replace("ANSWERS", str(REPO / "tests" / "nvidia-smi.txt")))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr(gpu_checks, "cuda_of_driver", lambda: None)
    monkeypatch.setattr(gpu_checks, "check_compiler", lambda: iter(()))

    def of(machine, requirements=SET):
        monkeypatch.setenv("MACHINE", machine)
        return {check.name: check for check in gpu_checks.gpu_checks(find_gpus(), requirements)}

    return of


def test_a_machine_that_fits_has_nothing_to_do(checks, monkeypatch):
    monkeypatch.setattr(gpu_checks, "MODEL_GB", 0)
    found = checks("h200")
    assert [check.advice for check in found.values()] == [""] * 4
    assert found["driver"].found == "580.159.04, fits CUDA 13" and found["GPU memory"].found == "140 GiB"
    assert found["GPU"].found == "NVIDIA H200, 143771 MiB, 98224 MiB free, bf16"


@pytest.mark.parametrize("machine", ["driver-535", "driver-550", "driver-570"])
def test_a_driver_too_old_for_cuda_13_has_three_ways_out(checks, monkeypatch, machine):
    driver = checks(machine)["driver"]
    assert driver.broken and "580 or newer is needed" in driver.found
    assert "cuda-compat-13-0" in driver.advice and "nvidia-driver-580" in driver.advice
    assert "make setup REQUIREMENTS=requirements-cu12.txt" in driver.advice
    monkeypatch.setattr(gpu_checks, "cuda_of_driver", lambda: 13)  # the package of the first way is installed
    assert not checks(machine)["driver"].broken
    monkeypatch.setattr(gpu_checks, "cuda_of_driver", lambda: 12)
    assert checks(machine)["driver"].broken
    assert not checks(machine, REPO / "requirements-cu12.txt")["driver"].broken


def test_a_driver_too_old_for_cuda_12_is_not_sent_to_the_cuda_12_set(checks):
    assert "REQUIREMENTS" not in checks("driver-470")["driver"].advice
    assert checks("driver-470", REPO / "requirements-cu12.txt")["driver"].broken


def test_no_gpu_has_no_gpu_checks(checks):
    assert checks("none") == {}


def test_the_smallest_of_several_gpus_and_mig_parts_counts(checks):
    assert checks("several")["GPU memory"].found == "40 GiB" and not checks("several")["GPU memory"].advice
    mig = checks("mig")["GPU memory"]
    assert mig.found == "20 GiB in the smallest MIG part" and "smaller model" in mig.advice


def test_small_cards_and_cards_without_bf16_are_named(checks):
    small = checks("24-gb")["GPU memory"]
    assert "smaller model" in small.advice and not small.broken
    plain = checks("no-bf16")["GPU"]
    assert "leave out --bf16" in plain.advice and not plain.broken
    assert checks("too-old-a-card")["GPU"].broken
    assert "unknown" in checks("no-answer")["GPU"].found and "GPU memory" not in checks("no-answer")


def test_a_full_disk_for_the_model_is_named_unless_the_model_is_there(checks, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_checks, "MODEL_GB", 10**9)
    cache = checks("h200")["model cache"]
    assert "HF_HOME" in cache.advice and str(tmp_path / "hub") in cache.found
    (tmp_path / "hub" / "models--Qwen--Qwen2.5-7B-Instruct").mkdir(parents=True)
    assert not checks("h200")["model cache"].advice


def test_a_missing_compiler_or_header_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpu_checks.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    compiler, header = gpu_checks.check_compiler()
    assert compiler.broken and "apt install gcc" in compiler.advice
    assert header.broken and "-dev" in header.advice


def test_the_cuda_of_a_set():
    assert (cuda_of(SET), cuda_of(REPO / "requirements-cu12.txt")) == (13, 12)


def test_the_vllm_of_another_environment_is_named(tmp_path, monkeypatch):
    for folder in ("own", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "vllm").touch(mode=0o755)
    monkeypatch.setattr(machine_checks.sys, "executable", str(tmp_path / "own" / "python"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'own'}")
    assert not list(machine_checks.check_vllm_command())
    monkeypatch.setenv("PATH", f"{tmp_path / 'other'}:{tmp_path / 'own'}")
    (check,) = machine_checks.check_vllm_command()
    assert str(tmp_path / "other" / "vllm") in check.found and "activate" in check.advice


def test_a_box_that_cannot_run_says_so_before_anything_is_fetched(checks, home):
    checks("driver-550")
    done = subprocess.run([sys.executable, REPO / "util" / "checks" / "before_setup.py", SET], capture_output=True,
                          text=True, env={**clean_environment(home), "MACHINE": "driver-550"})  # fmt: skip
    assert done.returncode == 1 and "550.54.15 is too old for CUDA 13" in done.stderr
    assert "Traceback" not in done.stderr


# --- a folder of wheels --------------------------------------------------------------------------------


def test_a_half_fetched_wheel_folder_names_what_is_missing_and_what_is_damaged(tmp_path):
    for name, text in (("Good_One-1.0-py3-none-any.whl", "whole"), ("half-2.0-py3-none-any.whl", "ha")):
        (tmp_path / name).write_text(text)
    good = sha256_file(tmp_path / "Good_One-1.0-py3-none-any.whl")
    lock = f"# comment\ngood-one==1.0 \\\n    --hash=sha256:{good}\nhalf[x]==2.0 --hash=sha256:{'0' * 64}\n"
    lock += "gone==3.0 ; sys_platform != 'win32' --hash=sha256:00\n"
    lock += "elsewhere==1 ; sys_platform == 'win32' --hash=sha256:00\n"
    pins = list(pins_of(lock))
    assert [pin.name for pin in pins] == ["good-one", "half", "gone", "elsewhere"]
    wanted = [pin for pin in pins if is_wanted(pin)]
    assert list(missing_pins(wanted, tmp_path)) == ["half==2.0 (damaged: half-2.0-py3-none-any.whl)", "gone==3.0"]


def test_every_line_of_the_locks_is_understood():
    for name in ("requirements.lock", "requirements-cpu.lock"):
        text = (REPO / name).read_text("utf-8")
        pins = list(pins_of(text))
        assert len(pins) == sum("==" in line and line[0] not in "# " for line in text.split("\n") if line)
        assert all(isinstance(pin, Pin) and pin.hashes for pin in pins)
