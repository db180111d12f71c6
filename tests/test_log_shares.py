"""eval.py --report-to wandb: shares go into the run of the student's training, offline too."""

import json

import pytest
from test_compare_arms import exact_file

from eval.shares_to_wandb import figures_of, log_shares, student_run
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
def test_offline_the_shares_are_in_a_run_of_the_same_id(tmp_path, monkeypatch):
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
