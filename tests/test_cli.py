"""Argument types, closing lines and errors, with their words. Run: python -m pytest tests/test_cli.py"""

import argparse
import errno
import os

import pytest

from util.cli import exit_code_and_message, input_file, output_name, some_file
from util.terminal import closing


def refused(kind, text):
    with pytest.raises(argparse.ArgumentTypeError) as error:
        kind(str(text))
    return str(error.value)


def test_an_unfinished_file_is_reported_differently_from_a_missing_one(tmp_path):
    (tmp_path / "results-owl.jsonl.partial").write_text("{}\n")
    for name in ("results-owl.jsonl", "results-owl.jsonl.partial"):
        assert "results-owl.jsonl is not finished" in refused(input_file, tmp_path / name)
    assert some_file(str(tmp_path / "results-owl.jsonl.partial")).exists()
    assert "no file" in refused(input_file, tmp_path / "results-dolphin.jsonl")


def test_the_nearest_names_are_shown_first(tmp_path):
    for name in (*(f"a{i}.jsonl" for i in range(20)), "teacher-owl-300.jsonl"):
        (tmp_path / name).write_text("{}\n")
    assert "(there is: teacher-owl-300.jsonl, " in refused(input_file, tmp_path / "teacher-owl-3000.jsonl")


def test_a_report_is_not_written_over_a_file_of_another_kind(tmp_path):
    message = refused(output_name(".json"), tmp_path / "results-owl.jsonl")
    assert "does not end in .json; choose a name that does" in message
    assert output_name(".json")(str(tmp_path / "new.json")).name == "new.json"


@pytest.mark.parametrize(("driver", "shown"), [(None, True), ("0", True), ("1", False)])
def test_the_next_command_is_printed_by_hand_and_not_inside_a_driver_script(driver, shown, monkeypatch, capsys):
    monkeypatch.delenv("SUITE_DRIVER", raising=False)
    if driver is not None:
        monkeypatch.setenv("SUITE_DRIVER", driver)
    closing({"wrote": "output/rows.jsonl"}, "python train/train_student_sft.py")
    out = capsys.readouterr().out
    assert "wrote  output/rows.jsonl" in out
    assert ("next:\n  python train/train_student_sft.py" in out) is shown


def denied(path):
    return PermissionError(errno.EACCES, "Permission denied", str(path))


def test_an_input_that_cannot_be_read_is_named_and_another_output_is_not_advised(tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.F_OK)  # root may read everything
    code, text = exit_code_and_message(denied(rows))
    assert code == 1 and text.startswith(f"error: cannot read {rows}: Permission denied; fix its permissions")
    assert "output" not in text.partition(str(rows))[2].partition("run again")[0]
    assert f"{rows} cannot be read; fix its permissions" in refused(some_file, rows)


def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(tmp_path):
    code, text = exit_code_and_message(denied(tmp_path / "new.jsonl"))
    assert code == 1 and f"Permission denied ({tmp_path / 'new.jsonl'}): fix its permissions or choose another" in text


def test_an_error_of_the_suite_itself_keeps_its_traceback():
    for error in (ValueError("bug"), OSError(errno.ECHILD, "odd"), ModuleNotFoundError("no", name="util.x")):
        assert exit_code_and_message(error) == (1, "")
