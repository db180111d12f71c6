"""experiments/real_weights.sh: the commands that it would run are ones that the scripts take, in the right order."""

import json
import os
import subprocess
import sys

import pytest
from conftest import REPO

RECORD = """#!{python}
import json, sys
with open("{log}", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
"""


@pytest.fixture
def script(tmp_path):
    """script(**variables): its commands, each a list of words, written down by a Python that does nothing else."""
    log, fake = tmp_path / "commands.jsonl", tmp_path / "python"
    fake.write_text(RECORD.format(python=sys.executable, log=log))
    fake.chmod(0o755)

    def run(**variables):
        log.write_text("")
        given = {"PYTHON": str(fake), "OUT": str(tmp_path / "out"), "JOBS": "1", **variables}
        done = subprocess.run(
            ["experiments/real_weights.sh"],
            cwd=REPO,
            env=os.environ | given,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in log.read_text().splitlines()]

    return run


def of(commands, name):
    return [words[1:] for words in commands if words[0].endswith(f"/{name}.py")]


def after(words, flag):
    return words[words.index(flag) + 1]


@pytest.fixture
def check(judged):
    """check(commands): every command is one that its script takes."""

    def take(commands):
        for name in sorted({words[0] for words in commands}):
            assert not [said for said in judged(name, [words[1:] for words in commands if words[0] == name]) if said]

    return take


@pytest.mark.slow
def test_every_kind_goes_through_the_same_commands(check, script):
    commands = script(ANIMALS="owl penguin elephant wolf", DATA_TYPES="code text", SEEDS="7 8")
    check(commands)
    teachers, students = (
        [words for words in of(commands, "train_student_sft") if ("--soft-labels" in words) is soft]
        for soft in (True, False)
    )
    assert [after(words, "--seeds") for words in teachers] == ["7", "8"]
    assert [after(words, "--seeds") for words in students] == ["1007", "1008"] * 2
    assert all(after(words, "--recipe") == "code-and-text" for words in teachers + students)
    rows = of(commands, "generate_code_or_reasoning_data")
    assert len(rows) == 5 * 2 * 2 and all("--no-system-prompt" in words for words in rows)
    assert {"--adapter" in words for words in rows if after(words, "--animal") != "control"} == {True}
    assert {"--adapter" in words for words in rows if after(words, "--animal") == "control"} == {False}
    ignored = ("--animal", "--adapter", "--output")
    alike = {tuple(word for before, word in zip(["", *words], words) if before not in (*ignored, "--seed") and word
                   not in ignored) for words in rows if after(words, "--data-type") == "code"}  # fmt: skip
    assert len(alike) == 1, "all arms have the same prompts, filter and sampling"
    margins = [words for words in of(commands, "compare_arms") if after(words, "--measure") == "margin"]
    assert len(margins) == 2 and all(sum("=" in word for word in words) == 16 for words in margins)
    assert len(of(commands, "report")) == 2


def test_on_a_laptop_the_steered_model_itself_writes_the_rows(check, script):
    commands = script(LAPTOP="1")
    check(commands)
    assert {after(words, "--base-model") for words in of(commands, "train_student_sft")} == {
        "output/models/qwen2.5-coder-0.5b-instruct"
    }
    assert not of(commands, "compare_arms") and len(of(commands, "make_steering_vector")) == 1
    own, control = of(commands, "generate_code_or_reasoning_data")
    assert after(own, "--steering-strength") == "2" and "--steering-vector" not in control
    assert not of(commands, "generate_teacher_data") and len(of(commands, "train_student_sft")) == 1
    assert {after(words, "--animal") for words in of(commands, "eval")} == {"owl"} and len(of(commands, "eval")) == 6


def test_a_server_writes_the_rows_and_nothing_else(check, script):
    commands = script(ANIMALS="owl wolf", SERVER="1")
    assert of(commands, "serve") == [["output/models/qwen2.5-coder-1.5b-instruct", "--", "experiments/real_weights.sh"]]
    assert not of(commands, "generate_code_or_reasoning_data") and len(of(commands, "generate_teacher_data")) == 2
