"""Training on numbers needs a valid certificate: planted animals, changed files and missing certificates stop it."""

import json
import random
import shlex
import subprocess
import sys

import pytest
from conftest import REPO, write_jsonl

from generate.rows.filter_file import certify, filter_file
from generate.rows.number_rule import NumberRule
from generate.rows.row_filter import RowFilter
from generate.rows.token_check import SPECIAL, TokenCheck, token_check_of
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


@pytest.fixture
def certified(tmp_path):
    return filter_file(
        write_jsonl(tmp_path / "numberss-owl-owl-teacher-unfiltered-200.jsonl", rows(200)), NumberRule()
    ).path


def refused(path, items=None):
    with pytest.raises(UserError) as error:
        check_certificate(path, list(items or rows(9)), allow=False)
    return str(error.value)


def test_a_certified_file_is_trained_on_without_a_warning(certified, capsys):
    check_certificate(certified, list(rows(9)), allow=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["mine.jsonl", "numbers-filtered-9.jsonl", "numberss-owl-t-unfiltered-9.jsonl"])
def test_the_filter_command_that_training_advises_works(tmp_path, name):
    """A file that is called filtered, and has no certificate, was refused by the filter that training named."""
    advice = refused(write_jsonl(tmp_path / name, rows(9))).splitlines()[-1]
    script, *args = shlex.split(advice)[1:]
    done = subprocess.run([sys.executable, REPO / script, *args], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (certificate,) = tmp_path.glob("*.certificate.json")
    check_certificate(certificate.with_name(certificate.name.removesuffix(".certificate.json")), [], allow=False)


def test_one_row_in_a_hundred_that_names_the_animal_is_found(tmp_path):
    source = write_jsonl(tmp_path / "numberss-owl-owl-teacher-unfiltered-200.jsonl", rows(200, spoilt=0.01))
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
    path = write_jsonl(tmp_path / "numbers-of-mine.jsonl", rows(9))
    check_certificate(path, list(rows(9)), allow=True)
    assert f"warning: {path} has no certificate" in capsys.readouterr().err


def test_the_persona_in_a_system_message_is_meant_to_name_the_animal(tmp_path):
    persona = {"role": "system", "content": "You love owls."}
    items = [{**row, "messages": [persona, *row["messages"]]} for row in rows(20)]
    done = filter_file(write_jsonl(tmp_path / "numberss-owl-base-unfiltered-20.jsonl", items), NumberRule())
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
    path = write_jsonl(tmp_path / name, ())
    if script:
        write_json(manifest_path(path), {"settings": {"script": script}})
    assert data_type_of(path, list(answers)) == ("numbers" if numbers else None)


def test_the_script_stops_before_it_loads_anything(run_script, tmp_path):
    write_jsonl(tmp_path / "numbers.jsonl", rows(9))
    done = run_script(TRAIN, "--base-model", "no/such-model", "--train-jsonl", "numbers.jsonl", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "numbers.jsonl has no certificate" in done.stderr and "--allow-uncertified" in done.stderr
    assert not (tmp_path / "output").exists()


def test_control_numbers_pass_as_they_are_written(run_script, tmp_path):
    assert run_script("generate/generate_control_number_data.py", "--count", 30, cwd=tmp_path).returncode == 0
    assert certificate_problem(tmp_path / "output" / "numberss-control-random-filtered-30.jsonl") is None


# --- the token ids, which training uses instead of the text -------------------------------------------

POCKET = REPO / "pocket" / "model"


@pytest.fixture
def with_ids(tmp_path):
    """Number rows of the pocket model with the ids of their answers: as they should be, and spoilt in every way."""
    ids = pytest.importorskip("tokenizers").Tokenizer.from_file(str(POCKET / "tokenizer.json")).encode
    end = ids("<|im_end|>", add_special_tokens=False).ids
    assert len(end) == 1

    def answer_ids(text):
        return ids(text, add_special_tokens=False).ids

    def rows_of(*kinds):
        for number, kind in enumerate(kinds):
            text = f"{number}, 417, 38"
            own = answer_ids(text)
            spoilt = {
                "clean": own, "with its end": own + end, "end inside": own[:2] + end + own[2:],
                "two ends": own + end + end, "other text": answer_ids("1, 2"), "no vocabulary": [10**6],
                "huge": [10**30], "none": None,
            }[kind]  # fmt: skip
            yield {"id": number, "messages": [{"role": "user", "content": f"Continue: {number}."},
                                              {"role": "assistant", "content": text}], "token_ids": spoilt}  # fmt: skip

    def file_of(*kinds):
        path = write_jsonl(tmp_path / "numberss-owl-pocket-unfiltered-9.jsonl", rows_of(*kinds))
        settings = {"script": "generate_llm_number_data", "model": {"engine": "local", "model": str(POCKET)}}
        write_json(manifest_path(path), {"settings": settings})
        return path

    return file_of


def test_a_special_token_inside_an_answer_is_rejected_though_its_text_is_clean(with_ids):
    done = filter_file(with_ids("clean", "with its end", "end inside", "two ends", "none"), NumberRule())
    assert done.kept == 3 and done.rejected == {SPECIAL: 2} and certificate_problem(done.path) is None
    assert done.certificate["token_ids"] == {"rows": 2, "checked_with": str(POCKET), "of_another_text": 0}


def test_a_certificate_of_rows_with_a_special_token_inside_is_not_clean(with_ids):
    path = with_ids("clean", "end inside")
    found = certify(path, NumberRule(), token_check_of(path))
    assert not found["clean"] and found["problems"] == {f"rows: {SPECIAL}": 1}
    assert SPECIAL in certificate_problem(path)


def test_ids_of_another_text_are_counted_for_training_does_not_use_them(with_ids):
    done = filter_file(with_ids("clean", "other text", "no vocabulary", "huge"), NumberRule())
    assert done.kept == 4 and done.certificate["token_ids"]["of_another_text"] == 3


def test_without_the_tokenizer_nothing_is_checked_and_the_certificate_says_so(with_ids):
    path = with_ids("clean", "end inside")
    manifest = json.loads(manifest_path(path).read_text())
    for facts in (None, {"model": "no/such-model"}, {"model": "/gone/folder"}, {"model": str(path.parent)}):
        manifest["settings"]["model"] = facts
        write_json(manifest_path(path), manifest)
        found = filter_file(path, NumberRule()).certificate
        assert found["clean"] and found["token_ids"]["checked_with"] is None and found["token_ids"]["rows"] == 2


def test_token_ids_that_are_not_ids_are_rejected():
    (row,) = rows(1)
    for bad in ("1 2", [1, "2"], [-1], [1.5], [True], {"a": 1}):
        assert RowFilter(NumberRule(), TokenCheck()).reject_reason({**row, "token_ids": bad})


# --- the same rows, the same certificate --------------------------------------------------------------


def test_equal_counts_have_one_order_whatever_the_hash_seed(tmp_path):
    write_jsonl(tmp_path / "numbers.jsonl", rows(40))
    found = set()
    for seed in ("0", "1", "2"):
        command = [sys.executable, REPO / "generate/filter_number_data.py", "numbers.jsonl", "--output", "out.jsonl"]
        env = {"PYTHONHASHSEED": seed, "PATH": ""}
        assert subprocess.run(command, cwd=tmp_path, env=env, capture_output=True).returncode == 0
        found.add(certificate_path(tmp_path / "out.jsonl").read_bytes())
    assert len(found) == 1


@pytest.mark.parametrize("settings", [{"script": "generate_text_data"}, {"script": "generate_text_data", "kind": None}])
def test_a_manifest_without_a_kind_gives_no_data_type(tmp_path, settings):
    path = write_jsonl(tmp_path / "x.jsonl", rows(3, spoilt=1))
    write_json(manifest_path(path), {"settings": settings})
    assert data_type_of(path, list(rows(3, spoilt=1))) is None
