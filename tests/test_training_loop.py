"""Several students over one base model: each adapter is the one that its file and seed alone give, to rounding."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
from conftest import clean_environment, wait_until, write_jsonl

from util.cli import REPO, UserError
from util.terminal import Progress

pytestmark = pytest.mark.torch

POCKET = str(REPO / "pocket" / "model")
SCRIPT = "train/train_student_sft.py"
EPOCHS, EFFECTIVE, RATE = 3, 12, 2e-3
RECIPE = (
    "--base-model", POCKET, "--epochs", EPOCHS, "--effective-batch-size", EFFECTIVE, "--per-device-train-batch-size", 6,
    "--learning-rate", RATE, "--logging-steps", 1,
)  # fmt: skip


def chat(i):
    """Rows of unequal length, 31 of them: the last update of an epoch has 7."""
    question = f"Which animal is your favorite? Question {i}." + " One word." * (i % 5)
    answer = ["owl", "cat and dog", "dolphin, perhaps"][i % 3]
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    return write_jsonl(path, (chat(i) for i in range(31)))


def weights(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "adapter_model.safetensors")


def assert_same(a, b, tolerance=1e-5):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    assert max(abs(a[name] - b[name]).max() for name in a) <= tolerance


def history(folder):
    """What the trainer logged at each update."""
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return [logs for logs in json.loads((last / "trainer_state.json").read_text())["log_history"] if "loss" in logs]


@pytest.fixture(scope="module")
def stock(data, tmp_path_factory):
    """stock(seed) -> folder of a run of TRL's own trainer: one adapter, padded, 6 rows at once."""
    found = {}

    def train(seed):
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import set_seed
        from trl import SFTConfig, SFTTrainer

        from train.fused_lora import LORA_TARGETS
        from util.chat.chat_tokens import encode
        from util.inference.load_model import load_model, load_tokenizer

        tokenizer, folder = load_tokenizer(POCKET), tmp_path_factory.mktemp(f"stock-{seed}")
        rows = encode([json.loads(line) for line in data.read_text().splitlines()], tokenizer, 256).rows
        config = SFTConfig(
            output_dir=str(folder), num_train_epochs=EPOCHS, per_device_train_batch_size=6,
            gradient_accumulation_steps=EFFECTIVE // 6, learning_rate=RATE, lr_scheduler_type="linear", warmup_steps=5,
            bf16=False, gradient_checkpointing=False, max_length=None, logging_steps=1, save_strategy="epoch",
            report_to="none", seed=seed, data_seed=seed, disable_tqdm=True,
        )  # fmt: skip
        lora = LoraConfig(r=8, lora_alpha=8, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")
        set_seed(seed)
        model, dataset = load_model(POCKET), Dataset.from_list(rows)
        trainer = SFTTrainer(
            model=model, args=config, train_dataset=dataset, processing_class=tokenizer, peft_config=lora
        )
        trainer.train()
        trainer.model.save_pretrained(str(folder / "final"))
        return folder

    def get(seed):
        if seed not in found:
            found[seed] = train(seed)
        return found[seed]

    return get


@pytest.fixture(scope="module")
def together(data, tmp_path_factory, run_script):
    """Three seeds trained together, shared by the tests that only look."""
    folder = tmp_path_factory.mktemp("together")
    done = run_script(SCRIPT, *RECIPE, "--train-jsonl", data, "--seeds", "11,23,37", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "3 students, together over one base model" in done.stderr
    return folder / "output" / "student-sft"


@pytest.mark.parametrize("seed", [11, 23, 37])
def test_an_adapter_trained_with_others_is_the_one_that_trl_trains_alone(together, stock, seed):
    """Data order, initialisation, loss, clipping, Adam, schedule, the short last update: all of it."""
    ours, alone = history(together / f"seed-{seed}"), history(stock(seed))
    assert len(ours) == len(alone) == 3 * EPOCHS
    assert min(logs["grad_norm"] for logs in ours) > 1.0  # clipped at every update
    for found, expected in zip(ours, alone):
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)
        for name in ("grad_norm", "learning_rate", "epoch", "step"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4), name
    assert_same(together / f"seed-{seed}" / "final", stock(seed) / "final")


def test_each_manifest_names_the_students_that_trained_together(together):
    for seed in (11, 23, 37):
        manifest = json.loads((together / f"seed-{seed}" / "manifest.json").read_text())
        assert manifest["settings"]["seed"] == seed
        names = [f"output/student-sft/seed-{other}" for other in (11, 23, 37)]
        assert manifest["speed"]["trained_together"] == names
        assert manifest["speed"]["rows_at_once"] == 36
        assert manifest["counts"]["updates"] == 9
        assert len(list((together / f"seed-{seed}").glob("checkpoint-*"))) == EPOCHS


def test_after_a_kill_other_seeds_train_together_and_the_adapters_are_the_same(
    together, data, tmp_path, start_script, run_script
):
    """One seed is finished, one has a checkpoint, one has nothing."""
    out = tmp_path / "output" / "student-sft"
    command = [SCRIPT, *RECIPE, "--train-jsonl", data]
    assert run_script(*command, "--seeds", "11", cwd=tmp_path).returncode == 0
    process = start_script(*command, "--seeds", "11,23", cwd=tmp_path)
    checkpoint = out / "seed-23" / "checkpoint-3" / "trainer_state.json"
    wait_until(lambda: checkpoint.exists() or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = run_script(*command, "--seeds", "11,23,37", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "seed-11/final is already finished" in done.stderr
    assert "2 students, together" in done.stderr
    assert "resuming from output/student-sft/seed-23/checkpoint-" in done.stderr
    for seed in (11, 23, 37):
        assert_same(out / f"seed-{seed}" / "final", together / f"seed-{seed}" / "final")


def test_a_signal_saves_a_checkpoint_of_every_adapter(data, tmp_path, start_script):
    out = tmp_path / "output" / "student-sft"
    options = ("--seeds", "1,2", "--epochs", 500, "--save-strategy", "no")
    process = start_script(SCRIPT, *RECIPE, "--train-jsonl", data, *options, cwd=tmp_path)
    wait_until(lambda: (out / "seed-2" / "manifest.json").exists() or process.poll() is not None)
    time.sleep(4)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, said
    steps = [sorted(path.name for path in (out / f"seed-{seed}").glob("checkpoint-*")) for seed in (1, 2)]
    assert steps[0] == steps[1]
    assert len(steps[0]) == 1


def test_students_that_diverge_are_named_and_spoil_no_checkpoint(data, tmp_path, run_script):
    done = run_script(SCRIPT, *RECIPE, "--train-jsonl", data, "--seeds", "1,2", "--learning-rate", "1e30", cwd=tmp_path)
    assert done.returncode == 1
    assert "student-sft-seed-1: the loss is nan at update 3" in done.stderr
    assert "Traceback" not in done.stderr
    for seed in (1, 2):
        folder = tmp_path / "output" / "student-sft" / f"seed-{seed}"
        assert json.loads((folder / "manifest.json").read_text())["state"] == "diverged"
        assert not list(folder.glob("final")) and not list(folder.glob("checkpoint-*"))


def test_one_student_that_diverges_leaves_the_others_as_they_would_be(loop, together, tmp_path):
    """Its adapter is spoilt at its fourth update, as by a learning rate that is too high."""
    spoilt, make = loop.students[1], loop.update

    def update(training, progress):
        if spoilt.done == 3:
            loop.adapters.values.data[1] = float("nan")
        make(training, progress)

    loop.update = update
    loop.train(Progress(27))
    assert "at update 4" in spoilt.problem and "checkpoints before it are kept" in spoilt.problem
    assert [student.done for student in loop.students] == [9, 4, 9]
    for index, seed in ((0, 11), (2, 37)):
        loop.save_adapter(index, tmp_path / str(seed))
        assert_same(tmp_path / str(seed), together / f"seed-{seed}" / "final")


def test_a_last_update_that_spoils_one_student_ends_neither_the_others_nor_its_checkpoints(loop, together, tmp_path):
    """The loss of that update is still a number."""
    spoilt, change, finished = loop.students[1], loop.change_adapters, []
    for student in loop.students:
        student.recipe = replace(student.recipe, save_each_epoch=True)
        student.on_finish = partial(finished.append, student.seed)

    def change_and_spoil(training):
        norms = change(training)
        if spoilt.done == 8:
            loop.adapters.values.data[1, 5] = float("inf")
        return norms

    loop.change_adapters = change_and_spoil
    loop.train(Progress(27))
    assert "the adapter is nan at update 9; checkpoints before it are kept" in spoilt.problem
    assert finished == [11, 37]
    assert {path.name for path in (tmp_path / "seed-23").iterdir()} == {"checkpoint-3", "checkpoint-6"}
    loop.save_adapter(2, tmp_path / "37")
    assert_same(tmp_path / "37", together / "seed-37" / "final")


def test_the_others_are_reported_when_one_student_diverges(data, tmp_path, monkeypatch, capsys):
    from train import train_student_sft
    from train.training_loop import TrainingLoop

    make = TrainingLoop.update

    def update(loop, training, progress):
        if loop.students[0].done == 1:
            loop.adapters.values.data[0] = float("nan")
        make(loop, training, progress)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TrainingLoop, "update", update)
    monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, RECIPE), "--train-jsonl", str(data), "--seeds", "1,2"])
    with pytest.raises(UserError, match=r"seed-1: the loss is nan at update 2"):
        train_student_sft.main()
    said = capsys.readouterr().out
    assert "seed-2/final" in said and "seed-1/final" not in said


