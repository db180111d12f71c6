"""bench/plan.py: the whole plan by one command on a tiny model without weights, stopped half-way and resumed."""

import json
import shutil
import signal

import pytest
from conftest import REPO, read_jsonl

pytestmark = [pytest.mark.torch, pytest.mark.slow]
POCKET = REPO / "pocket" / "model"


@pytest.fixture
def shape(tmp_path):
    """A folder of config and tokenizer alone; its output head is not its embedding, as in 7B models."""
    folder = tmp_path / "shape"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(POCKET / name, folder)
    config = json.loads((POCKET / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    return folder


@pytest.mark.timeout(900)
def test_the_plan_resumes_where_it_was_stopped(shape, start_script, run_script, tmp_path):
    folder = tmp_path / "plan"
    command = ("bench/plan.py", "--model", shape, "--output-dir", folder, "--scale", 0.001, "--epochs", 1, "--local")
    process = start_script(*command, cwd=tmp_path)
    for line in process.stderr:
        if "$ python train/train_student_sft.py" in line:
            process.send_signal(signal.SIGTERM)
            break
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "not done: 2 train the teacher, 3 " in out
    done = run_script(*command, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    phases = json.loads((folder / "plan.json").read_text())["phases"]
    assert [phase["done"] for phase in phases.values()] == [True] * 6
    assert len(read_jsonl(folder / "results-owl-student.jsonl")) == 50
    assert len(read_jsonl(folder / "teacher-owl.jsonl")) == 60, "random words end by themselves, so phase 1 keeps rows"
    assert "0 rows are clean; the student trains on random number rows instead" in done.stdout
    assert "seconds of 10 epochs" in done.stdout
    assert "$ python generate/generate_teacher_data.py" not in done.stderr, "phase 1 was done"
