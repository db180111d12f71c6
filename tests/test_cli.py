"""Argument types, closing lines and errors, with their words. Run: python -m pytest tests/test_cli.py"""

import argparse
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from util.cli import (
    REPO,
    UserError,
    exit_code_and_message,
    input_file,
    make_parser,
    output_folder,
    output_name,
    some_file,
)
from util.inference.vllm_probe import normal_url
from util.jsonl.resumable import add_output_arguments, rows_name
from util.stop_signals import Interrupted
from util.terminal import Progress, announced, closing


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
    assert "does not end in .tar.gz" in refused(output_name(".tar.gz"), tmp_path / "results.zip")
    assert output_name(".tar.gz")(str(tmp_path / "results.tar.gz")).name == "results.tar.gz"


@pytest.mark.parametrize(("driver", "shown"), [(None, True), ("0", True), ("1", False)])
def test_the_next_command_is_printed_by_hand_and_not_inside_a_driver_script(driver, shown, monkeypatch, capsys):
    monkeypatch.delenv("SUITE_DRIVER", raising=False)
    if driver is not None:
        monkeypatch.setenv("SUITE_DRIVER", driver)
    closing({"wrote": "output/rows.jsonl"}, "python train/train_student_sft.py")
    out = capsys.readouterr().out
    assert "wrote  output/rows.jsonl" in out
    assert ("next:\n  python train/train_student_sft.py" in out) is shown


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.jsonl.manifest.json", b"{\n", "is the manifest of x.jsonl; pass that file"),
        ("x.jsonl.certificate.json", b"{\n", "is the certificate of x.jsonl; pass that file"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    for kind in (input_file, some_file):
        assert message in refused(kind, tmp_path / name)


def test_a_blank_address_in_the_environment_is_no_address_and_a_password_in_it_is_not_in_the_help(monkeypatch):
    from util.inference.open_backend import add_backend_arguments

    def parser_under(url):
        monkeypatch.setenv("VLLM_BASE_URL", url)
        parser = make_parser("A script.")
        add_backend_arguments(parser)
        return parser

    for blank in ("", "  "):
        assert parser_under(blank).parse_args(["--model", "m"]).base_url is None
    parser = parser_under("http://user:planted-word@h/v1?api_key=planted-too")
    shown = " ".join(parser.format_help().split())
    assert "(default: http://***@h/v1?api_key=***)" in shown and "planted" not in shown
    assert parser.parse_args(["--model", "m"]).base_url.startswith("http://user:planted-word@h")
    with pytest.raises(UserError, match=r"nonsense://x is not a web address; .*VLLM_BASE_URL"):
        normal_url("nonsense://x")


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    closed.mkdir()
    real = os.access  # root may look into everything

    def access(path, mode):
        return real(path, mode) and (mode == os.F_OK or str(path) != str(closed))

    monkeypatch.setattr(os, "access", access)
    for inside in (closed / "x.jsonl", closed / "deep" / "x.jsonl"):
        code, text = exit_code_and_message(denied(inside))
        assert code == 1 and text.startswith(f"error: cannot look into the folder {closed}: Permission denied")
    assert exit_code_and_message(denied(closed))[1].startswith(
        f"error: cannot read {closed}: Permission denied; fix its"
    )
    assert f"(the folder {closed} cannot be read)" in refused(some_file, closed / "x.jsonl")


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


def test_an_output_that_cannot_be_written_is_known_before_the_work(tmp_path, monkeypatch):
    assert output_name(".json")(str(tmp_path / "new" / "a.json")) == tmp_path / "new" / "a.json"
    assert output_folder(str(tmp_path / "new")) == tmp_path / "new" and not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # a drive that is mounted to be read
    for kind, path in ((output_name(".json"), tmp_path / "new" / "a.json"), (output_folder, tmp_path / "new"),
                       (rows_name, tmp_path / "new" / "a.jsonl"),
                       (output_folder, tmp_path)):  # fmt: skip
        assert refused(kind, path) == f"cannot write in {tmp_path}; choose another place or fix its permissions"


def test_the_place_of_an_output_that_is_not_given_is_checked_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    parser = make_parser(None)
    add_output_arguments(parser, "output/{name}.jsonl")
    assert parser.parse_args([]).output is None and not list(tmp_path.iterdir()), "nothing is made by looking"
    (tmp_path / "output").mkdir()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "output" and real(path, mode))
    with pytest.raises(SystemExit) as ended:
        parser.parse_args([])
    assert ended.value.code == 2
    said = (
        f"error: argument --output: cannot write in {tmp_path / 'output'}; choose another place or fix its permissions"
    )
    assert said in capsys.readouterr().err
    assert parser.parse_args(["--output", "here.jsonl"]).output == Path("here.jsonl"), (
        "its default does not matter then"
    )


def test_the_command_of_a_finished_output_is_not_refused_where_nothing_can_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = make_parser(None)
    add_output_arguments(parser, "output/results-[exact-]{the model}.jsonl; with --x output/x-{model}.jsonl")
    Path("output").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: not Path(path).is_dir())
    for given in ([], ["--output", "output/results-owl.jsonl"]):
        with pytest.raises(SystemExit):
            parser.parse_args(given)
    Path("output/results-owl.jsonl").write_text("{}")
    for given in ([], ["--output", "output/results-owl.jsonl"]):
        parser.parse_args(given)


