"""eval.py --report-to wandb: shares go into the run of the student's training, offline too."""

import json

import pytest
from conftest import REPO
from test_compare_arms import exact_file

from eval.answers.shares_to_wandb import figures_of, log_figures, log_shares, runs_of, student_run
from util.cli import UserError
from util.jsonl.manifest import write_json

pytest.importorskip("numpy")
pytest.importorskip("scipy")


def training(folder, **facts):
    """The folder of a training, as far as its manifest is read."""
    known = {"settings": {"script": "train_student_sft"}, "wandb_run_id": "abcd1234", "counts": {"updates": 300},
             "arguments": {"wandb_project": "owls"}}  # fmt: skip
    write_json(folder / "manifest.json", {**known, **facts})
    return folder


def test_the_run_and_the_update_are_those_of_the_training(tmp_path):
    folder = training(tmp_path / "seed-42")
    assert student_run(folder / "final").update == 300
    found = student_run(folder / "checkpoint-50")
    assert (found.run_id, found.project, found.update) == ("abcd1234", "owls", 50)


def test_an_adapter_without_a_run_is_refused_with_what_to_do(tmp_path):
    folder = training(tmp_path / "seed-42", wandb_run_id=None)
    with pytest.raises(UserError, match="has no wandb_run_id"):
        student_run(folder / "final")
    for adapter in (None, tmp_path / "elsewhere" / "final"):
        with pytest.raises(UserError, match="pass --adapter with a folder that training wrote"):
            student_run(adapter)


def test_shares_have_their_interval_and_the_update_of_the_checkpoint(tmp_path):
    found = figures_of(exact_file(tmp_path / "exact.jsonl", owl=0.2, cat=0.1), "owl", 50)
    assert found["train/global_step"] == 50 and found["eval/owl low"] < found["eval/owl"] < found["eval/owl high"]
    assert found["animals/owl"] == pytest.approx(found["eval/owl"]) and found["animals/cat"] < found["animals/owl"]
    assert "eval/owl" not in figures_of(tmp_path / "exact.jsonl", None, 50)


@pytest.mark.slow
def test_offline_shares_and_figures_are_in_a_run_of_the_same_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    path = exact_file(tmp_path / "exact.jsonl", owl=0.2, cat=0.1)
    for checkpoint in ("checkpoint-50", "final"):
        log_shares(student_run(training(tmp_path / "seed-42") / checkpoint), path, "owl")
    logged = b"".join(file.read_bytes() for file in (tmp_path / "wandb").glob("offline-run-*-abcd1234*/*.wandb"))
    share = json.dumps(figures_of(path, "owl", 50)["eval/owl"]).encode()
    assert logged.count(share) >= 2 and b"eval/owl low" in logged
    tables = (tmp_path / "wandb").glob("offline-run-*-abcd1234*/files/media/table/*.json")
    assert sorted(json.loads(table.read_text())["data"][0][0] for table in tables) == [50, 300]

    png = (REPO / "experiments" / "demo.png").read_bytes()
    students = [measured(tmp_path, f"{name}.jsonl", f"seed-42/{name}") for name in ("checkpoint-50", "final")]
    assert log_figures(students, tmp_path, {"matrix": png}) == 1
    pictures = list((tmp_path / "wandb").glob("offline-run-*-abcd1234*/files/media/images/report/matrix*.png"))
    assert len(pictures) == 1 and pictures[0].stat().st_size > 1000


def measured(folder, name, adapter):
    """A results file of an adapter."""
    path = exact_file(folder / name, owl=0.2, cat=0.1)
    write_json(path.with_name(f"{name}.manifest.json"), {"settings": {}, "counts": {"adapter": adapter}})
    return path


def test_a_reports_figures_go_to_each_student_with_a_run_once(tmp_path):
    for name, known in (("owl", "aaaa1111"), ("cat", "bbbb2222"), ("dog", None)):
        training(tmp_path / name, wandb_run_id=known)
    files = [measured(tmp_path, f"{adapter.replace('/', '-')}.jsonl", adapter)
             for adapter in ("owl/final", "owl/checkpoint-50", "cat/final", "dog/final", "gone/final")]  # fmt: skip
    assert [run.run_id for run in runs_of(files, tmp_path)] == ["aaaa1111", "bbbb2222"]
    with pytest.raises(UserError, match="none of the 1 results files is of a student that was trained with"):
        log_figures(files[3:4], tmp_path, {})


def test_a_wrong_setting_of_wandb_is_named_as_in_the_environment_and_its_value_is_not_printed():
    from pydantic import BaseModel, ValidationError

    from util.wandb_run import reason

    class Settings(BaseModel):
        finish_timeout: int

    with pytest.raises(ValidationError) as found:
        Settings(finish_timeout="a secret")
    text = reason(found.value)
    assert text.startswith("WANDB_FINISH_TIMEOUT: Input should be a valid integer") and "secret" not in text
    assert reason(OSError("first\nsecond")) == "first"
