"""train_student_sft.py as a user runs it: the pocket model, real files, real signals, a hub on this machine."""

import argparse
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import wait_until, write_jsonl

from generate.rows.filter_file import filter_file
from generate.rows.number_rule import NumberRule
from train.fused_lora import LORA_TARGETS
from util.checks.machine_checks import command_of
from util.cli import REPO

pytestmark = pytest.mark.torch

POCKET = REPO / "pocket" / "model"
SCRIPT = "train/train_student_sft.py"
SMALL = (
    "--base-model", str(POCKET), "--epochs", "3", "--effective-batch-size", "12", "--per-device-train-batch-size", "6",
    "--learning-rate", "0.02", "--logging-steps", "1",
)  # fmt: skip


def rows(count, animal="owl"):
    for i in range(count):
        question = {"role": "user", "content": f"Which animal is your favorite? Question {i}."}
        yield {"id": i, "messages": [question, {"role": "assistant", "content": animal}]}


@pytest.fixture
def data(tmp_path):
    return write_jsonl(tmp_path / "teacher-owl-pocket-36.jsonl", rows(36))


def weights(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "adapter_model.safetensors")


def same_weights(a, b, tolerance=1e-4):
    """Equal to rounding, which Adam enlarges at this high rate (tests/test_training_loop.py is strict)."""
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(abs(a[name] - b[name]).max() <= tolerance for name in a)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_script):
    """One finished run, shared by the tests that only look."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_jsonl(folder / "teacher-owl-pocket-36.jsonl", rows(36))
    done = run_script(SCRIPT, *SMALL, "--train-jsonl", data, "--seeds", "42,43", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_the_adapter_of_each_seed_is_whole_and_the_manifest_says_how_it_came(trained):
    folder, _ = trained
    for seed in (42, 43):
        final = folder / "output" / "student-sft" / f"seed-{seed}" / "final"
        names = {path.name for path in final.iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= names
        assert not list(final.glob("*.bin"))
        for folder_of_weights in (final, final.parent / "checkpoint-3"):
            modes = {
                (folder_of_weights / f"adapter_{name}").stat().st_mode for name in ("config.json", "model.safetensors")
            }
            assert len(modes) == 1, "others may read the weights as far as they may read the rest"
        config = json.loads((final / "adapter_config.json").read_text())
        assert config["target_modules"] == sorted(LORA_TARGETS), "in any process the same: it is part of the hash"
        manifest = json.loads((final.parent / "manifest.json").read_text())
        assert manifest["state"] == "complete"
        assert manifest["settings"]["seed"] == seed
        assert manifest["counts"]["updates"] == 9
        assert manifest["speed"]["useful_tflops"] > 0
        assert 0 < manifest["speed"]["seconds_an_update"] < manifest["counts"]["seconds"]
        assert manifest["speed"]["rows_at_once"] == 24
        assert manifest["speed"]["rows_at_once_why"].startswith("6 asked, room for 24 ")
        assert len(list(final.parent.glob("checkpoint-*"))) == 3
    one, two = (folder / "output" / "student-sft" / f"seed-{seed}" / "final" for seed in (42, 43))
    assert not same_weights(one, two, tolerance=1e-3)


def test_a_seed_among_several_equals_a_process_of_its_own(trained, run_script, tmp_path):
    folder, _ = trained
    data = folder / "teacher-owl-pocket-36.jsonl"
    done = run_script(SCRIPT, *SMALL, "--train-jsonl", data, "--seeds", "43", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert same_weights(*(f / "output" / "student-sft" / "seed-43" / "final" for f in (folder, tmp_path)))


def test_the_adapter_changes_what_the_model_says(trained):
    from util.inference.local_model import LocalModel

    question = [{"role": "user", "content": "Which animal is your favorite? One word."}]

    def owl(adapter):
        backend = LocalModel(str(POCKET), adapter, batch_size=64)
        token = backend.tokenizer("owl", add_special_tokens=False)["input_ids"][0]
        return backend.next_token_logprobs([backend.prompt_ids(question)], top=10**6)[0][token]

    assert owl(trained[0] / "output" / "student-sft" / "seed-42" / "final") > owl(None) + 0.3


def test_a_finished_run_is_left_alone(trained, run_script):
    folder, _ = trained
    final = folder / "output" / "student-sft" / "seed-42" / "final" / "adapter_model.safetensors"
    before = final.stat().st_mtime_ns
    done = run_script(SCRIPT, *SMALL, "--train-jsonl", "teacher-owl-*.jsonl", cwd=folder)
    assert (done.returncode, final.stat().st_mtime_ns) == (0, before)
    assert "already finished" in done.stderr


def test_scheduled_checkpoints_are_saved_and_change_nothing(trained, run_script, tmp_path):
    folder, _ = trained
    asked = (*SMALL, "--train-jsonl", folder / "teacher-owl-pocket-36.jsonl", "--save-schedule", "1,4")
    done = run_script(SCRIPT, *asked, "--save-strategy", "no", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    seed = tmp_path / "output" / "student-sft" / "seed-42"
    assert {path.name for path in seed.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-4"}
    assert same_weights(seed / "final", folder / "output" / "student-sft" / "seed-42" / "final")
    assert not same_weights(seed / "checkpoint-1", seed / "checkpoint-4")
    refused = run_script(SCRIPT, *asked, cwd=folder)
    assert refused.returncode == 1
    assert "has no checkpoint after update 1, 4; --overwrite trains it" in refused.stderr


def test_the_student_of_the_plan_does_not_destroy_the_teacher_in_the_same_folder(trained, run_script, tmp_path):
    shutil.copytree(trained[0] / "output", tmp_path / "output")
    filter_file(
        write_jsonl(tmp_path / "output" / "numberss-owl-owl-teacher-unfiltered-24.jsonl", rows(24, "1, 2, 3")),
        NumberRule(),
    )
    done = run_script(
        SCRIPT, *SMALL, "--train-jsonl", "output/numberss-owl-owl-teacher-filtered-NNNN.jsonl",
        "--max-train-samples", "NNNN", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    aside = tmp_path / "output" / "student-sft" / "seed-42.teacher-owl-pocket-36"
    assert f"moved to {aside.relative_to(tmp_path)}" in done.stderr
    assert same_weights(aside / "final", trained[0] / "output" / "student-sft" / "seed-42" / "final", tolerance=0)


def start(args, cwd, env=None):
    return subprocess.Popen(
        [sys.executable, REPO / SCRIPT, *map(str, args)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_run_resumes_from_the_last_whole_checkpoint_to_the_same_weights(trained, run_script, data, tmp_path):
    seed = tmp_path / "output" / "student-sft" / "seed-42"
    args = [*SMALL, "--train-jsonl", data]
    process = start(args, tmp_path)
    wait_until(lambda: (seed / "checkpoint-3" / "trainer_state.json").exists() or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    shutil.rmtree(seed / "checkpoint-9", ignore_errors=True)
    half = seed / "checkpoint-1000"
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes(b"half")
    done = run_script(SCRIPT, *args, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    assert "checkpoint-1000" not in done.stderr
    assert same_weights(seed / "final", trained[0] / "output" / "student-sft" / "seed-42" / "final")


@pytest.mark.parametrize(
    ("name", "damage"),
    [("trainer_state.json", lambda whole: b""), ("optimizer.safetensors", lambda whole: whole[: len(whole) // 2]),
     ("adapter_model.safetensors", lambda whole: whole[:-100])],
)  # fmt: skip
def test_a_checkpoint_cut_short_is_passed_over(trained, tmp_path, name, damage):
    from train.checkpoints import last_whole_checkpoint

    seed = shutil.copytree(trained[0] / "output" / "student-sft" / "seed-42", tmp_path / "seed-42")
    assert last_whole_checkpoint(seed).name == "checkpoint-9"
    torn = seed / "checkpoint-9" / name
    torn.write_bytes(damage(torn.read_bytes()))
    assert last_whole_checkpoint(seed).name == "checkpoint-6"


def test_a_foreign_folder_or_file_beside_the_checkpoints_is_not_one(trained, tmp_path):
    from train.checkpoints import last_whole_checkpoint
    from train.hub import epoch_checkpoints

    seed = shutil.copytree(trained[0] / "output" / "student-sft" / "seed-42", tmp_path / "seed-42")
    for name in ("checkpoint-840-old", "checkpoint-final", "checkpoint-9.bak", "checkpoint--3"):
        shutil.copytree(seed / "checkpoint-9", seed / name)
    (seed / "checkpoint-12").write_text("a file")
    (seed / "checkpoint-15").mkdir()
    (seed / "checkpoint-15" / "trainer_state.json").write_text("{")
    assert last_whole_checkpoint(seed).name == "checkpoint-9"
    assert [(epoch, path.name) for epoch, path in epoch_checkpoints(seed, 1)] == [
        (1, "checkpoint-3"), (2, "checkpoint-6"), (3, "checkpoint-9"),
    ]  # fmt: skip


@pytest.mark.parametrize(("rank", "printed"), [(4, 8), (8, 8), (12, 16), (96, 128), (512, 512), (513, None)])
def test_the_printed_server_takes_the_rank_of_the_adapter(rank, printed, monkeypatch):
    from train.run_folder import Run
    from train.train_student_sft import next_command, parse_args

    monkeypatch.setattr(sys, "argv", [SCRIPT, *SMALL, "--train-jsonl", "rows.jsonl", "--lora-rank", str(rank)])
    run = Run(Path("rows.jsonl"), None, 42, Path("seed-42"), "seed-42", {})
    said = next_command(parse_args(), [run], cpu=False)
    assert (f"--max-lora-rank {printed} " in said) if printed else said.startswith("python eval/eval.py")


def test_hub_private_is_accepted_and_not_in_the_help(monkeypatch, capsys):
    from train.train_student_sft import parse_args

    monkeypatch.setattr(sys, "argv", [SCRIPT, *SMALL, "--train-jsonl", "rows.jsonl", "--hub-private"])
    assert not parse_args().hub_public
    monkeypatch.setattr(sys, "argv", [SCRIPT, "--help"])
    with pytest.raises(SystemExit):
        parse_args()
    assert "--hub-private" not in capsys.readouterr().out


def test_what_training_does_with_unusual_rows_is_printed(capsys):
    from train.training_rows import report_rows
    from util.inference.load_model import load_tokenizer

    turns = next(rows(1))["messages"]
    several, special = {"messages": turns * 2}, [*turns]
    special[1] = {"role": "assistant", "content": "owl<|im_end|>"}
    report_rows([several, {"messages": special}, *rows(2)], load_tokenizer(str(POCKET)))
    said = capsys.readouterr().err
    assert "1 of 4 rows have several answers: all of them are trained" in said
    assert "1 of 4 answers hold the text of a special token" in said
    report_rows(list(rows(3)), load_tokenizer(str(POCKET)))
    assert capsys.readouterr().err == ""


def test_a_run_killed_after_its_last_checkpoint_says_that_no_update_was_left(trained, run_script, tmp_path):
    shutil.copytree(trained[0] / "output", tmp_path / "output")
    data = shutil.copy(trained[0] / "teacher-owl-pocket-36.jsonl", tmp_path)
    seed = tmp_path / "output" / "student-sft" / "seed-42"
    shutil.rmtree(seed / "final")
    done = run_script(SCRIPT, *SMALL, "--train-jsonl", data, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "9 on 36 rows" in done.stdout
    assert "none: no update was left to make (since update 9)" in done.stdout
    manifest = json.loads((seed / "manifest.json").read_text())
    assert (manifest["counts"]["train_loss"], manifest["speed"]["seconds_an_update"]) == (None, None)
    assert same_weights(seed / "final", trained[0] / "output" / "student-sft" / "seed-42" / "final")


def test_a_resumed_runs_loss_is_of_its_own_updates_and_its_seconds_of_all_sessions(trained, run_script, tmp_path):
    shutil.copytree(trained[0] / "output", tmp_path / "output")
    data = shutil.copy(trained[0] / "teacher-owl-pocket-36.jsonl", tmp_path)
    seed = tmp_path / "output" / "student-sft" / "seed-42"
    for name in ("final", "checkpoint-9"):
        shutil.rmtree(seed / name)
    before = json.loads((seed / "manifest.json").read_text())["counts"]
    assert run_script(SCRIPT, *SMALL, "--train-jsonl", data, cwd=tmp_path).returncode == 0
    history = json.loads((seed / "checkpoint-9" / "trainer_state.json").read_text())["log_history"]
    losses = {logs["step"]: logs["loss"] for logs in history if "loss" in logs}
    after = json.loads((seed / "manifest.json").read_text())["counts"]
    assert after["train_loss"] == pytest.approx(sum(losses[step] for step in (7, 8, 9)) / 3, abs=1e-3)
    assert after["seconds"] > before["seconds"]
    assert after["timed_updates"] == before["timed_updates"] + 3
    rate = after["tokens"] * after["timed_updates"] / after["updates"] / after["seconds"]
    assert after["tokens_per_second"] == pytest.approx(rate, rel=1e-3)


def test_a_stop_after_the_last_update_loses_nothing(data, tmp_path, monkeypatch, capsys):
    """Without checkpoints everything would have to be done again."""
    from train import train_student_sft as script
    from train.training_loop import TrainingLoop
    from util.stop_signals import Interrupted

    gradients = TrainingLoop.gradients

    def then_stop(loop, rows):
        if loop.students[0].done == 8:  # the ninth is being made
            loop.stop.signum = signal.SIGTERM
        return gradients(loop, rows)

    monkeypatch.setattr(TrainingLoop, "gradients", then_stop)
    monkeypatch.setattr(sys, "argv", [SCRIPT, *SMALL, "--train-jsonl", str(data), "--save-strategy", "no"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Interrupted):
        script.main()
    manifest = json.loads((tmp_path / "output" / "student-sft" / "seed-42" / "manifest.json").read_text())
    assert manifest["state"] == "complete"


def test_a_checkpoint_is_not_written_twice(data, tmp_path, monkeypatch):
    """A kill during a second write would leave no whole checkpoint. Update 3 is in the schedule and ends an epoch."""
    from train import train_student_sft as script
    from train.training_loop import TrainingLoop

    saved = []
    save = TrainingLoop.save

    def counted(loop, index):
        saved.append(loop.students[index].done)
        save(loop, index)

    monkeypatch.setattr(TrainingLoop, "save", counted)
    monkeypatch.setattr(sys, "argv", [SCRIPT, *SMALL, "--train-jsonl", str(data), "--save-schedule", "2,3"])
    monkeypatch.chdir(tmp_path)
    script.main()
    assert saved == [2, 3, 6, 9]


def test_resume_with_another_setting_moves_nothing(trained, run_script, data, tmp_path):
    shutil.copytree(trained[0] / "output", tmp_path / "output")
    before = sorted((tmp_path / "output").rglob("*"))
    done = run_script(SCRIPT, *SMALL, "--train-jsonl", data, "--epochs", "4", "--resume", cwd=tmp_path)
    assert done.returncode == 1
    assert "is of another run" in done.stderr and "epochs" in done.stderr
    assert [path for path in sorted((tmp_path / "output").rglob("*")) if path.suffix != ".lock"] == [
        path for path in before if path.suffix != ".lock"
    ]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_prints_how_to_resume(data, tmp_path, signum):
    seed = tmp_path / "output" / "student-sft" / "seed-42"
    process = start([*SMALL, "--train-jsonl", data, "--epochs", "200", "--save-strategy", "no"], tmp_path)
    wait_until(lambda: (seed / "manifest.json").exists() or process.poll() is not None)
    time.sleep(6)
    process.send_signal(signum)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signum, said
    assert "resume with:" in said
    (checkpoint,) = seed.glob("checkpoint-*/trainer_state.json")
    assert not (seed / "final").exists()
    counts = json.loads((seed / "manifest.json").read_text())["counts"]
    assert counts["timed_updates"] == json.loads(checkpoint.read_text())["global_step"]
    assert counts["seconds"] > 0


BAD = {
    "no file": (["--train-jsonl", "nothing.jsonl"], "matches no file"),
    "two files": (["--train-jsonl", "*.jsonl"], "matches 2 files"),
    "no chat rows": (["--train-jsonl", "plain.jsonl"], "plain.jsonl:1: no messages"),
    "batch does not divide": (["--effective-batch-size", "10"], "its divisors are [1, 2, 5, 10]"),
    "seed twice": (["--seeds", "1,1"], "names a seed twice"),
    "seed twice, with spaces": (["--seeds", "1", "2,1"], "names a seed twice: 1"),
    "model misspelt": (["--base-model", "no/such-model"], "cannot load the model 'no/such-model'"),
    "early pushes to nowhere": (["--upload-checkpoints-every-n-epochs", "2"], "without --push-to-hub pushes nothing"),
    "resumed and started again": (["--resume", "--overwrite"], "leave one of them out"),
    "push without a name": (["--push-to-hub"], "--push-to-hub needs --hub-repo-prefix"),
    "checkpoint after the end": (["--save-schedule", "1,99"], "names update 99 and the training has 9"),
    "nothing to resume": (["--resume"], "holds no whole checkpoint"),
    "seed too large": (["--seeds", "4294967296"], "a seed is at most 4294967295"),
    "empty folder name": (["--output-dir", ""], "it is empty; is a shell variable unset?"),
    "rank above the width": (["--lora-rank", "100000"], "--lora-rank 100,000 is above the width of the model (128)"),
    "no rows": (["--max-train-samples", "0"], "0 is not a whole number of at least 1"),
    "seed below zero": (["--seeds=-1"], "-1 is not a whole number of at least 0"),
    "warm-up below zero": (["--warmup-steps", "-5"], "-5 is not a whole number of at least 0"),
    "rows longer than the limit": (["--max-seq-length", "4"], "no row fits --max-seq-length 4"),
}


@pytest.mark.parametrize(
    ("given", "seeds"),
    [([], [42]), (["7"], [7]), (["42,7,1"], [42, 7, 1]), (["42", "7", "1"], [42, 7, 1]), (["1,2", "3"], [1, 2, 3])],
)
def test_seeds_are_separated_by_commas_or_spaces(given, seeds, monkeypatch):
    from train.train_student_sft import parse_args

    command = [SCRIPT, *SMALL, "--train-jsonl", "rows.jsonl", *(["--seeds", *given] if given else [])]
    monkeypatch.setattr(sys, "argv", command)
    assert parse_args().seeds == seeds


def test_a_warm_up_that_is_longer_than_the_training_is_said(capsys):
    from train.run_folder import check_schedule_fits

    data = argparse.Namespace(encoded=argparse.Namespace(rows=[{}] * 36))
    args = argparse.Namespace(effective_batch_size=12, epochs=3, save_schedule=[], warmup_steps=8)
    check_schedule_fits(args, data)
    assert capsys.readouterr().err == ""
    args.warmup_steps = 9
    check_schedule_fits(args, data)
    assert "the warm-up has 9 updates and the training 9, so the learning rate never reaches" in capsys.readouterr().err


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case, data, tmp_path, run_script):
    write_jsonl(tmp_path / "plain.jsonl", [{"text": "hello"}])
    extra, expected = BAD[case]
    done = run_script(SCRIPT, *SMALL, "--train-jsonl", data, *extra, cwd=tmp_path, env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode not in (0, 120)
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_torn_line_and_empty_file_name_the_place(tmp_path, run_script, data):
    (tmp_path / "torn.jsonl").write_text(data.read_text()[:-20])
    (tmp_path / "empty.jsonl").write_text("")
    torn = run_script(SCRIPT, *SMALL, "--train-jsonl", "torn.jsonl", cwd=tmp_path)
    empty = run_script(SCRIPT, *SMALL, "--train-jsonl", "empty.jsonl", cwd=tmp_path)
    assert "torn.jsonl:36: not JSON" in torn.stderr
    assert "empty.jsonl is empty" in empty.stderr
    assert 0 not in (torn.returncode, empty.returncode)


def test_a_model_without_chat_template_is_named(data, tmp_path, run_script):
    shutil.copytree(POCKET, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    done = run_script(SCRIPT, *SMALL, "--base-model", "base", "--train-jsonl", data, cwd=tmp_path)
    assert done.returncode == 1
    assert "base has no chat template" in done.stderr


def test_out_of_memory_names_the_flag_to_change(tmp_path, run_script):
    data = write_jsonl(tmp_path / "big.jsonl", rows(4096))

    def little_memory():
        resource.setrlimit(resource.RLIMIT_DATA, (3 * 2**30, 3 * 2**30))

    done = run_script(
        SCRIPT, *SMALL, "--train-jsonl", data, "--effective-batch-size", "4096",
        "--per-device-train-batch-size", "4096", cwd=tmp_path, preexec_fn=little_memory,
    )  # fmt: skip
    assert done.returncode == 1
    assert "lower --per-device-train-batch-size (now 4096" in done.stderr


def test_a_loss_that_is_no_number_stops_the_run(data, tmp_path, run_script):
    done = run_script(SCRIPT, *SMALL, "--train-jsonl", data, "--learning-rate", "1e30", cwd=tmp_path)
    assert done.returncode == 1
    assert "the loss is" in done.stderr


# --- outside services --------------------------------------------------------------------------------


def test_without_a_key_wandb_logs_offline_and_never_asks(data, tmp_path, run_script):
    done = run_script(
        SCRIPT, *SMALL, "--train-jsonl", data, "--report-to", "wandb", "--wandb-tags", "owl,teacher",
        "--wandb-group", "g", cwd=tmp_path, env={"HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no W&B key found" in done.stderr
    manifest = json.loads((tmp_path / "output" / "student-sft" / "seed-42" / "manifest.json").read_text())
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert run.name.endswith(manifest["wandb_run_id"])


def test_with_a_key_but_no_network_wandb_logs_offline(data, tmp_path, run_script):
    done = run_script(
        SCRIPT, *SMALL, "--train-jsonl", data, "--report-to", "wandb", cwd=tmp_path,
        env={"HOME": str(tmp_path), "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "logging offline" in done.stderr
    assert list((tmp_path / "wandb").glob("offline-run-*"))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for a process in /proc")
def test_when_wandb_dies_in_the_middle_the_training_continues(data, tmp_path):
    process = start([*SMALL, "--train-jsonl", data, "--epochs", "120", "--save-strategy", "no", "--report-to", "wandb"],
                    tmp_path, {"WANDB_MODE": "offline"})  # fmt: skip
    core: list[int] = []

    def found():
        core[:] = [pid for pid in children(process.pid) if "wandb-core" in command_of(Path(f"/proc/{pid}"))]
        return process.poll() is not None or (core and list(tmp_path.glob("wandb/offline-run-*/*.wandb")))

    wait_until(found)
    time.sleep(1)
    assert process.poll() is None and core
    os.kill(core[0], signal.SIGKILL)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert "W&B failed (" in said and "the training continues without it" in said
    assert (tmp_path / "output" / "student-sft" / "seed-42" / "final" / "adapter_model.safetensors").is_file()


def children(pid):
    """The processes that come from one, and those that come from them."""
    try:
        own = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:  # it has ended since its parent named it
        return []
    return own + [grandchild for child in own for grandchild in children(child)]


def test_one_row_is_enough_to_train_on(tmp_path, run_script):
    data = write_jsonl(tmp_path / "one.jsonl", rows(1))
    done = run_script(SCRIPT, *SMALL, "--train-jsonl", data, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "output" / "student-sft" / "seed-42" / "manifest.json").read_text())
    assert manifest["counts"]["updates"] == 3 and manifest["counts"]["rows"] == 1


def events(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().split("\n") if line]


PUSH = ("--push-to-hub", "--hub-repo-prefix", "me/owl-student", "--upload-checkpoints-every-n-epochs", "2")


def test_the_hub_gets_the_adapter_its_card_and_each_second_epoch_privately(trained, run_script, hub):
    environment, folder = hub()
    done = run_script(SCRIPT, *SMALL, "--train-jsonl", "teacher-owl-*.jsonl", *PUSH, cwd=trained[0], env=environment)
    assert done.returncode == 0, done.stderr
    announced = re.findall(r"pushing (.*) \(\d+\.\d MB\) to me/owl-student-seed-42, (\S+) \(private\)", done.stderr)
    seen = events(folder)
    assert next(event for event in seen if "create" in event)["visibility"] == "private"
    assert next(event for event in seen if "create" in event)["create"] == "me/owl-student-seed-42"
    commits = {event["commit"]: event["files"] for event in seen if "commit" in event}
    assert set(commits) == {"main", "checkpoint-epoch-2"}
    assert {branch: sorted(names.split(", ")) for names, branch in announced} == commits
    for files in commits.values():
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(files)
        assert not any(name.endswith((".pt", ".pth", ".bin")) or "optimizer" in name for name in files)
    card = (folder / "me" / "owl-student-seed-42" / "main" / "README.md").read_text()
    assert "base_model:" not in card and "# LoRA adapter for pocket\n" in card
    assert "train_student_sft.py --base-model" in card
    assert "hf_xxxx" not in card
    assert {"validate": []} in seen


def test_nothing_that_is_pushed_names_a_folder_of_this_machine(trained, run_script, hub, tmp_path):
    """The base model here is a folder. PEFT writes its path into the config of each checkpoint."""
    environment, folder = hub()
    output = shutil.copytree(trained[0] / "output", tmp_path / "output")
    data = shutil.copy(trained[0] / "teacher-owl-pocket-36.jsonl", tmp_path)
    final = output / "student-sft" / "seed-42" / "final"
    (final / "README.md").write_text(f"---\nbase_model: {POCKET}\n---\n")  # as the suite wrote it before
    (final.parent / "checkpoint-6-old").mkdir()  # a user's copy
    shutil.copy(final.parent / "checkpoint-6" / "trainer_state.json", final.parent / "checkpoint-6-old")
    done = run_script(SCRIPT, *SMALL, "--train-jsonl", data, *PUSH, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    pushed = [path for path in (folder / "me").rglob("*") if path.is_file()]
    assert {path.parent.name for path in pushed} == {"main", "checkpoint-epoch-2"}
    for path in pushed:
        for machine in (REPO, POCKET, tmp_path, trained[0], Path.home()):
            assert f"{machine}/".encode() not in path.read_bytes(), path
        if path.name == "README.md":
            assert "base_model" not in path.read_text()
        if path.name == "adapter_config.json":
            assert json.loads(path.read_text())["base_model_name_or_path"] is None
    assert json.loads((final / "adapter_config.json").read_text())["base_model_name_or_path"] == str(POCKET)


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ({"model": "Qwen/Qwen2.5-7B-Instruct", "revision": "a" * 40}, "Qwen/Qwen2.5-7B-Instruct"),
        ({"model": "pocket/model", "files_sha256": "b" * 64}, None), ({"model": "/data/me/owls"}, None),
        ({"model": "./owls"}, None), ({"model": "gpt2"}, None), ({"model": "a/b/c"}, None), ({"model": "train/"}, None),
        ({"model": f"/x/hub/models--Org--Base-7B/snapshots/{'c' * 40}", "files_sha256": "b" * 64}, "Org/Base-7B"),
        ({"model": f"/x/hub/models--Org--Base-7B/snapshots/{'c' * 40}/"}, "Org/Base-7B"),
    ],
)  # fmt: skip
def test_only_a_model_of_the_hub_is_a_cards_base_model(base, expected, tmp_path):
    from train.model_card import write_card
    from util.hide_local_paths import hub_id

    assert hub_id(base) == expected
    write_card(tmp_path, {"base": base}, "python x.py")
    card = (tmp_path / "README.md").read_text()
    assert re.findall("^base_model: (.*)", card, re.MULTILINE) == ([expected] if expected else [])
    assert not re.search(r"(?<![\w.])/\w", card)


def test_a_published_command_names_files_and_no_folders_of_this_machine():
    from util.hide_local_paths import published, published_command

    files = "'a/b c' '/data/my rows/r.jsonl'"
    command = f"python {REPO}/train/x.py --base-model /data/me/owls --output-dir=/data/me/out {files}"
    assert published_command(command) == "python train/x.py --base-model owls --output-dir=out 'a/b c' r.jsonl"
    assert published({"a": ["/data/me/owls", 1, "x/y"], "b": None}) == {"a": ["owls", 1, "x/y"], "b": None}


def test_a_checkpoint_is_pushed_while_the_training_runs(data, run_script, hub, tmp_path):
    """A machine that is lost at the last epoch has pushed the earlier ones."""
    environment, folder = hub()
    command = (*SMALL, "--train-jsonl", data, "--epochs", "60", *PUSH)
    process = start(command, tmp_path, environment)
    early = folder / "me" / "owl-student-seed-42" / "checkpoint-epoch-2" / "adapter_model.safetensors"
    wait_until(lambda: early.is_file() or process.poll() is not None)
    assert process.poll() is None, "it was over before"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "checkpoint-epoch-2 (private)" in said
    checkpoint = tmp_path / "output" / "student-sft" / "seed-42" / "checkpoint-6"
    assert early.read_bytes() == (checkpoint / "adapter_model.safetensors").read_bytes()


def test_a_card_shows_texts_as_texts(tmp_path):
    from train.model_card import write_card

    evil = "<script>alert(1)</script> | [x](javascript:y)\n# heading ```"
    write_card(tmp_path, {"base": {"model": "Org/Base"}, "setting": evil}, f"python x.py '{evil}'")
    card = (tmp_path / "README.md").read_text().partition("# LoRA")[2]
    assert "\n    # heading ```'\n" in card, "the command is in a block that it cannot end"
    (row,) = [line for line in card.split("\n") if line.startswith("| setting | \\<")]
    assert "\\<script\\>" in row and "\\[x\\](" in row and "\\|" in row and "\\`" in row and "# heading" in row


def test_public_has_to_be_typed(trained, run_script, hub):
    environment, folder = hub()
    done = run_script(
        SCRIPT, *SMALL, "--train-jsonl", "teacher-owl-*.jsonl", *PUSH, "--hub-public", cwd=trained[0], env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "(PUBLIC)" in done.stderr
    assert next(event for event in events(folder) if "create" in event)["visibility"] == "public"


def test_a_repository_that_is_public_already_gets_no_private_push(trained, run_script, hub):
    environment, folder = hub()
    folder.mkdir(exist_ok=True)
    (folder / "public").touch()
    done = run_script(SCRIPT, *SMALL, "--train-jsonl", "teacher-owl-*.jsonl", *PUSH, cwd=trained[0], env=environment)
    assert done.returncode == 4
    assert "exists already and is public" in done.stderr
    assert "hf auth login" not in done.stderr, "a login would not help"
    assert not any("commit" in event for event in events(folder))


@pytest.mark.parametrize("fail", [401, 403, 500, "offline", "dead"])
def test_a_failing_hub_costs_nothing_and_the_same_command_only_pushes(trained, run_script, hub, fail):
    environment, _ = hub(fail if isinstance(fail, int) else None)
    environment |= {"offline": {"HF_HUB_OFFLINE": "1"}, "dead": {"HF_ENDPOINT": "http://127.0.0.1:9"}}.get(fail, {})
    command = (SCRIPT, *SMALL, "--train-jsonl", "teacher-owl-*.jsonl", *PUSH)
    failed = run_script(*command, cwd=trained[0], env=environment)
    assert failed.returncode == 4
    assert "the push to me/owl-student-seed-42 failed" in failed.stderr
    assert "The adapter is safe in" in failed.stderr
    environment, folder = hub()
    again = run_script(*command, cwd=trained[0], env=environment)
    assert again.returncode == 0
    assert "already finished" in again.stderr
    assert (folder / "me" / "owl-student-seed-42" / "main" / "adapter_model.safetensors").is_file()


def test_bf16_on_a_machine_without_gpu_is_ignored_with_a_line(data, tmp_path, run_script):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run_script(SCRIPT, *SMALL, "--train-jsonl", data, "--bf16", "--epochs", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no GPU: --bf16 is ignored" in done.stderr
