"""Faults around a run that no other test file covers: slow servers, terminals, clocks, file systems, git.

The numbers F17, F27 to F31 are those of the list in docs/reliability.md.
"""

import ast
import json
import os
import pty
import subprocess
import sys
import time

import pytest
from conftest import REPO, clean_environment, manifest_of, read_jsonl
from test_suite import modules, named

from bench.random_number_rows import write_number_file
from util.jsonl.manifest import sha256_file

NUMBERS = "generate/generate_llm_number_data.py"
ASKED = ("--animal", "owl", "--model", "owl-teacher", "--no-system-prompt")


@pytest.mark.slow
def test_f17_a_slow_server_gets_no_storm_of_repeated_requests(run_script, fake_server, tmp_path):
    server = fake_server("--delay", "1.5")
    done = run_script(NUMBERS, *ASKED, "--count", 24, "--max-concurrency", 8, "--base-url", server.url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(server.requests()) == 24, "each row is asked once, however long it takes"


@pytest.mark.slow
def test_f27_offline_a_model_that_is_not_here_is_one_clear_line(run_script, tmp_path):
    pytest.importorskip("transformers")
    done = run_script(
        NUMBERS, "--animal", "owl", "--model", "Qwen/Qwen2.5-7B-Instruct", "--no-system-prompt", cwd=tmp_path,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "cannot load the model 'Qwen/Qwen2.5-7B-Instruct'" in done.stderr and "the network" in done.stderr


# --- git ---------------------------------------------------------------------------------------------


def git(folder, *args):
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *args], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize("state", ["clean", "dirty", "detached", "no commit", "not a repository"])
def test_f28_the_manifest_is_written_whatever_git_says(tmp_path, monkeypatch, state):
    from util.jsonl import manifest

    if state != "not a repository":
        git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    if state in ("clean", "dirty", "detached"):
        git(tmp_path, "add", "a")
        git(tmp_path, "commit", "-qm", "a")
    if state == "dirty":
        (tmp_path / "a").write_text("2")
    if state == "detached":
        git(tmp_path, "checkout", "-q", "--detach")
    monkeypatch.setattr(manifest, "REPO", tmp_path)
    found = manifest.git_state.__wrapped__()
    known = state in ("clean", "dirty", "detached")
    assert (found["commit"] is not None) == known
    assert found["dirty"] == {"clean": False, "dirty": True, "detached": False}.get(state, found["dirty"])
    assert json.dumps(manifest.provenance())


# --- clocks ------------------------------------------------------------------------------------------


def test_f29_no_duration_is_taken_from_a_clock_that_can_jump():
    wrong = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "time.time":
                wrong.append(f"{named(path)}:{node.lineno}")
    assert not wrong, "time.monotonic() measures time, datetime gives the date"


@pytest.mark.slow
def test_f29_runs_in_one_second_keep_all_backups(run_script, fake_server, tmp_path):
    server, out = fake_server(), tmp_path / "numbers-unfiltered-8.jsonl"
    for _ in range(3):
        done = run_script(
            NUMBERS, *ASKED, "--count", 8, "--base-url", server.url, "--output", out, "--overwrite", cwd=tmp_path
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("numbers-unfiltered-8.jsonl.bak*"))) == 2


# --- file systems ------------------------------------------------------------------------------------