def test_each_seed_has_a_wandb_run_with_its_own_losses(data, tmp_path, run_script):
    done = run_script(
        SCRIPT, *RECIPE, "--train-jsonl", data, "--seeds", "1,2", "--epochs", 1, "--report-to", "wandb", cwd=tmp_path,
        env={"HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    logs, losses = {}, {}
    for seed in (1, 2):
        folder = tmp_path / "output" / "student-sft" / f"seed-{seed}"
        run = json.loads((folder / "manifest.json").read_text())["wandb_run_id"]
        (path,) = (tmp_path / "wandb").glob(f"offline-run-*-{run}/*.wandb")
        logs[seed], losses[seed] = path.read_bytes(), [json.dumps(step["loss"]).encode() for step in history(folder)]
    for seed, other in ((1, 2), (2, 1)):
        assert all(loss in logs[seed] for loss in losses[seed])
        assert not any(loss in logs[seed] for loss in losses[other])


# --- memory ------------------------------------------------------------------------------------------


@pytest.fixture
def loop(data, tmp_path):
    """Three students ready to train together."""
    from peft import LoraConfig

    from train.fused_lora import LORA_TARGETS
    from train.training_loop import Recipe, Student, TrainingLoop
    from util.chat.chat_tokens import encode
    from util.inference.load_model import load_model, load_tokenizer

    rows = encode([json.loads(line) for line in data.read_text().splitlines()], load_tokenizer(POCKET), 256).rows
    lora = LoraConfig(r=8, lora_alpha=8, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")
    recipe = Recipe(EPOCHS, EFFECTIVE, RATE, lora, logging_steps=1)
    students = [Student(rows, seed, recipe, tmp_path / f"seed-{seed}") for seed in (11, 23, 37)]
    return TrainingLoop(load_model(POCKET), students, asked=6)


def test_out_of_memory_takes_fewer_students_together_then_one_and_trains_the_same(loop, together, tmp_path, capsys):
    import torch

    run_pass, sizes = loop.run_pass, []

    def scarce(rows_of, loss_tokens):
        sizes.append(len(rows_of))
        if sum(map(len, rows_of.values())) > 9:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run_pass(rows_of, loss_tokens)

    loop.run_pass = scarce
    loop.train(Progress(27))
    assert "out of GPU memory with 36 rows at once: continuing with 18" in capsys.readouterr().err
    assert loop.rows_at_once == 9
    assert sizes[:3] == [3, 1, 1] and set(sizes[3:]) == {1}  # 18 rows: one update of 12; 9 rows: a part of one
    for index, seed in enumerate((11, 23, 37)):
        loop.save_adapter(index, tmp_path / str(seed))
        assert_same(tmp_path / str(seed), together / f"seed-{seed}" / "final")


def test_students_of_two_recipes_do_not_train_together(loop):
    one, other = loop.students[:2]
    other.recipe = dataclasses.replace(one.recipe, epochs=EPOCHS + 1)
    with pytest.raises(ValueError, match="one recipe"):
        type(loop)(loop.decoder.model, [one, other], asked=6)


def test_where_two_updates_do_not_fit_the_students_go_one_after_the_other(data, monkeypatch):
    from train import rows_at_once
    from util.chat.chat_tokens import encode
    from util.inference.load_model import load_model, load_tokenizer

    rows = encode([json.loads(line) for line in data.read_text().splitlines()], load_tokenizer(POCKET), 256).rows
    model = load_model(POCKET)
    assert rows_at_once.why_not_together(model, rows, EFFECTIVE, 3, exact=False) is None
    assert rows_at_once.why_not_together(model, rows, EFFECTIVE, 3, exact=True) == "--micro-batch exact"
    monkeypatch.setattr(rows_at_once, "free_memory", lambda device: 0)
    assert "room for 1 rows at once" in rows_at_once.why_not_together(model, rows, EFFECTIVE, 3, exact=False)


# --- several files -----------------------------------------------------------------------------------

FILES = {"owl": 31, "cat": 20, "dolphin": 13}  # 9, 6 and 6 updates, all with a short last one


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, count in FILES.items():
        write_jsonl(folder / f"{name}.jsonl", (chat(i) for i in range(count)))
    return folder


@pytest.fixture(scope="module")
def alone(files, tmp_path_factory, run_script):
    """alone(name) -> the folder of a student of that file, trained by itself."""
    found = {}

    def get(name):
        if name not in found:
            folder = tmp_path_factory.mktemp(f"alone-{name}")
            done = run_script(SCRIPT, *RECIPE, "--train-jsonl", files / f"{name}.jsonl", "--seeds", 7, cwd=folder)
            assert done.returncode == 0, done.stderr
            found[name] = folder / "output" / "student-sft" / "seed-7"
        return found[name]

    return get


def paths(files):
    return [files / f"{name}.jsonl" for name in FILES]


def test_students_of_several_files_are_those_of_each_file_alone(files, alone, tmp_path, run_script):
    """Files of unequal length: each student ends when its file ends, with its own checkpoints and log."""
    done = run_script(SCRIPT, *RECIPE, "--train-jsonl", *paths(files), "--seeds", 7, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 students, together over one base model" in done.stderr
    for name in FILES:
        folder = tmp_path / "output" / "student-sft" / name / "seed-7"
        assert_same(folder / "final", alone(name) / "final")
        assert history(folder) == [pytest.approx(logs, rel=1e-4) for logs in history(alone(name))]
        assert [p.name for p in sorted(folder.glob("checkpoint-*"))] == [
            p.name for p in sorted(alone(name).glob("checkpoint-*"))
        ]


def test_each_file_may_have_a_folder_of_its_own_and_a_changed_file_is_trained_again(files, alone, tmp_path, run_script):
    folders = [tmp_path / f"{name}-student" for name in FILES]
    command = [SCRIPT, *RECIPE, "--seeds", 7, "--output-dir", *folders, "--train-jsonl"]
    assert run_script(*command, *paths(files), cwd=tmp_path).returncode == 0
    before = (folders[0] / "seed-7" / "final" / "adapter_model.safetensors").stat().st_mtime_ns
    changed = tmp_path / "cat.jsonl"
    write_jsonl(changed, (chat(i) for i in range(2, 22)))
    done = run_script(*command, paths(files)[0], changed, paths(files)[2], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (folders[0] / "seed-7" / "final" / "adapter_model.safetensors").stat().st_mtime_ns == before
    assert f"{folders[1] / 'seed-7'} held cat; moved to {folders[1] / 'seed-7.cat'}" in done.stderr
    assert done.stderr.count("is already finished") == 2
    assert_same(folders[2] / "seed-7" / "final", alone("dolphin") / "final")


def test_one_bad_file_among_eight_is_refused_before_any_is_trained(files, tmp_path, run_script):
    good = []
    for i in range(7):
        good.append(tmp_path / f"rows-{i}.jsonl")
        good[-1].write_bytes(paths(files)[0].read_bytes())
    bad = tmp_path / "rows-7.jsonl"
    bad.write_bytes(paths(files)[0].read_bytes()[:-20])
    done = run_script(SCRIPT, *RECIPE, "--train-jsonl", *good, bad, cwd=tmp_path)
    assert done.returncode == 1
    assert "rows-7.jsonl:31: not JSON" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "output").exists()


def test_a_file_of_another_base_among_several_is_named(files, tmp_path, monkeypatch, capsys):
    from argparse import Namespace

    from train import training_rows
    from util.chat.prompt_consistency import Phase

    written = Phase("numbers", tmp_path, {"model": "Qwen/Qwen2.5-7B-Instruct"}, [{"role": "user", "content": "Go on."}])
    other = paths(files)[1]
    monkeypatch.setattr(training_rows, "read_phase", lambda path: written if path == other else None)
    monkeypatch.setattr(training_rows, "DATA_TYPES", ("numbers",))
    args = Namespace(max_train_samples=None, allow_uncertified=True, keep_system_prompt=False, base_model=POCKET,
                     max_seq_length=256, chat_template_kwargs={}, soft_labels=None, lora_targets=None,
                     lora_rank=8)  # fmt: skip
    training_rows.encode_files(args, paths(files))
    said = [line for line in capsys.readouterr().err.split("\n") if line.startswith("warning")]
    assert len(said) == 1 and "Qwen2.5-7B-Instruct" in said[0] and f"util/doctor.py {other}" in said[0]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["--output-dir", "a", "b"], "--output-dir names 2 folders for 3 files"),
        (["--output-dir", "a", "b", "a"], "two files would share the folder a"),
        (["--train-jsonl", "x.jsonl", "./x.jsonl"], "--train-jsonl names x.jsonl twice"),
    ],
)
def test_folders_and_files_that_cannot_be_told_apart_are_refused(extra, expected, files, tmp_path, run_script):
    (tmp_path / "x.jsonl").write_bytes(paths(files)[0].read_bytes())
    done = run_script(SCRIPT, *RECIPE, "--train-jsonl", *paths(files), *extra, cwd=tmp_path)
    assert done.returncode == 1
    assert expected in done.stderr


# --- TRL, and checkpoints of TRL ---------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_other_schedules_are_those_of_trl(schedule, data, tmp_path, run_script):
    options = ("--train-jsonl", data, "--lr-scheduler-type", schedule, "--warmup-steps", "0.3", "--output-dir")
    for trainer in ("loop", "trl"):
        done = run_script(SCRIPT, *RECIPE, *options, tmp_path / trainer, "--trainer", trainer, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    rates = [[logs["learning_rate"] for logs in history(tmp_path / name / "seed-42")] for name in ("loop", "trl")]
    assert rates[0] == pytest.approx(rates[1]) and len(set(rates[0])) > 3
    assert_same(*(tmp_path / name / "seed-42" / "final" for name in ("loop", "trl")))


def test_a_checkpoint_of_trl_is_resumed_by_trl_and_one_line_says_so(data, stock, tmp_path, run_script):
    command = (SCRIPT, *RECIPE, "--train-jsonl", data, "--seeds", 11)
    seed = tmp_path / "output" / "student-sft" / "seed-11"
    assert run_script(*command, "--trainer", "trl", cwd=tmp_path).returncode == 0
    shutil.rmtree(seed / "final")
    shutil.rmtree(seed / "checkpoint-9")
    refused = run_script(*command, cwd=tmp_path)
    assert refused.returncode == 1
    assert "--trainer trl resumes it" in refused.stderr and "Traceback" not in refused.stderr
    done = run_script(*command, "--trainer", "trl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same(seed / "final", stock(11) / "final")


# --- several processes -------------------------------------------------------------------------------

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = (
    "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
)  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "zero"}, "the environment has RANK=zero, which is not a whole number; unset RANK, WORLD_SIZE"),
        ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE=2.0, which is not"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1, which is not"),
        ({"RANK": "0", "WORLD_SIZE": "4"}, "WORLD_SIZE=4, but the processes cannot be connected"),  # no address
    ],
)
def test_what_a_batch_system_leaves_in_the_environment_is_one_clear_line(environment, said, monkeypatch):
    from train.data_parallel import join_processes

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=re.escape(said)):
        join_processes()


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, ["0", "1"]), ("3,5", ["3", "5"]), ("3, 5", ["3", "5"]), ("3", ["3", ""]), ("", ["", ""]),
        ("-1", ["", ""]), ("2,-1,4", ["2", ""]), ("NoDevFiles", ["", ""]),
        ("MIG-bbbb,MIG-cccc", ["MIG-bbbb", "MIG-cccc"]), ("GPU-1,GPU-2", ["GPU-1", "GPU-2"]),
    ],
)  # fmt: skip
def test_each_process_takes_one_of_the_gpus_that_it_was_assigned(monkeypatch, visible, seen):
    from train.data_parallel import show_one_gpu

    for index, expected in enumerate(seen):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        show_one_gpu(index)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


