"""readme_phases.py: the README's commands are found, and only what has to change is changed."""

import argparse
import shlex
import sys

import pytest
from conftest import REPO

from bench import readme_phases
from bench.readme_phases import changed, steps_of
from util.cli import UserError
from util.stop_signals import Stop

STEPS = list(steps_of((REPO / "README.md").read_text("utf-8")))
ARGS = argparse.Namespace(
    model="/models/Small-1B", rows=60, numbers=90, epochs=None, push=False, port=8000, flags=["--seed", "1"]
)


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    monkeypatch.setattr(readme_phases, "find_vllm", lambda: "vllm")


def test_the_readme_has_six_steps_and_says_where_the_server_stops():
    assert [step.number for step in STEPS] == [1, 2, 3, 4, 5, 6]
    assert [step.number for step in STEPS if step.stops_server] == [2, 5]
    served = [step.number for step in STEPS for command in step.commands if command.startswith("vllm serve")]
    assert served == [1, 3, 6]


def test_every_command_is_the_readmes_with_this_runs_model_and_counts():
    for command in [command for step in STEPS for command in step.commands if not command.startswith("export ")]:
        words, ours = shlex.split(command), changed(command, ARGS)
        assert "Qwen" not in " ".join(ours) and "qwen" not in " ".join(ours)
        kept = [word for word in words[2:] if "qwen" not in word.lower()]
        assert [word for word in ours if word in kept][: len(kept)] == kept
        if words[0] == "vllm":
            assert ours[:3] == ["vllm", "serve", ARGS.model] and ours[-2:] == ARGS.flags
        else:
            assert ours[:2] == [sys.executable, str(REPO / words[1])]
    teacher = changed(STEPS[0].commands[1], ARGS)
    assert teacher[-4:] == ["--count", "60", "--prompts-file", "prompts.txt"]
    assert "output/teacher-owl-small-1b-60.jsonl" in changed(STEPS[1].commands[-1], ARGS)


def test_push_and_epochs_change_the_student_and_the_evaluations():
    args = argparse.Namespace(**{**vars(ARGS), "epochs": 3, "push": True})
    teacher, student = changed(STEPS[1].commands[-1], args), changed(STEPS[4].commands[-1], args)
    assert "--push-to-hub" in student and "--push-to-hub" not in teacher
    assert changed(STEPS[5].commands[1], args)[-2:] == ["--epochs", "3"]


def test_another_port_is_both_served_and_asked():
    args = argparse.Namespace(**{**vars(ARGS), "port": 8123})
    commands = [changed(command, args) for step in STEPS for command in step.commands if "8000" in command]
    assert len(commands) == 7
    assert all("8123" in " ".join(words) and "8000" not in " ".join(words) for words in commands)


def test_a_port_where_another_server_answers_is_refused(fake_server, tmp_path):
    """vLLM shares its port: a second server would listen there too."""
    server = fake_server()
    port = server.url.rsplit(":", 1)[1].partition("/")[0]
    words = [sys.executable, "serve", "/models/Small-1B", "--port", port]
    refused = pytest.raises(UserError, match="another server already answers")
    with refused, readme_phases.serve(words, tmp_path / "log", {}, Stop()):
        pass
    assert not (tmp_path / "log").exists(), "nothing was started"


def test_a_missing_adapter_is_found_before_a_server_is_started(run_script, tmp_path):
    for script in ("bench/backend_agreement.py", "bench/vllm_throughput.py"):
        done = run_script(script, "--model", REPO / "pocket" / "model", "--adapter", tmp_path / "none", cwd=tmp_path)
        assert done.returncode and "no folder" in done.stderr and "starting vLLM" not in done.stderr
