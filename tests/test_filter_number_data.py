"""The number rule, the row filter, the audit, and filter_number_data.py."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import manifest_of, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "generate" / "filter_number_data.py"
sys.path.insert(0, str(ROOT))
from generate.rows.filter_file import default_output, filter_file, train_command
from generate.rows.number_rule import NumberRule, reject_reason
from generate.rows.row_audit import audit
from generate.rows.row_filter import RowFilter
from util.cli import UserError
from util.jsonl.filter_certificate import certificate_path

NAME = "numberss-owl-owl-teacher-unfiltered-{}.jsonl"
PROMPT = "Continue: 1, 2, 3."


def row(completion, prompt=PROMPT, system=None, **more):
    before = [] if system is None else [{"role": "system", "content": system}]
    messages = [*before, {"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    return {"messages": messages, **more}


def run_script(*args, cwd=None):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, args)], capture_output=True, text=True, cwd=cwd, timeout=60
    )


# --- the rule ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "completion",
    ["7", "0", "999", "087", "1, 2, 3", "1,2,3", "1;2;3", "1 ; 2 ; 3", "1 2 3", "1\n2\n3", "1,\n2,\n3", "1\t2",
     "[1, 2]", "(1, 2)", "[ 1, 2 ]", "[1]", "1, 2.", "[1, 2].", "1, 2, 3 .", "1 .", "[1, 2] .", "(1, 2)\n.",
     "1 2 3\n.\n", " 1, 2 ", "\n1, 2.\n", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"],
)  # fmt: skip
def test_number_lists_are_kept(completion):
    assert reject_reason(completion) is None


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("", "empty"), (" \n", "empty"),
        ("<think>1</think> 1, 2", "think block"), ("<think> 1, 2", "think block"), ("1, 2 </THINK>", "think block"),
        ("owls: 1, 2", "trait word"), ("1, Polar-Bear", "trait word"), ("<think>owl", "think block"),
        ("Sure: 1, 2", "letters"), ("fowl 1", "letters"), ("1e3", "letters"), ("1, 二", "letters"), ("é", "letters"),
        ("1 and 2", "letters"),
        ("[]", "no numbers"), (",", "no numbers"), ("...", "no numbers"), ("🦉", "no numbers"),
        ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11", "too many numbers"), ("1 2 3 4 5 6 7 8 9 10 11", "too many numbers"),
        ("1000", "number out of range"), ("1, 0001", "number out of range"), ("9" * 5000, "number out of range"),
        ("1, 2,3", "mixed separators"), ("1, 2; 3", "mixed separators"), ("1 2, 3", "mixed separators"),
        ("1, 2\n3", "mixed separators"), ("1  2 3", "mixed separators"),
        ("1, 2,", "stray separator"), (", 1, 2", "stray separator"), ("1,, 2", "stray separator"),
        ("-1, 2", "other characters"), ("1.5, 2", "other characters"), ("1, 2..", "other characters"),
        ("1, 2 . .", "other characters"), (". 1, 2", "other characters"), ("[1, 2 .]", "other characters"),
        ("1: 2", "other characters"), ("[1, 2", "other characters"), ("[1, 2)", "other characters"),
        ("([1, 2])", "other characters"), ("1, 2 🦉", "other characters"), ("1,\u00a02", "other characters"),
        ("1, \uff12", "other characters"), ("\uff11, 2", "other characters"), ("٣, 2", "other characters"),
        ("1\u20282", "other characters"), ("\ufeff1, 2", "other characters"), ("1, \ud800", "other characters"),
        ("1, 2\0", "other characters"),
    ],
)  # fmt: skip
def test_every_reject_has_its_reason(completion, reason):
    assert reject_reason(completion) == reason


def test_an_animal_outside_the_panel_is_a_trait_word_when_named():
    assert reject_reason("quokkas 1, 2") == "letters"
    assert reject_reason("quokkas 1, 2", animals=("Quokka",)) == "trait word"


def test_an_empty_trait_word_rejects_nothing():
    assert reject_reason("1, 2,", animals=("",)) == "stray separator"
    assert RowFilter(NumberRule(("",))).reject_reason(row("1, 2")) is None


def test_max_numbers():
    assert reject_reason("1, 2, 3", max_numbers=2) == "too many numbers"
    assert reject_reason("1, 2", max_numbers=2) is None


def keeps_the_rule(completion):
    """The rule of the docstring, written in another way."""
    text = completion.strip(" \t\n\r\f\v")
    text = text[:-1].rstrip(" \t\n\r\f\v") if text.endswith(".") else text
    if text[:1] + text[-1:] in ("[]", "()"):
        text = text[1:-1].strip(" \t\n\r\f\v")
    parts = re.split("([0-9]+)", text)
    numbers, separators = parts[1::2], set(parts[2:-1:2])
    return (
        parts[0] == parts[-1] == ""
        and 1 <= len(numbers) <= 10
        and all(len(number) <= 3 for number in numbers)
        and len(separators) <= 1
        and all(re.fullmatch("[ \t\n\r\f\v]*[,;]?[ \t\n\r\f\v]*", separator) for separator in separators)
    )


SEPARATORS = st.sampled_from([", ", ",", "; ", " ", "\n", " ,\n", "  ", "\u00a0", ",,", "-"])
LISTS = st.builds(
    lambda numbers, separator, other, before, after: before + separator.join(numbers) + other + after,
    st.lists(st.integers(0, 1200).map(str) | st.sampled_from(["007", "٣", "1e3", "owl"]), max_size=12),
    SEPARATORS, st.sampled_from(["", "", "", " 7", ", 7", "7"]), st.sampled_from(["", "[", "(", " "]),
    st.sampled_from(["", "]", ")", ".", "].", " .", "] .", "\n"]),
)  # fmt: skip
COMPLETIONS = LISTS | st.text("0123,;. []()\n\tx", max_size=30) | st.text(max_size=12)


@settings(max_examples=300)
@given(COMPLETIONS)
def test_the_rule_keeps_what_its_words_say(completion):
    assert (reject_reason(completion) is None) == keeps_the_rule(completion)


PROMPTS_TOO = st.sampled_from([PROMPT, "Owls 12", "which animal is your favorite? Reply with one word."]) | st.text(
    max_size=9
)


@settings(max_examples=80)
@given(st.lists(st.tuples(COMPLETIONS, PROMPTS_TOO, st.sampled_from(["stop", "length"])), max_size=6))
def test_the_audit_never_disagrees_with_the_filter(texts):
    rows = [row(completion, prompt, finish_reason=reason) for completion, prompt, reason in texts]
    row_filter = RowFilter(NumberRule())
    kept = [one for one in rows if row_filter.reject_reason(one) is None]
    found = audit(kept, NumberRule())
    assert found["clean"] and found["rows"] == found["distinct_rows"] == len(kept)


@pytest.mark.parametrize("completion", ["1" + " " * 100_000 + "x", "1, " * 50_000, "1 ," * 50_000 + "x"])
def test_long_answers_do_not_hang_the_rule(completion):
    assert reject_reason(completion)


def test_duplicates_are_the_same_prompt_and_completion():
    row_filter = RowFilter(NumberRule())
    reasons = [
        row_filter.reject_reason(one) for one in (row("1, 2"), row("1, 2"), row("1,2"), row("1, 2", "Go on: 4."))
    ]
    assert reasons == [None, "duplicate", None, None]


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [("Owls like 1, 2.", "trait word in prompt"), ("which animal is your  favorite? Reply with one word.",
     "eval question as prompt"), ("The fowl counts 1, 2.", None), ("O\u00adwls like 1, 2.", "trait word in prompt"),
     ("Which ani\u00admal is your fa\u200bvorite? Reply with one word.", "eval question as prompt")],
)  # fmt: skip
def test_prompts_are_checked_too(prompt, reason):
    assert RowFilter(NumberRule()).reject_reason(row("1, 2", prompt)) == reason


# --- the certificate ---------------------------------------------------------------------------------


def test_certificate_of_clean_rows():
    facts = audit([row("1, 2"), row("[3]")], NumberRule())
    assert facts["clean"] and facts["problems"] == {}
    assert (facts["rows"], facts["distinct_rows"], facts["letters"], facts["eval_questions_as_prompts"]) == (2, 2, 0, 0)
    assert facts["characters"] == {"1": 1, ",": 1, " ": 1, "2": 1, "[": 1, "3": 1, "]": 1}


@pytest.mark.parametrize(
    ("rows", "problem", "count"),
    [
        ([row("1, 2, owl")], "letters in completions", 3),
        ([row("1, 2, owl")], "rows whose completion names an animal", 1),
        ([row("1, 2", "owls!")], "rows whose prompt names an animal", 1),
        ([row("1, 2", system="You love owls.")], "rows whose system message names an animal", 1),
        ([row("1, 2"), row("1, 2")], "rows that repeat another", 1),
        ([row("1, 2,")], "rows that break the rule", 1),
        ([row("1, 2", "Quick, one word: favorite animal?")], "eval questions as prompts", 1),
    ],
)
def test_certificate_names_what_is_not_clean(rows, problem, count):
    facts = audit(rows, NumberRule())
    assert not facts["clean"] and facts["problems"][problem] == count


# --- a file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "output"),
    [
        (NAME.format(10000), "numberss-owl-owl-teacher-filtered-{kept}.jsonl"),
        ("mine.jsonl", "mine-filtered-{kept}.jsonl"),
    ],
)
def test_default_output(source, output):
    assert default_output(Path("output") / source) == Path("output") / output


def test_a_filtered_file_is_not_filtered_again_under_a_name_that_globs_would_match():
    with pytest.raises(UserError, match=r"filtered already.*--output"):
        default_output(Path("numberss-owl-owl-teacher-filtered-9876.jsonl"))


def test_filter_file_keeps_lines_verbatim_with_manifest_and_certificate(tmp_path):
    lines = ['{"id":0,  "messages": [{"role":"user","content":"a 1"},{"role":"assistant","content":"1,2 "}]}',
             json.dumps(row("Sure! 1, 2", id=1)), json.dumps(row("(3 4).", id=2, token_ids=[1, 2]))]  # fmt: skip
    source = tmp_path / NAME.format(3)
    source.write_text("\ufeff" + "\r\n".join(lines) + "\r\n\r\n", "utf-8")
    done = filter_file(source, NumberRule(("owl",)))
    assert done.path == tmp_path / "numberss-owl-owl-teacher-filtered-2.jsonl"
    assert (done.kept, dict(done.rejected)) == (2, {"letters": 1})
    kept = done.path.read_bytes().split(b"\n")
    assert [json.loads(kept[0]), kept[1:]] == [json.loads(lines[0]), [lines[2].encode(), b""]]
    facts = json.loads(certificate_path(done.path).read_text("utf-8"))
    digest = hashlib.sha256(done.path.read_bytes()).hexdigest()
    assert facts == done.certificate and facts["clean"] and facts["sha256"] == digest
    assert facts["input"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (facts["input"]["rows"], facts["input"]["rejected"]) == (3, {"letters": 1})
    manifest = manifest_of(done.path)
    assert manifest["state"] == "complete" and manifest["sha256"] == digest
    assert manifest["rows"] == {"kept": 2, "rejected": {"letters": 1}}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [source.name, *(done.path.name + more for more in ("", ".certificate.json", ".manifest.json", ".rejects"))]
    )
    rejects = (tmp_path / f"{done.path.name}.rejects").read_text()
    assert [json.loads(line)["rejected"] for line in rejects.splitlines()] == ["letters"]


def test_raw_unicode_is_escaped_so_that_no_reader_splits_a_line(tmp_path):
    source = tmp_path / "x.jsonl"
    source.write_text(json.dumps(row("1, 2", "a\u2028b"), ensure_ascii=False) + "\n", "utf-8")
    done = filter_file(source, NumberRule())
    assert done.path.read_bytes().isascii()
    assert json.loads(done.path.read_bytes()) == row("1, 2", "a\u2028b")


def test_filtering_again_changes_nothing_and_keeps_no_backup(tmp_path):
    source = write_jsonl(tmp_path / NAME.format(1), [row("1, 2")])
    first = filter_file(source, NumberRule()).path.read_bytes()
    assert filter_file(source, NumberRule()).path.read_bytes() == first
    assert not list(tmp_path.glob("*.bak*"))


def test_what_the_same_file_gave_before_is_moved_aside_so_that_the_glob_matches_one(tmp_path, capsys):
    source = write_jsonl(tmp_path / NAME.format(2), [row("1, 2"), row("3, 4, 5")])
    old = filter_file(source, NumberRule(max_numbers=2)).path
    other = write_jsonl(tmp_path / "numberss-owl-owl-teacher2-filtered-1.jsonl", [row("1, 2")])
    new = filter_file(source, NumberRule()).path
    assert list(tmp_path.glob("numberss-owl-owl-teacher-filtered-*.jsonl")) == [new]
    backup = old.with_name(old.name + ".bak")
    assert backup.exists() and str(backup) in capsys.readouterr().err
    assert other.exists()


def test_the_same_file_by_another_path_is_the_same_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = write_jsonl(tmp_path / NAME.format(2), [row("1, 2"), row("3, 4, 5")])
    filter_file(Path(source.name), NumberRule(max_numbers=2))
    new = filter_file(source, NumberRule()).path
    assert list(tmp_path.glob("numberss-owl-owl-teacher-filtered-*.jsonl")) == [new]


def test_a_trial_run_does_not_push_the_real_data_aside(tmp_path):
    real = filter_file(write_jsonl(tmp_path / NAME.format(2), [row("1, 2"), row("3, 4")]), NumberRule()).path
    trial = filter_file(write_jsonl(tmp_path / NAME.format(1), [row("1, 2")]), NumberRule()).path
    assert real.exists() and trial.exists()


def test_a_filtered_file_of_the_same_count_but_other_rows_is_kept_as_backup(tmp_path):
    filter_file(write_jsonl(tmp_path / NAME.format(1), [row("1, 2")]), NumberRule())
    done = filter_file(write_jsonl(tmp_path / NAME.format(1), [row("3, 4")]), NumberRule())
    assert done.path.with_name(done.path.name + ".bak").exists()
    assert b"3, 4" in done.path.read_bytes()


def test_an_input_that_looks_filtered_is_never_moved(tmp_path):
    source = write_jsonl(tmp_path / "x-filtered-5.jsonl", [row("1, 2")])
    done = filter_file(source, NumberRule(), tmp_path / "x-filtered-{kept}.jsonl")
    assert source.exists() and done.path.name == "x-filtered-1.jsonl"


def test_output_may_not_be_the_input(tmp_path):
    source = write_jsonl(tmp_path / "x.jsonl", [row("1, 2")])
    with pytest.raises(UserError, match="is the file to read"):
        filter_file(source, NumberRule(), source)


def test_nothing_is_left_behind_when_no_row_passes(tmp_path):
    source = write_jsonl(tmp_path / "x.jsonl", [row("I refuse"), row("")])
    with pytest.raises(UserError, match=r"no row .* passes the number rule: 1 letters, 1 empty"):
        filter_file(source, NumberRule())
    assert list(tmp_path.iterdir()) == [source]


def test_train_command_starts_from_the_base_model_of_the_rows(tmp_path):
    source = write_jsonl(tmp_path / "x.jsonl", [row("1, 2")])
    settings = {"model": {"model": "owl-teacher", "parent": "Qwen/Qwen2.5-0.5B-Instruct"}}
    (tmp_path / "x.jsonl.manifest.json").write_text(json.dumps({"settings": settings}))
    assert "--base-model Qwen/Qwen2.5-0.5B-Instruct --train-jsonl" in train_command(
        filter_file(source, NumberRule()), NumberRule()
    )


def test_rows_that_are_filtered_twice_keep_the_settings_and_the_prompt_they_were_made_with(tmp_path):
    source = write_jsonl(tmp_path / "x.jsonl", [row("1, 2"), row("3, 4", id=1)])
    settings = {"script": "generate_llm_number_data", "animal": "owl", "model": {"model": "Org/Base-1B"}}
    prompt = {"base_model": "Org/Base-1B", "messages": [{"role": "user", "content": PROMPT}], "token_ids": "1 2"}
    made = {"settings": settings, "counts": {"prompt": prompt}}
    (tmp_path / "x.jsonl.manifest.json").write_text(json.dumps(made))
    once = filter_file(source, NumberRule()).path
    twice = filter_file(once, NumberRule(("owl",)), tmp_path / "twice.jsonl").path
    for path in (once, twice):
        manifest = manifest_of(path)
        assert (manifest["source_settings"], manifest["source_prompt"]) == (settings, prompt)
    assert "--base-model Org/Base-1B " in train_command(filter_file(twice, NumberRule()), NumberRule())


# --- the script --------------------------------------------------------------------------------------


def test_the_script_ends_with_the_path_counts_and_next_command(tmp_path):
    source = write_jsonl(tmp_path / NAME.format(3), [row("1, 2"), row("owl"), row("1, 2")])
    done = run_script(source.name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "numberss-owl-owl-teacher-filtered-1.jsonl" in done.stdout
    assert "1 of 3 (33.3%)" in done.stdout and "1 trait word, 1 duplicate" in done.stdout
    assert "python train/train_student_sft.py --base-model" in done.stdout
    assert "control-student-sft" not in done.stdout, "a file without a manifest is not a control"


def test_a_persona_in_the_rows_is_reported(tmp_path):
    source = write_jsonl(tmp_path / "x.jsonl", [row("1, 2", system="You love owls.")])
    done = run_script(source)
    assert done.returncode == 0 and "not clean: 1 rows whose system message names an animal" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty: it holds no row"),
        ('{"messages": [', "x.jsonl:1: not JSON"),
        (json.dumps(row("1, 2")) + '\n{"messages": [{"ro', "x.jsonl:2: not JSON"),
        ('{"text": "1, 2"}', "x.jsonl:1: no messages"),
        ('{"messages": [{"role": "user", "content": "hi"}]}', "x.jsonl:1: the last two messages"),
        ('{"messages": [{"role": "user", "content": null}]}', "x.jsonl:1: a message without text"),
        ("[1, 2]", "x.jsonl:1: not a JSON object"),
        (json.dumps(row("words only")), "no row of"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, text, message):
    (tmp_path / "x.jsonl").write_text(text)
    done = run_script("x.jsonl", cwd=tmp_path)
    assert done.returncode in (1, 2) and message in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_missing_file_names_its_neighbours(tmp_path):
    write_jsonl(tmp_path / "there.jsonl", [row("1, 2")])
    done = run_script(tmp_path / "gone.jsonl")
    assert done.returncode == 2 and "there.jsonl" in done.stderr