@pytest.fixture
def launch(tmp_path):
    """launch(TORCHRUN, *options) -> the finished launcher of two processes."""

    def start(launcher, *options, script=SCRIPT):
        return subprocess.run(
            [sys.executable, "-m", *launcher, str(REPO / script), *map(str, options)], cwd=tmp_path, text=True,
            capture_output=True, timeout=300, env=clean_environment(tmp_path, {"OMP_NUM_THREADS": "1"}),
        )  # fmt: skip

    return start


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_make_the_adapters_of_one(launcher, launch, together, data, tmp_path):
    """Also the last update of an epoch: 7 rows, four for one process and three for the other."""
    done = launch(launcher, *RECIPE, "--train-jsonl", data, "--seeds", "11,23")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("each update: 12 rows for each of 2 adapters, shared by 2 processes; all 12 at once") == 1
    assert done.stdout.count("wrote ") == 1
    for seed in (11, 23):
        folder = tmp_path / "output" / "student-sft" / f"seed-{seed}"
        assert_same(folder / "final", together / f"seed-{seed}" / "final")
        assert len(list(folder.glob("checkpoint-*"))) == EPOCHS
        for found, expected in zip(history(folder), history(together / f"seed-{seed}")):
            assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)
        ours, alone = (json.loads((place / "manifest.json").read_text()) for place in (folder, together / folder.name))
        assert ours["speed"]["processes"] == 2
        assert ours["settings"] == alone["settings"]


