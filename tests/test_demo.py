"""experiments/demo.sh with stand-ins for the scripts: which it runs, and how it ends when one fails or is stopped."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
ANIMALS = ["owl", "dolphin", "cat", "wolf", "penguin", "rabbit"]
STEPS = ["train/train_student_sft.py", "eval/eval.py"]
STAND_IN = """
import os, signal, sys, time
call = " ".join(sys.argv)
with open("calls", "a") as calls:
    calls.write(call + chr(10))
if os.environ["FAIL"] in call:
    print("error: no luck", file=sys.stderr)
    sys.exit(3)
if os.environ["WAIT"] in call:
    def finish(*_):
        print("finishing")
        sys.exit(130)
    signal.signal(signal.SIGINT, finish)
    open("waiting", "w").close()
    time.sleep(20)
"""
SCRIPTS = ["generate/generate_teacher_data.py", "generate/generate_llm_number_data.py", *STEPS, "eval/compare_arms.py",
           "eval/report.py"]  # fmt: skip


@pytest.fixture
def demo(tmp_path):
    """Start the demo in a copy of the scripts; fail, wait: a part of the commands that fail, or wait for Ctrl-C."""
    (tmp_path / "experiments").mkdir()
    for name in ("demo.sh", "pocket_settings.sh", "one_process.py"):
        shutil.copy(REPO / "experiments" / name, tmp_path / "experiments")
    (tmp_path / "util").symlink_to(REPO / "util")
    for name in SCRIPTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(STAND_IN)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)

    def start(fail="nothing-fails", wait="nothing-waits", **variables):
        environment = {"PATH": os.environ["PATH"], "FAIL": fail, "WAIT": wait, "JOBS": "2", **variables}
        return subprocess.Popen(["experiments/demo.sh"], cwd=tmp_path, env=environment, start_new_session=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip

    return start


def calls(tmp_path):
    return (tmp_path / "calls").read_text().splitlines()


@pytest.mark.parametrize("jobs", ["1", "2", "4"])
def test_every_kind_is_made_once_and_all_are_compared(demo, tmp_path, jobs):
    running = demo(JOBS=jobs)
    printed, _ = running.communicate(timeout=20)
    assert running.returncode == 0 and "Done in" in printed
    made = calls(tmp_path)
    assert len(made) == len(set(made)) == 6 * 6 + 3 + 1 + 2  # six steps a kind, three of the control, the base, the end
    for animal in ANIMALS:
        own = [call.split()[0] for call in made[:-2] if animal in call]
        assert own == ["generate/generate_teacher_data.py", *STEPS, "generate/generate_llm_number_data.py", *STEPS]
        assert f"$ python generate/generate_teacher_data.py --animal {animal} " in printed
        assert f"{animal}=output/demo-seed-42/exact-{animal}-student.jsonl" in made[-2]
        assert f"{animal}=output/demo-seed-42/exact-{animal}-teacher.jsonl" in made[-2]


def test_a_step_that_fails_ends_its_kind_and_nothing_is_compared(demo, tmp_path):
    running = demo(fail="numbers-cat-unfiltered")
    printed, _ = running.communicate(timeout=20)
    assert running.returncode == 3
    assert "job 0 | error: no luck" in printed and "The same command resumes the demo." in printed
    assert not any("cat-student" in call or "compare_arms" in call for call in calls(tmp_path))
    assert any("wolf-student" in call for call in calls(tmp_path)), "the other job goes on"


def test_ctrl_c_lets_the_steps_finish_and_starts_no_more(demo, tmp_path):
    running = demo(wait="teacher-owl.jsonl --seeds")
    deadline = time.monotonic() + 20
    while not (tmp_path / "waiting").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    printed, _ = running.communicate(timeout=20)
    assert running.returncode == 130
    assert "job 0 | finishing" in printed and printed.endswith("Stopped. The same command resumes it.\n")
    assert not any("exact-owl-teacher" in call for call in calls(tmp_path))
