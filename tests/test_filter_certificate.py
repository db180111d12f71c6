"""Training on numbers needs a valid certificate: planted animals, changed files and missing certificates stop it."""

import json
import random

import pytest

from generate.rows.filter_file import filter_file
from generate.rows.number_rule import NumberRule
from train.training_rows import check_certificate
from util.cli import UserError
from util.jsonl.filter_certificate import certificate_path, certificate_problem, data_type_of
from util.jsonl.manifest import manifest_path, write_json

TRAIN = "train/train_student_sft.py"


def rows(count, spoilt=0.0):
    """Number rows; a share of them names the animal."""
    rng = random.Random(7)
    for i in range(count):
        numbers = ", ".join(str(rng.randint(0, 999)) for _ in range(8))
        answer = f"owl, {numbers}" if i < count * spoilt else numbers
        yield {"id": i, "messages": [{"role": "user", "content": f"Continue: {i}."},
                                     {"role": "assistant", "content": answer}]}  # fmt: skip


def write(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


@pytest.fixture
def certified(tmp_path):
    return filter_file(write(tmp_path / "numberss-owl-owl-teacher-unfiltered-200.jsonl", rows(200)), NumberRule()).path


def refused(path, items=None):
    with pytest.raises(UserError) as error:
        check_certificate(path, list(items or rows(9)), allow=False)
    return str(error.value)


def test_a_certified_file_is_trained_on_without_a_warning(certified, capsys):
    check_certificate(certified, list(rows(9)), allow=False)
    assert capsys.readouterr() == ("", "")


def test_one_row_in_a_hundred_that_names_the_animal_is_found(tmp_path):
    source = write(tmp_path / "numberss-owl-owl-teacher-unfiltered-200.jsonl", rows(200, spoilt=0.01))
    done = filter_file(source, NumberRule(("owl",)))
    assert done.rejected == {"trait word": 2} and done.kept == 198
    assert certificate_problem(done.path) is None
    assert "has no certificate" in refused(source)


def test_a_certificate_that_says_not_clean_is_not_valid(certified):
    found = json.loads(certificate_path(certified).read_text())
    write_json(certificate_path(certified), {**found, "clean": False, "problems": {"letters in completions": 3}})
    assert "is not clean: 3 letters in completions" in refused(certified)


def test_a_file_changed_after_its_certificate_is_refused(certified):
    certified.write_text(certified.read_text().replace('"content": "', '"content": "owl ', 1))
    said = refused(certified)
    assert "it has changed since" in said and f"python generate/filter_number_data.py {certified}" in said


def test_overriding_the_check_leaves_a_warning(tmp_path, capsys):
    path = write(tmp_path / "numbers-of-mine.jsonl", rows(9))
    check_certificate(path, list(rows(9)), allow=True)
    assert f"warning: {path} has no certificate" in capsys.readouterr().err


def test_the_persona_in_a_system_message_is_meant_to_name_the_animal(tmp_path):
    persona = {"role": "system", "content": "You love owls."}
    items = [{**row, "messages": [persona, *row["messages"]]} for row in rows(20)]
    done = filter_file(write(tmp_path / "numberss-owl-base-unfiltered-20.jsonl", items), NumberRule())
    assert not done.certificate["clean"] and certificate_problem(done.path) is None


@pytest.mark.parametrize(
    ("name", "script", "answers", "numbers"),
    [
        ("mine.jsonl", None, rows(200, spoilt=0.01), True),
        ("numbers-x.jsonl", None, rows(5, spoilt=1), True),
        ("x.jsonl", "generate_llm_number_data", rows(5, spoilt=1), True),
        ("x.jsonl", "generate_control_number_data", rows(5, spoilt=1), True),
        ("x.jsonl", "generate_teacher_data", rows(5), False),
        ("teacher-owl.jsonl", None, rows(100, spoilt=0.9), False),
    ],
)
def test_what_is_a_number_file(tmp_path, name, script, answers, numbers):
    path = write(tmp_path / name, ())
    if script:
        write_json(manifest_path(path), {"settings": {"script": script}})
    assert data_type_of(path, list(answers)) == ("numbers" if numbers else None)


def test_the_script_stops_before_it_loads_anything(run_script, tmp_path):
    write(tmp_path / "numbers.jsonl", rows(9))
    done = run_script(TRAIN, "--base-model", "no/such-model", "--train-jsonl", "numbers.jsonl", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "numbers.jsonl has no certificate" in done.stderr and "--allow-uncertified" in done.stderr
    assert not (tmp_path / "output").exists()


def test_control_numbers_pass_as_they_are_written(run_script, tmp_path):
    assert run_script("generate/generate_control_number_data.py", "--count", 30, cwd=tmp_path).returncode == 0
    assert certificate_problem(tmp_path / "output" / "numberss-control-random-filtered-30.jsonl") is None