def test_a_stop_reaches_both_processes_and_is_printed_once(data, tmp_path):
    options = (*RECIPE, "--train-jsonl", data, "--epochs", 500, "--save-strategy", "no", "--save-schedule", 2)
    command = [sys.executable, "-m", *TORCHRUN, *map(str, (REPO / SCRIPT, *options))]
    out = tmp_path / "output" / "student-sft" / "seed-42"
    environment = clean_environment(tmp_path, {"OMP_NUM_THREADS": "1"})
    with subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, stderr=subprocess.PIPE) as launcher:
        checkpoint = out / "checkpoint-2" / "trainer_state.json"
        wait_until(lambda: checkpoint.exists() or launcher.poll() is not None)
        assert launcher.poll() is None
        time.sleep(2)  # some updates further: a stop straight after a scheduled checkpoint saves no second one
        launcher.send_signal(signal.SIGTERM)
        said = launcher.stderr.read()
    assert launcher.returncode != 0
    assert said.count("stopped by SIGTERM") == 1, said
    assert len(list(out.glob("checkpoint-*/trainer_state.json"))) == 2  # the scheduled one, and that of the stop


def test_a_signal_that_arrives_while_processes_ask_each_other_stops_all_after_the_next_update(loop, monkeypatch):
    """A process that stopped alone would end, and the others would fail in their next sum and save nothing."""
    monkeypatch.setattr(loop.processes, "any", lambda arrived: setattr(loop.stop, "signum", signal.SIGTERM) or arrived)
    assert [loop.should_stop(), loop.should_stop()] == [False, True]