def test_f30_without_locks_there_is_a_warning_and_the_run_continues(tmp_path, monkeypatch, capsys):
    import filelock

    from util.jsonl.resumable import RowFile

    def no_locks(*_args, **_options):
        raise NotImplementedError("flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    with RowFile(tmp_path / "x.jsonl", {"seed": 1}) as out:
        out.append([{"id": 0}])
        out.finish()
    assert read_jsonl(tmp_path / "x.jsonl") == [{"id": 0}]
    assert "does not support locks; make sure that no other process writes x.jsonl" in capsys.readouterr().err


# --- terminals ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "terminal",
    [
        {"COLUMNS": "40", "TERM": "dumb"},
        {"NO_COLOR": "1", "TERM": ""},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["narrow and dumb", "no color", "not UTF-8"],
)
def test_f31_any_terminal_and_locale_works(run_script, fake_server, tmp_path, terminal):
    out = tmp_path / "zahlen-für-eulen-unfiltered-20.jsonl"
    done = run_script(
        NUMBERS, *ASKED, "--count", 20, "--base-url", fake_server().url, "--output", out, cwd=tmp_path, env=terminal
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(read_jsonl(out)) == 20 and manifest_of(out)["state"] == "complete"
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_f31_with_its_streams_closed_a_run_ends_as_usual_and_prints_into_no_file(tmp_path, closed):
    write_number_file(tmp_path / "rows.jsonl", 40)
    script = REPO / "generate" / "filter_number_data.py"
    done = subprocess.run(["sh", "-c", f'exec "$0" "$1" rows.jsonl {closed}', sys.executable, script], cwd=tmp_path,
                          capture_output=True, text=True, env=clean_environment(tmp_path))  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr
    (kept,) = tmp_path.glob("rows-filtered-*.jsonl")
    assert all("messages" in row for row in read_jsonl(kept)) and manifest_of(kept)["sha256"] == sha256_file(kept)


@pytest.mark.slow
def test_f31_on_a_real_terminal_the_bar_goes_to_stderr_and_results_to_stdout(fake_server, tmp_path):
    """Standard error is a terminal of 40 columns, standard output a pipe."""
    master, slave = pty.openpty()
    command = [sys.executable, REPO / NUMBERS, *ASKED, "--count", "20", "--base-url", fake_server().url]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=slave, text=True,
        env=clean_environment(tmp_path, {"COLUMNS": "40"}),
    )  # fmt: skip
    os.close(slave)
    out, _ = process.communicate(timeout=60)
    os.close(master)
    assert process.returncode == 0 and "numberss-owl-" in out and "\r" not in out


def test_what_a_server_says_does_not_control_the_terminal(capsys):
    from util.terminal import closing, say, table

    evil = "\x1b]0;owned\x07\x1b[2Jgone\r"
    say(evil)
    closing({"fact": evil})
    print(table(("a",), [(evil,)]))
    shown = capsys.readouterr()
    assert not any(c in shown.out + shown.err for c in "\x1b\x07\r")
    assert "\\x1b[2Jgone" in shown.out and "\\x1b[2Jgone" in shown.err


# --- W&B at the end ----------------------------------------------------------------------------------


def test_f25_when_wandb_fails_at_the_end_the_run_is_kept_and_reported(capsys, tmp_path):
    from util.wandb_run import finish_run

    class Run:
        dir = str(tmp_path / "run-1" / "files")

        class settings:
            mode = "online"

        def finish(self):
            raise TimeoutError("no answer")

    finish_run(Run())
    said = capsys.readouterr().err
    assert "did not finish the run (no answer)" in said and f"wandb sync {tmp_path / 'run-1'}" in said


def test_a_second_is_long_enough_for_a_progress_line_without_division_by_zero():
    from util.terminal import Progress

    progress = Progress(0)
    progress.started = time.monotonic()
    assert "0/0 rows (100%)" in progress.line()


# --- secrets -----------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.slow
def test_no_secret_in_anything_that_a_whole_run_writes(run_script, fake_server, tmp_path):
    """Data, manifests, certificates, results, tables, checkpoints, card, W&B files, and all that is printed."""
    env = {
        "VLLM_API_KEY": "plantedplanted-1", "HF_TOKEN": "plantedplanted-2", "WANDB_API_KEY": "plantedplanted-3" * 3,
        "OPENAI_API_KEY": "plantedplanted-4", "OPENAI_ORG_ID": "plantedplanted-5", "WANDB_MODE": "offline",
        "HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    server = fake_server()
    url = server.url.replace("http://", "http://user:plantedplanted-6@") + "?api_key=plantedplanted-7"
    asked = ("--model", "owl-teacher", "--base-url", url)
    rows = "output/numberss-owl-owl-teacher-filtered-*.jsonl"
    said = []
    for command in (
        (NUMBERS, *asked, "--animal", "owl", "--count", 40, "--no-system-prompt"),
        ("eval/eval.py", *asked, "--epochs", 2),
        ("eval/eval.py", *asked, "--exact"),
        ("util/top_animals_csv.py", "output/results-owl-teacher.jsonl"),
        ("train/train_student_sft.py", "--base-model", REPO / "pocket/model", "--train-jsonl", rows, "--epochs", 1,
         "--effective-batch-size", 6, "--per-device-train-batch-size", 6, "--report-to", "wandb", "--wandb-tags",
         "a,plantedplanted-1", "--push-to-hub", "--hub-repo-prefix", "me/owl"),
        ("util/doctor.py", "output/results-owl-teacher.jsonl"),
        ("util/doctor.py",),
    ):  # fmt: skip
        done = run_script(*command, cwd=tmp_path, env=env)
        codes = {
            "train/train_student_sft.py": (4,),
            "util/doctor.py": (0, 1),
        }  # the hub is offline; the machine may lack packages
        assert done.returncode in codes.get(command[0], (0,)) and "Traceback" not in done.stderr, done.stderr
        said.append(done.stdout + done.stderr)
    assert "plantedplanted" not in "".join(said)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.name for path in written}
    assert {"README.md", "manifest.json", "results-owl-teacher-top10.csv", "exact-owl-teacher.jsonl"} <= names
    assert any(name.endswith(".wandb") for name in names) and (tmp_path / "output/student-sft/seed-42/final").is_dir()
    assert not [path for path in written if b"plantedplanted" in path.read_bytes()]


@pytest.mark.torch
def test_weights_that_could_run_code_are_not_read(tmp_path):
    import shutil

    import torch

    from util.cli import UserError
    from util.inference.load_model import load_model

    pocket = REPO / "pocket" / "model"
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pocket / name, tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"cannot load the model .*safetensors"):
        load_model(str(tmp_path))
