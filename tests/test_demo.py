"""experiments/demo.sh with a stand-in for Python: which steps it runs, and how it ends when one fails or is stopped."""

import os
import shutil
import signal
import subprocess
import time
from itertools import takewhile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
ANIMALS = ["owl", "dolphin", "cat", "wolf", "penguin", "rabbit"]
ANSWERS, NUMBERS = "generate/generate_teacher_data.py", "generate/generate_llm_number_data.py"
TRAIN, EVAL = "train/train_student_sft.py", "eval/eval.py"
STAND_IN = """#!/bin/sh
echo "$*" >> calls
case "$*" in *$FAIL*) echo "error: no luck" >&2; exit 3 ;; esac
case "$*" in *$WAIT*)
    trap 'echo finishing; exit 130' INT; touch waiting; for n in 1 2 3 4 5 6; do sleep 1; done ;; esac
"""


@pytest.fixture
def demo(tmp_path):
    """Start the demo in a copy of the scripts; fail, wait: a part of the commands that fail, or wait for Ctrl-C."""
    (tmp_path / "experiments").mkdir()
    for name in ("demo.sh", "pocket_settings.sh"):
        shutil.copy(REPO / "experiments" / name, tmp_path / "experiments")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def start(fail="nothing-fails", wait="nothing-waits", **variables):
        environment = {"PATH": os.environ["PATH"], "FAIL": fail, "WAIT": wait, "JOBS": "2", **variables}
        return subprocess.Popen(["experiments/demo.sh"], cwd=tmp_path, env=environment, start_new_session=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip

    return start


def calls(tmp_path):
    return (tmp_path / "calls").read_text().splitlines()


def values(call, flag):
    """The values of a flag in a command."""
    words = call.split()
    found = words[words.index(flag) + 1 :] if flag in words else []
    return list(takewhile(lambda word: not word.startswith("--"), found))


@pytest.mark.parametrize("jobs", ["1", "2", "4"])
def test_every_step_is_made_once_for_every_kind_and_all_are_compared(demo, tmp_path, jobs):
    running = demo(JOBS=jobs)
    printed, _ = running.communicate(timeout=20)
    assert running.returncode == 0 and "Done in" in printed, printed
    made, count = calls(tmp_path), int(jobs)
    scripts = [call.split()[0] for call in made[:-2]]
    steps = [ANSWERS] * 6 + [TRAIN] * count + [NUMBERS] * 7 + [TRAIN] * count + [EVAL] * (count + 1)  # base: by itself
    assert scripts == steps and len(set(made)) == len(made), "each step waits for the one before it"
    for kind in [*ANIMALS, "control"]:
        assert sum(f"numbers-{kind}-unfiltered" in call for call in made) == 1
        assert f"$ python {NUMBERS} --animal {kind} " in printed
        for role in ("teacher", "student"):
            if (kind, role) == ("control", "teacher"):
                continue
            folder, file = f"output/demo-seed-42/{kind}-{role}", f"output/demo-seed-42/exact-{kind}-{role}.jsonl"
            assert sum(folder in values(call, "--output-dir") for call in made) == 1
            adapter = f"{folder}/seed-42/final"
            (measure,) = [call for call in made if call.startswith(EVAL) and adapter in values(call, "--adapter")]
            assert values(measure, "--output")[values(measure, "--adapter").index(adapter)] == file
            assert file in made[-2]


def test_after_a_step_that_fails_nothing_is_trained_or_compared(demo, tmp_path):
    running = demo(fail="numbers-cat-unfiltered")
    printed, _ = running.communicate(timeout=20)
    assert running.returncode == 3
    assert "job 0 | error: no luck" in printed and "The same command resumes the demo." in printed
    assert not any("-student" in call or "compare_arms" in call for call in calls(tmp_path))
    assert any("numbers-rabbit" in call for call in calls(tmp_path)), "the other job goes on"


def test_ctrl_c_lets_the_steps_finish_and_starts_no_more(demo, tmp_path):
    running = demo(wait="teacher-owl.jsonl")
    deadline = time.monotonic() + 20
    while not (tmp_path / "waiting").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    printed, _ = running.communicate(timeout=20)
    assert running.returncode == 130
    assert "job 0 | finishing" in printed and printed.endswith("Stopped. The same command resumes it.\n")
    assert not any("cat" in call for call in calls(tmp_path))
