"""experiments/demo.sh with stand-ins for the scripts: which it runs, and how it ends when one fails or is stopped."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import wait_until

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
    for name in ("demo.sh", "check_settings.sh", "pocket_settings.sh", "one_process.py"):
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
    report = printed.partition("$ python eval/report.py")[2].partition("\n")[0]
    assert shlex.split(report)[-1].startswith("Subliminal learning in"), "the printed command can be pasted"


def test_several_seeds_are_compared_alone_and_together(demo, tmp_path):
    running = demo(SEEDS="42 43", KINDS="owl cat")
    printed, _ = running.communicate(timeout=40)
    assert running.returncode == 0 and "Open output/demo-seeds-42-43/report.html" in printed
    assert "SEEDS=" not in printed, "the hint for those who ran one seed"
    compared = [call.split() for call in calls(tmp_path) if "compare_arms" in call]
    assert [call[-1] for call in compared] == [
        f"output/{folder}/compare.json" for folder in ("demo-seed-42", "demo-seed-43", "demo-seeds-42-43")
    ]
    for role in ("student", "teacher"):
        files = {
            f"{kind}=output/demo-seed-{seed}/exact-{kind}-{role}.jsonl" for kind in ("owl", "cat") for seed in (42, 43)
        }
        assert files <= {*compared[-1]}
    assert {f"output/demo-seed-{seed}/exact-control-student.jsonl" for seed in (42, 43)} <= {*compared[-1]}


def test_a_seed_that_fails_ends_the_others(demo, tmp_path):
    running = demo(SEEDS="42 43", KINDS="owl cat", fail="numbers-cat-unfiltered")
    printed, _ = running.communicate(timeout=20)
    assert running.returncode == 3 and "The same command resumes the demo." in printed
    assert not any("seed 43" in call or "compare_arms" in call for call in calls(tmp_path))


def test_a_step_that_fails_ends_its_kind_and_nothing_is_compared(demo, tmp_path):
    running = demo(fail="numbers-cat-unfiltered")
    printed, _ = running.communicate(timeout=20)
    assert running.returncode == 3
    assert "job 0 | error: no luck" in printed and "The same command resumes the demo." in printed
    assert not any("cat-student" in call or "compare_arms" in call for call in calls(tmp_path))
    assert any("wolf-student" in call for call in calls(tmp_path)), "the other job goes on"


def test_ctrl_c_lets_the_steps_finish_and_starts_no_more(demo, tmp_path):
    running = demo(wait="teacher-owl.jsonl --seeds")
    wait_until((tmp_path / "waiting").exists, 20)
    os.killpg(running.pid, signal.SIGINT)
    printed, _ = running.communicate(timeout=20)
    assert running.returncode == 130
    assert "job 0 | finishing" in printed and printed.endswith("Stopped. The same command resumes it.\n")
    assert not any("exact-owl-teacher" in call for call in calls(tmp_path))


DRIVERS = ["demo", "divergence", "persona_against_trained_teacher", "smollm2", "real_weights", "remake_results",
           "data_signal/smollm2_audits", "data_signal/validate_pocket", "pilots/trees_or_sixteen_animals",
           "pocket_width"]  # fmt: skip


def run_driver(name, *arguments, cwd, **variables):
    done = subprocess.run([REPO / "experiments" / f"{name}.sh", *arguments], cwd=cwd, capture_output=True, text=True,
                          env={"PATH": os.environ["PATH"], **variables}, timeout=20)  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", DRIVERS)
def test_an_argument_of_a_driver_starts_nothing_and_help_shows_its_comment(name, tmp_path):
    code, out, err = run_driver(name, "--help", cwd=tmp_path)
    comment = (REPO / "experiments" / f"{name}.sh").read_text().splitlines()[1]
    assert (code, out.splitlines()[0], err) == (0, comment.removeprefix("# "), "") and "set -euo" not in out
    code, out, err = run_driver(name, "owl", cwd=tmp_path)
    assert (code, out) == (2, "") and "it takes no arguments (found: owl)" in err and err.count("\n") == 1


@pytest.mark.parametrize("name", DRIVERS)
def test_the_help_of_a_driver_lists_its_settings_with_their_defaults(name, tmp_path):
    code = (REPO / "experiments" / f"{name}.sh").read_text()
    if ". experiments/pocket_settings.sh" in code:
        code += (REPO / "experiments" / "pocket_settings.sh").read_text()
    read = set(re.findall(r"\$\{([A-Z]\w*):?[-=+]", code))
    _, said, _ = run_driver(name, "--help", cwd=tmp_path)
    listed = dict(re.findall(r"^  ([A-Z]+(?:_[A-Z]+)*) +(.+(?:\n {4}.*)*)", said, re.MULTILINE))
    assert {*listed} == read - {"VLLM_BASE_URL"}, "a server's address is a setting of the scripts"
    for setting, default in re.findall(r"\$\{([A-Z]\w*):?-([^${}]+)\}", code):
        if setting != "STEPS":  # all of them, if nothing is said
            assert f"({default}" in " ".join(listed[setting].split()), f"{setting}: {default} is not in --help"


@pytest.mark.parametrize(
    ("name", "variables", "message"),
    [
        ("demo", {"SEED": "042"}, "SEED=042 is not a whole number from 0 to 4294967295"),
        ("demo", {"SEED": "42 43"}, "SEED=42 43 is not a whole number"),
        ("demo", {"SEED": "4294967296"}, "SEED=4294967296 is not a whole number"),
        ("demo", {"SEEDS": "42 x"}, "SEEDS=x is not a whole number"),
        ("demo", {"SEEDS": "42 42"}, "SEEDS names 42 twice"),
        ("demo", {"SEEDS": "42 43", "DEMO": "output/mine"}, "leave out SEED and DEMO"),
        ("demo", {"JOBS": "0"}, "JOBS=0 is not a whole number from 1"),
        ("demo", {"ROWS": "abc"}, "ROWS=abc is not a whole number from 1"),
        ("demo", {"EPOCHS": "0"}, "EPOCHS=0 is not"),
        ("demo", {"KINDS": "owl cat owl"}, "KINDS names owl twice"),
        ("demo", {"KINDS": "owl control"}, "KINDS names control twice"),
        ("demo", {"KINDS": "owl"}, "KINDS names owl; students of two kinds or more are compared"),
        ("smollm2", {"ANIMALS": "owl"}, "ANIMALS names owl; students of two kinds"),
        ("divergence", {"SEED": "x"}, "SEED=x is not a whole number"),
        ("divergence", {"ARMS": "only witout"}, "ARMS names 'witout'; there is: only random without all-but-random"),
        ("divergence", {"DEFINITIONS": "pairs"}, "DEFINITIONS names 'pairs'; there is: schrodi pair gap"),
        ("divergence", {"ROWS": "3000"}, "ROWS names '3000'; there is: rich poor random"),
        ("smollm2", {"SEEDS": "101,102"}, "SEEDS=101,102 is not a whole number"),
        ("smollm2", {"NEUTRAL": "colours"}, "NEUTRAL names 'colours'; there is: owl dolphin"),
        ("smollm2", {"STEPS": "teachers"}, "STEPS names 'teachers'; there is: teacher numbers"),
        ("real_weights", {"STEPS": "students"}, "STEPS names 'students'; there is: vector lessons"),
        ("real_weights", {"DATA_TYPES": "numbers"}, "DATA_TYPES names 'numbers'; there is: code reasoning text"),
        ("real_weights", {"SEEDS": "1 1"}, "SEEDS names 1 twice"),
        ("real_weights", {"LAPTOP": "0"}, "LAPTOP names '0'; there is: 1"),
        ("real_weights", {"SERVER": "no"}, "SERVER names 'no'; there is: 1"),
        ("pocket_width", {"STEPS": "demo"}, "STEPS names 'demo'; there is: compare"),
        ("data_signal/validate_pocket", {"JOBS": "all"}, "JOBS=all is not a whole number"),
        ("data_signal/smollm2_audits", {"ROWS": "-1"}, "ROWS=-1 is not a whole number from 1"),
        ("data_signal/smollm2_audits", {"BATCH": "0"}, "BATCH=0 is not a whole number from 1"),
        ("data_signal/smollm2_audits", {"SEEDS": "302 302"}, "SEEDS names 302 twice"),
        ("pilots/trees_or_sixteen_animals", {"SEEDS": "first"}, "SEEDS=first is not a whole number"),
        ("pilots/trees_or_sixteen_animals", {"STEPS": "all"}, "STEPS names 'all'; there is: compare"),
        ("pilots/trees_or_sixteen_animals", {"BATCH": "0"}, "BATCH=0 is not a whole number from 1"),
        ("pilots/trees_or_sixteen_animals", {"TOKENS": "12k"}, "TOKENS=12k is not a whole number from 1"),
        ("pilots/trees_or_sixteen_animals", {"KINDS": "animals"}, "KINDS names 'animals'; there is: trees sixteen"),
    ],
)
def test_a_wrong_setting_of_a_driver_ends_it_before_any_work(name, variables, message, tmp_path):
    code, out, err = run_driver(name, cwd=tmp_path, **variables)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_a_misspelled_part_of_the_gpu_box_is_refused_before_hours_of_the_others(tmp_path):
    name, folder = "../bench/gpu_box/phases", tmp_path / "out"
    code, out, err = run_driver(name, "environment", "model", folder, cwd=tmp_path, PARTS="readme tets")
    assert (code, out) == (2, "") and "PARTS names 'tets'; there is: readme plan" in err and not folder.exists()
    code, out, err = run_driver(name, "environment", cwd=tmp_path)
    assert (code, out) == (2, "") and "it takes ENVIRONMENT MODEL_FOLDER OUTPUT_FOLDER" in err
    assert run_driver(name, "--help", cwd=tmp_path)[1].startswith("What is measured on a GPU machine")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("eval/evil.py --model x", "error: no script eval/evil.py; a line is a script and its arguments"),
        ("python eval/eval.py", "error: no script python;"),
        ("eval/eval.py 'x", "error: cannot read the command eval/eval.py 'x (No closing quotation)"),
    ],
)
def test_a_line_that_is_no_command_is_named(line, message):
    done = subprocess.run([sys.executable, "experiments/one_process.py"], input=f"\n{line}\n", cwd=REPO, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1