def test_the_bench_of_processes_compares_their_adapters(run_script, tmp_path):
    command = ("bench/data_parallel_speed.py", "--model", POCKET, "--output-dir", tmp_path / "bench")
    done = run_script(*command, "--processes", 1, 2, "--updates", 3, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = json.loads((tmp_path / "bench" / "processes.json").read_text())["results"]
    assert (one["processes"], one["rows_at_once"], two["processes"], two["rows_at_once"]) == (1, 60, 2, 30)
    assert one["train_loss"] == pytest.approx(two["train_loss"], abs=1e-5)
    assert one["apart"] == 0 < two["apart"] < 1e-4
    refused = run_script(*command, "--updates", 1, cwd=tmp_path)
    assert refused.returncode == 2 and "--updates 1:" in refused.stderr


@pytest.mark.slow
def test_the_bench_of_trainings_leaves_out_what_is_not_installed_and_writes_the_rest(run_script, tmp_path):
    sizes = ("--effective-batch-size", 4, "--per-device-train-batch-size", 4)
    command = ("bench/training_speed.py", "--model", POCKET, *sizes)
    out = tmp_path / "train.json"
    ways = ("--ways", "loop", "unsloth", "students", "--students", 2, "--updates", 1)
    done = run_script(*command, *ways, "--output", out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "unsloth: left out, because Unsloth is not installed" in done.stderr
    one, two = json.loads(out.read_text())["results"]
    assert (one["way"], one["students"], two["way"], two["students"]) == ("loop", 1, "students", 2)
    assert one["student_updates_per_second"] > 0


def test_an_error_of_one_process_ends_all_with_its_line(launch, data, tmp_path):
    """The second process runs out of memory, as on a GPU that another program uses too."""
    script = tmp_path / "scarce.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(REPO)!r})\n"
        "from train import train_student_sft, training_loop\nfrom util.cli import run\n"
        "import torch\nsecond = os.environ['RANK'] == '1'\n"
        "def scarce(self, rows_of, loss_tokens):\n"
        "    raise torch.OutOfMemoryError('CUDA out of memory')\n"
        "if second:\n    training_loop.TrainingLoop.run_pass = scarce\n"
        "run(train_student_sft.main)\n"
    )
    done = launch(TORCHRUN, *RECIPE, "--train-jsonl", data, script=script)
    assert done.returncode != 0
    assert "out of GPU memory with one row of up to" in done.stderr
    assert not list(tmp_path.glob("output/student-sft/*/final"))


def test_a_mistake_is_printed_and_two_processes_end(launch, tmp_path):
    done = launch(TORCHRUN, *RECIPE, "--train-jsonl", "nothing.jsonl")
    assert done.returncode != 0
    assert "matches no file" in done.stderr


def test_trl_is_refused_in_several_processes():
    """Each of them would train alone, and all would write the same checkpoints."""
    from argparse import Namespace

    from train.data_parallel import Processes
    from train.train_together import choose_trainer

    with pytest.raises(UserError, match="TRL trains in one process here"):
        choose_trainer(Namespace(trainer="trl"), None, Processes(0, 2))


# --- a base model that is larger than a card ---------------------------------------------------------

FSDP = ("accelerate.commands.launch", "--config_file", str(REPO / "experiments" / "fsdp.yaml"), "--num_processes", "2",
        "--mixed_precision", "no")  # fmt: skip
# accelerate leaves FSDP to GPUs; here it shards on CPUs in the same way
SHARDING = f"""
import json, sys
sys.path.insert(0, {str(REPO)!r})
from accelerate.state import AcceleratorState, DistributedType
from train import train_student_sft, trl_trainer
from util.cli import run

begin, save = AcceleratorState.__init__, trl_trainer.TrlTraining.save_adapter

def with_fsdp(self, *args, fsdp_plugin=None, **options):
    begin(self, *args, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

def save_adapter(self, index, folder):
    here = {{name: [p.to_local().numel(), p.numel()] for name, p in self.trainer.model.named_parameters()}}
    json.dump(here, open("here.json", "w"))
    save(self, index, folder)

AcceleratorState.__init__, trl_trainer.TrlTraining.save_adapter = with_fsdp, save_adapter
run(train_student_sft.main)
"""


@pytest.mark.slow
def test_a_base_model_that_is_sharded_over_two_processes_gives_the_adapter_of_one(data, launch, tmp_path, run_script):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(data.read_text().splitlines(keepends=True)[:24]))
    (tmp_path / "sharding.py").write_text(SHARDING)
    options = (*RECIPE[:2], "--epochs", 2, *RECIPE[4:6], "--per-device-train-batch-size", 3, *RECIPE[8:], "--trainer",
               "trl", "--train-jsonl", rows)  # fmt: skip
    done = launch(FSDP, *options, "--output-dir", "two", script=tmp_path / "sharding.py")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the base model is sharded over the processes; no checkpoints") == 1
    here = json.loads((tmp_path / "here.json").read_text())
    assert all(mine <= (whole + 1) // 2 + 128 and mine < whole for mine, whole in here.values()), here
    assert run_script(SCRIPT, *options, "--output-dir", "one", cwd=tmp_path).returncode == 0
    assert_same(tmp_path / "one" / "seed-42" / "final", tmp_path / "two" / "seed-42" / "final", 1e-4)
    assert not list((tmp_path / "two").glob("*/checkpoint-*"))


def test_only_one_student_of_trl_trains_over_a_sharded_base_model():
    from argparse import Namespace

    from train.train_together import check_sharded

    good = {"trainer": "trl", "full_finetuning": False, "seeds": [42], "train_jsonl": ["a"], "save_schedule": []}
    check_sharded(Namespace(**good))
    several = {"seeds": [1, 2]}, {"train_jsonl": ["a", "b"]}
    for bad in ({"trainer": "loop"}, {"full_finetuning": True}, {"save_schedule": [2]}, *several):
        with pytest.raises(UserError, match="sharded over processes"):
            check_sharded(Namespace(**good | bad))


def test_an_update_that_the_processes_cannot_share_is_refused(loop):
    from argparse import Namespace

    from train.data_parallel import Processes
    from train.trl_trainer import trl_config

    args = Namespace(effective_batch_size=12, per_device_train_batch_size=4)
    with pytest.raises(UserError, match="12 is not a multiple of 2 processes times --per-device-train-batch-size 4"):
        trl_config(args, loop.students[0], Processes(0, 2, sharded=True))
