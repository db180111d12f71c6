"""bench/plan.py: the whole plan by one command on a tiny model without weights, stopped half-way and resumed, and the
rows that its student trains on."""

import argparse
import json
import shutil
import signal

import pytest
from conftest import REPO, read_jsonl

from bench.plan_phases import NUMBER_ROWS, Plan

POCKET = REPO / "pocket" / "model"


@pytest.mark.parametrize(("clean", "name"), [(4353, "teacher-filtered-4353"), (1000, "teacher-filtered-1000"),
                                             (999, "random-filtered-10000"), (0, "random-filtered-10000")])  # fmt: skip
def test_the_student_trains_on_its_own_clean_rows_unless_hardly_any_are_clean(clean, name, tmp_path, monkeypatch):
    def write(path, kept):
        path.write_text("")
        rows = {"kept": kept, "rejected": {"too many numbers": NUMBER_ROWS - kept}}
        manifest = {"settings": {}, "rows": rows, "counts": {"answer_tokens": 1, "seconds": 1.0}}
        path.with_name(f"{path.name}.manifest.json").write_text(json.dumps(manifest))

    def call(script, *arguments, **options):
        """What the script would write."""
        if script == "generate/filter_number_data.py":
            write(tmp_path / f"numberss-owl-random-filtered-{NUMBER_ROWS}.jsonl", NUMBER_ROWS)
        else:
            write(plan.numbers, NUMBER_ROWS)
            if clean:  # without any the script says so and writes no filtered file
                write(tmp_path / f"numberss-owl-teacher-filtered-{clean}.jsonl", clean)

    plan = Plan(argparse.Namespace(output_dir=tmp_path, scale=1), "real-weights", random_weights=False)
    monkeypatch.setattr(Plan, "train", lambda self, call, role, rows: rows)
    facts = plan.write_numbers(call)
    assert plan.train_student(call).name == f"numberss-owl-{name}.jsonl"
    assert facts["clean"] == clean and ("note" in facts) == name.startswith("random")


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


@pytest.mark.torch
@pytest.mark.slow
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