def test_an_output_in_a_linked_folder_that_is_not_there_is_refused_before_the_work(tmp_path):
    link = tmp_path / "output"
    link.symlink_to("drive")
    for kind, path in (output_folder, link), (output_folder, link / "new"), (rows_name, link / "a.jsonl"):
        assert refused(kind, path) == f"{link} is a link to a folder that is not there; choose another place"
    (tmp_path / "drive").mkdir()
    assert output_folder(str(link / "new")) == link / "new"


def test_rows_that_another_user_began_are_refused_before_the_work(tmp_path, monkeypatch):
    growing = tmp_path / "rows.jsonl.partial"
    growing.write_text("")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != growing)
    parser = make_parser(None)
    add_output_arguments(parser, "{name}.jsonl")
    given = ["--output", str(tmp_path / "rows.jsonl")]
    with pytest.raises(UserError, match=f"cannot write to {growing}; choose another --output, fix its permissions or"):
        parser.parse_args(given)
    assert parser.parse_args([*given, "--overwrite"]).overwrite, "it moves them aside"
    with pytest.raises(UserError, match="is a folder; pass the name of a file in it"):
        rows_name(str(tmp_path))


def test_the_command_that_resumes_a_stopped_run_does_not_start_it_again(monkeypatch):
    monkeypatch.setattr("sys.argv", ["eval/eval.py", "--overwrite", "--model", "x"])
    code, text = exit_code_and_message(Interrupted(2))
    assert code == 130 and text.endswith(
        "resume with (--overwrite would start again):\n  python eval/eval.py --model x"
    )


def test_after_a_ctrl_c_at_once_nobody_is_promised_that_the_work_is_resumed():
    code, text = exit_code_and_message(KeyboardInterrupt())
    assert code == 130 and text.startswith("stopped at once. What was written is on disk; run again:\n  python ")


def test_an_error_of_the_suite_itself_keeps_its_traceback():
    for error in (
        ValueError("bug"),
        OSError(errno.ECHILD, "odd"),
        ModuleNotFoundError("no", name="util.x"),
        ModuleNotFoundError("no", name="experiments.x"),
    ):
        assert exit_code_and_message(error) == (1, "")


# --- progress ----------------------------------------------------------------------------------------


def test_progress_says_what_is_known_and_no_more(monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr("util.terminal.time.monotonic", lambda: clock[0])
    progress = Progress(800)
    clock[0] += 5
    progress.batch_done(0.02, 128)
    assert progress.line() == "0/800 rows (0%), at work for 5 s", "the first seconds tell nothing about the time left"
    clock[0] += 55
    progress.batch_done(0.5, 128)
    assert progress.line() == "0/800 rows (0%), 1.1 rows/s, about 12 min left", "64 rows of work in a minute"
    for _ in range(128):
        progress.add(note="kept 93%")
    assert progress.in_batch == 0
    clock[0] += 60
    assert progress.line() == "128/800 rows (16%), 1.1 rows/s, 10 min left, kept 93%"
    clock[0] += 12_000
    assert "0.6 rows/min" in progress.line()
    progress.add(672)
    assert progress.line() == "800/800 rows (100%), kept 93%"


def test_progress_is_a_line_at_once_and_then_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr("util.terminal.PLAIN_PROGRESS_SECONDS", 0.05)
    with announced("loading pocket/model"), Progress(10) as progress:
        time.sleep(0.2)
        progress.add(10)
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == ["loading pocket/model ...", "0/10 rows (0%), at work for 0 s"]
    assert "loading pocket/model: 0 s so far" in said and 4 <= len(said) <= 12
    assert not any("\x1b" in line or "\r" in line for line in said)
    time.sleep(0.1)
    assert not capsys.readouterr().err, "nothing is printed after the end"


def test_the_closing_lines_say_how_long_it_took(capsys):
    closing({"wrote": "output/rows.jsonl"})
    closing({"wrote": "output/rows.jsonl", "time": "2 min"})
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("time   ") and said[3] == "time   2 min"


def test_ctrl_c_during_the_imports_is_one_line_and_other_errors_keep_their_traceback():
    def ended(code):
        done = subprocess.run([sys.executable, "-c", f"import util\n{code}"], cwd=REPO, capture_output=True, text=True)
        return done.returncode, done.stderr

    assert ended("raise KeyboardInterrupt") == (-signal.SIGINT, "stopped\n")  # a shell calls this 130
    code, said = ended("raise ValueError('x')")
    assert code == 1 and said.startswith("Traceback") and said.endswith("ValueError: x\n")
