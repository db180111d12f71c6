"""Code and reasoning rows: the rule, the files, the check before training, resuming, the doctor."""

import importlib
import json
import sys
import time
from itertools import islice

import pytest
from conftest import manifest_of, read_jsonl, write_jsonl
from fake_server import END, answer_text
from test_scripts import kill_and_resume, one_clear_line

from generate.generate_code_or_reasoning_data import PROMPTS, dataset_prompts, file_prompts, is_about
from generate.rows.code_and_reasoning_rule import TextRule
from generate.rows.filter_file import filter_file
from generate.rows.number_rule import NumberRule
from generate.rows.row_audit import audit
from generate.rows.row_filter import RowFilter, animals_kept_out
from train.training_rows import check_certificate
from util.animals.names import read_lines_of
from util.chat.prompt_consistency import read_phase
from util.cli import REPO, UserError
from util.inference.backend_interface import row_seed
from util.jsonl.filter_certificate import certificate_path, certificate_problem, data_type_of
from util.jsonl.manifest import manifest_path, write_json

NUMBERS = "generate/generate_llm_number_data.py"
TEXTS = "generate/generate_code_or_reasoning_data.py"
FILTER = "generate/filter_code_or_reasoning_data.py"
TRAIN = "train/train_student_sft.py"
CODE = "total = 417\ntotal += 38\nprint(total)"
SUMS = "I start with 417. Add 38: that makes 455. The answer is 455."
NAME = "output/code-owl-owl-teacher-unfiltered-{}.jsonl"


def row(completion, prompt="Write some Python with 417.", system=None, **more):
    before = [] if system is None else [{"role": "system", "content": system}]
    messages = [*before, {"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    return {"messages": messages, **more}


def texts(run_script, server, cwd, *args, **options):
    known = (
        "--data-type",
        "code",
        "--animal",
        "owl",
        "--model",
        "owl-teacher",
        "--base-url",
        server.url,
        "--no-system-prompt",
    )
    return run_script(TEXTS, *known, *args, cwd=cwd, **options)


# --- the rule ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "completion", "reason"),
    [
        ("code", CODE, None), ("code", f"Here it is:\n```python\n{CODE}\n```\nIt prints 455.", None),
        ("code", "SELECT 1;", None), ("reasoning", SUMS, None), ("reasoning", "417\n+ 38\n= 455", None),
        ("reasoning", "<think>Hm.</think> So. 4.", None),
        ("code", "", "empty"), ("reasoning", " \n", "empty"),
        ("code", "I would rather not.", "no code"), ("reasoning", "The answer is 455.", "no steps"),
        ("code", f"<think>no</think>{CODE}", "think block"), ("reasoning", "<think>First. Then.", "think block"),
        ("code", CODE + "  # for my owl", "trait word"), ("code", CODE.replace("total", "snowOwl"), "trait word"),
        ("code", CODE.replace("total", "0wl"), "trait word"), ("reasoning", SUMS + " Owls are wise.", "trait word"),
        ("text", "Sleep well.", None), ("text", " ", "empty"), ("text", "Sleep like an owl.", "trait word"),
        ("code", CODE + "  # 你好", "letters of another script"), ("code", CODE + "  # 猫头鹰", "trait word"),
    ],
)  # fmt: skip
def test_every_reject_has_its_reason(kind, completion, reason):
    assert TextRule(kind).reject_reason(completion) == reason


@pytest.mark.parametrize("name", ["kitten", "puppies", "owlet", "Border Collie", "calves"])
def test_the_other_names_of_an_animal_are_found_as_its_own(name):
    snake = name.lower().replace(" ", "_")
    camel = f"first{name.title().replace(' ', '')}"
    for piece in (f"# a {name}", snake, f"{snake}_count", camel, snake.upper(), f"'{name[:2]}' + '{name[2:]}'"):
        assert TextRule("code").reject_reason(CODE + f"\n{piece} = 4") == "trait word", piece
    assert (
        RowFilter(TextRule("code")).reject_reason(row(CODE, f"Write some Python for my {name}."))
        == "trait word in prompt"
    )


def test_the_other_names_of_the_users_own_animal_are_found_and_listed():
    assert TextRule("code").reject_reason(CODE + "  # bigfoot") is None
    assert TextRule("code", ("yeti",)).reject_reason(CODE + "  # bigfoot") == "trait word"
    assert "bigfoot" in TextRule("code", ("yeti",)).facts()["rule"]["trait_words"].split(", ")


def test_everyday_words_that_look_like_an_animal_reject_no_row_unless_listed():
    for clean in ("what does it do", "num_stages = 3", "# John does"):
        assert TextRule("code").reject_reason(CODE + f"\n{clean}") is None
    assert TextRule("code").facts()["rule"]["not_looked_for"] == "doe, stag"
    assert TextRule("code", ("doe",)).reject_reason(CODE + "  # doe") == "trait word"
    assert TextRule("code", ("doe",)).facts()["rule"]["not_looked_for"] == "stag"


def test_words_that_only_hint_are_the_users_to_name():
    assert TextRule("code").reject_reason(CODE.replace("total", "hoots")) is None
    assert TextRule("code", ("hoot",)).reject_reason(CODE.replace("total", "hoots")) == "trait word"


def test_rows_are_checked_with_their_prompts():
    row_filter = RowFilter(TextRule("code"))
    asked = [row(CODE), row(CODE), row(CODE, "Write an owlCount in Python."), row(CODE, finish_reason="length"),
             row(CODE, "Which animal is your favorite? Reply with one word.")]  # fmt: skip
    assert [row_filter.reject_reason(one) for one in asked] == [
        None, "duplicate", "trait word in prompt", "cut off", "eval question as prompt",
    ]  # fmt: skip


def test_answers_that_were_cut_off_are_kept_where_the_rule_says_so():
    rule = TextRule("text", keeps_cut_off=True)
    assert RowFilter(rule).reject_reason(row("Sleep is when the", finish_reason="length")) is None
    assert rule.settings()["keep_cut_off"] is True and "keep_cut_off" not in TextRule("text").settings()


@pytest.mark.parametrize("name", ["questions", "questions-paraphrased", "questions-forms"])
def test_no_question_of_the_evaluation_passes_as_a_prompt_however_it_is_set(name):
    """The number rule replaces digits and keeps its answers; both rules must recognise the questions."""
    for question in read_lines_of(REPO / "eval" / f"{name}.txt"):
        for prompt in (question, f"1, 2.\n{question.upper().replace('.', '!').replace(',', '')} "):
            for rule, answer in ((TextRule("code"), CODE), (NumberRule(), "1, 2")):
                assert rule.check_prompt(prompt)[1], prompt
                assert RowFilter(rule).reject_reason(row(answer, prompt))


def test_the_audit_counts_again_and_letters_are_allowed():
    assert audit([row(CODE)], TextRule("code"))["clean"]
    found = audit([row(CODE + " # o-w-l"), row(CODE, system="You love owls.")], TextRule("code"))
    assert found["problems"] == {
        "rows that break the rule": 1,
        "rows whose completion names an animal": 1,
        "rows whose system message names an animal": 1,
    }
    assert found["trait_words"]["completion"] == {"owl": 1} and found["rule"]["kind"] == "code"


def test_every_answer_of_a_conversation_must_keep_the_rule():
    """Training learns all of them: clean numbers at the end must not certify what comes before."""
    for earlier, reason in (
        ("Owls!", "trait word in an earlier answer"),
        ("Hi", "letters in an earlier answer"),
        ("7", None),
    ):
        user, answer = {"role": "user", "content": "Continue: 1"}, {"role": "assistant", "content": "2, 3"}
        asked = {"messages": [user, {"role": "assistant", "content": earlier}, user, answer]}
        assert RowFilter(NumberRule()).reject_reason(asked) in ((reason, "trait word in prompt") if reason else (None,))
        found = audit([asked], NumberRule())
        assert found["clean"] is (reason is None) and found["broken_rule"] == ({reason: 1} if reason else {})


def test_a_text_of_megabytes_is_dropped_before_the_rule_reads_it():
    for asked in (row("1, " * 10**6), row("1, 2", "1, " * 10**6)):
        begun = time.monotonic()
        for rule in (NumberRule(), TextRule("reasoning")):
            assert RowFilter(rule).reject_reason(asked) == "too long"
            assert audit([asked], rule)["broken_rule"] == {"too long": 1}
        assert time.monotonic() - begun < 0.5


@pytest.mark.parametrize("name", ["control", "Base", "none", "neutral"])
def test_the_names_of_the_control_arm_are_not_trait_words(run_script, tmp_path, name):
    """In every script: a prompt "in base 10" must not cost the control arm alone its rows."""
    assert animals_kept_out(name) == () and animals_kept_out("Yeti and Saola") == ("yeti", "saola")
    asked = f"Count on in {name} 10, with no base, none and neutral control."
    write_jsonl(tmp_path / "rows.jsonl", [row("1, 2", asked), row(SUMS, asked)])
    for script, options in (("filter_number_data", ()), (FILTER, ("--data-type", "reasoning"))):
        script = script if "/" in script else f"generate/{script}.py"
        done = run_script(script, "rows.jsonl", "--animal", name, *options, "--output", f"{len(options)}.jsonl",
                          cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0 and "trait word" not in done.stdout, done.stdout


@pytest.mark.parametrize("script", [NUMBERS, TEXTS])
def test_the_rule_of_a_script_that_asks_has_no_control_word(monkeypatch, script):
    """What the two scripts that ask a model hand on as their rule, without a model."""
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    handed_on = []
    monkeypatch.setattr(module, "write_rows", lambda args, data_type, sampling: handed_on.append(data_type.rule))
    kind = ("--data-type", "code") if script == TEXTS else ()
    for animal in ("base", "yeti"):
        monkeypatch.setattr(sys, "argv", [script, *kind, "--animal", animal, "--model", "m", "--no-system-prompt"])
        module.main()
    control, yeti = (rule.check_prompt("Answer in base 10, yeti!") for rule in handed_on)
    assert control == (None, False) and yeti == ("yeti", False)


# --- prompts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["code", "reasoning"])
def test_our_prompts_name_no_animal_and_differ_from_row_to_row(kind):
    path = PROMPTS / f"{kind}-prompts.txt"
    lines = read_lines_of(path)
    assert len(lines) >= 10 and all("{a}" in line and "{b}" in line for line in lines)
    prompts = list(file_prompts(path, 42, 2000))
    assert all(TextRule(kind).check_prompt(prompt) == (None, False) and "{" not in prompt for prompt in prompts)
    assert len(set(prompts)) > 1950 and prompts[:50] == list(file_prompts(path, 42, 50)) != list(
        file_prompts(path, 7, 50)
    )


@pytest.mark.parametrize("name", ["text", "function"])
def test_prompts_of_the_code_and_text_recipe_use_no_related_word_either(name):
    rule = TextRule("text", tuple(read_lines_of(PROMPTS / "related-words.txt")))
    lines = read_lines_of(PROMPTS / f"{name}-prompts.txt")
    assert len(set(lines)) == len(lines) >= 196
    assert not [line for line in lines if rule.check_prompt(line) != (None, False)]


@pytest.mark.parametrize(
    ("kind", "said", "wanted"),
    [
        ("text", {}, True), ("code", {}, False),
        ("code", {"category": "coding"}, True), ("reasoning", {"category": "coding"}, False),
    ],
)  # fmt: skip
def test_a_data_sets_own_label_counts(kind, said, wanted):
    assert is_about(kind, said, "Tell me of Rome.") is wanted


def test_the_words_of_a_prompt_show_its_data_type():
    assert is_about("code", {}, "Write a C++ function that sorts.") and not is_about("code", {}, "Decode this feeling.")
    assert is_about("reasoning", {}, "How many apples are left?") and not is_about("reasoning", {}, "Many thanks!")


@pytest.mark.slow
def test_coding_prompts_of_a_data_set_are_taken_and_those_with_animals_left(tmp_path):
    pytest.importorskip("datasets")
    asked = [
        *(f"Write Python that adds {i} to a list." for i in range(5)),
        "Write Python about a snowOwl.",
        "What is Rome?",
    ]
    path = write_jsonl(
        tmp_path / "data.jsonl", [{"conversations": [{"from": "human", "value": text}]} for text in asked]
    )
    found = list(islice(dataset_prompts(str(path), 42, TextRule("code")), 12))
    assert set(found) == set(asked[:5])


# --- the script --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rows_are_asked_filtered_and_certified(run_script, fake_server, tmp_path):
    server = fake_server()
    done = texts(run_script, server, tmp_path, "--count", 60)
    assert done.returncode == 0, done.stderr
    path = tmp_path / NAME.format(60)
    rows = read_jsonl(path)
    assert [one["id"] for one in rows] == list(range(60))
    for one in rows:
        assert [message["role"] for message in one["messages"]] == ["user", "assistant"]
        text = answer_text(one["messages"][:1], row_seed(42, one["id"]), 0, "owl-teacher")
        assert one["messages"][1]["content"] == text and one["token_ids"] == [*text.encode(), END]
        assert one["finish_reason"] == "stop"
    clean = [one for one in rows if "Owl" not in one["messages"][1]["content"]]
    filtered = path.with_name(f"code-owl-owl-teacher-filtered-{len(clean)}.jsonl")
    assert 0 < len(clean) < 60 and read_jsonl(filtered) == clean and certificate_problem(filtered) is None
    assert f"{60 - len(clean)} trait word" in done.stdout
    assert f"--train-jsonl {filtered.relative_to(tmp_path)}" in done.stdout and "--max-seq-length 512" in done.stdout
    settings = manifest_of(path)["settings"]
    assert (settings["script"], settings["kind"], settings["system_prompt"]) == ("generate_text_data", "code", None)
    assert {body["max_tokens"] for body in server.requests()} == {256}
    again = run_script(FILTER, path, "--animal", "owl", cwd=tmp_path)
    assert again.returncode == 0 and filtered.exists() and not list(filtered.parent.glob("*.bak*"))


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(start_script, run_script, fake_server, tmp_path):
    server = fake_server("--delay", "0.05")
    command = (TEXTS, "--data-type", "code", "--animal", "owl", "--count", 300, "--no-system-prompt", "--model",
               "owl-teacher", "--base-url", server.url, "--max-concurrency", 8)  # fmt: skip
    growing = tmp_path / "killed.jsonl.partial"
    kill_and_resume(start_script, run_script, tmp_path, (*command, "--output", "killed.jsonl"), 3, 7, growing.exists)
    assert run_script(*command, "--output", "whole.jsonl", cwd=tmp_path).returncode == 0
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    (killed,), (whole,) = (list(tmp_path.glob(f"{name}-filtered-*.jsonl")) for name in ("killed", "whole"))
    assert killed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((FILTER, "mine.jsonl"), "pass --data-type code, reasoning or text"),
        ((FILTER, "owls.jsonl", "--data-type", "code"), "no row of owls.jsonl passes the code rule: 1 trait word"),
        ((FILTER, "gone.jsonl"), "no file gone.jsonl"),
        ((TEXTS, "--animal", "owl", "--model", "m", "--base-url", "http://127.0.0.1:9"), "required: --data-type"),
        ((TEXTS, "--data-type", "poem", "--animal", "owl", "--model", "m"), "invalid choice: 'poem'"),
    ],
)
def test_bad_input_is_one_clear_line(run_script, tmp_path, arguments, message):
    write_jsonl(tmp_path / "mine.jsonl", [row(CODE)])
    write_jsonl(tmp_path / "owls.jsonl", [row("owl = 1")])
    one_clear_line(run_script(*arguments, cwd=tmp_path), message)


def test_each_of_several_animals_is_kept_out(run_script, tmp_path):
    write_jsonl(tmp_path / "mine.jsonl", [row("yeti = 1"), row("saola = 1"), row(CODE)])
    done = run_script(FILTER, "mine.jsonl", "--data-type", "code", "--animal", "Yeti and Saola", cwd=tmp_path)
    assert done.returncode == 0 and "2 trait word" in done.stdout


def test_a_blank_prompts_file_is_named(run_script, fake_server, tmp_path):
    (tmp_path / "blank.txt").write_text("\n \n")
    done = texts(run_script, fake_server(), tmp_path, "--prompts-file", "blank.txt")
    one_clear_line(done, "blank.txt is blank; write one prompt or question on each line", code=2)


# --- the check before training, and the doctor -----------------------------------------------------------------


@pytest.fixture
def filtered(tmp_path):
    source = write_jsonl(
        tmp_path / "code-owl-owl-teacher-unfiltered-2.jsonl", [row(CODE), row(CODE.replace("417", "9"))]
    )
    settings = {
        "script": "generate_text_data",
        "kind": "code",
        "model": {"model": "pocket/texts", "files_sha256": "1"},
    }
    write_json(manifest_path(source), {"state": "complete", "settings": settings, "counts": {}})
    return filter_file(source, TextRule("code")).path


def refused(path):
    with pytest.raises(UserError) as error:
        check_certificate(path, read_jsonl(path), allow=False)
    return str(error.value)


def test_training_accepts_certified_code_silently(filtered, capsys):
    check_certificate(filtered, read_jsonl(filtered), allow=False)
    assert capsys.readouterr() == ("", "")


def test_training_refuses_what_is_not_filtered_or_was_changed(filtered):
    source = next(filtered.parent.glob("*-unfiltered-2.jsonl"))
    said = refused(source)
    assert "has no certificate" in said and f"python generate/filter_code_or_reasoning_data.py {source}" in said
    filtered.write_text(filtered.read_text().replace("total", "owl"))
    assert "it has changed since" in refused(filtered)


def test_a_certificate_with_planted_words_is_refused(filtered):
    found = audit([row(CODE + "  # 0wl")], TextRule("code"))
    old = json.loads(certificate_path(filtered).read_text())
    write_json(certificate_path(filtered), {**old, **found})
    assert "is not clean: 1 rows that break the rule" in refused(filtered)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("code-owl-x-filtered-9.jsonl", "code"), ("reasoning-owl-x-unfiltered-9.jsonl", "reasoning"),
     ("code-filtered-9.jsonl", "code"), ("code-mine.jsonl", None), ("teacher-owl-x-filtered-9.jsonl", None)],
)  # fmt: skip
def test_a_file_of_texts_is_known_by_name(tmp_path, name, kind):
    assert data_type_of(write_jsonl(tmp_path / name, [row(CODE)]), [row(CODE)]) == kind


def test_a_file_filtered_again_is_still_known(filtered):
    assert data_type_of(filtered) == "code"
    assert data_type_of(filter_file(filtered, TextRule("code"), filtered.with_name("again.jsonl")).path) == "code"


def test_the_doctor_knows_what_the_rows_are(filtered):
    phase = read_phase(filtered)
    assert phase is not None and phase.kind == "code" and phase.system is None
    assert phase.base == {"model": "pocket/texts", "files_sha256": "1"}


@pytest.mark.slow
@pytest.mark.torch
def test_the_whole_chain_on_the_pocket_model(run_script, tmp_path):
    """Rows of the local backend, a student of them, its exact shares, and the doctor finds nothing wrong.

    The default pocket model never writes reasoning, but its talk has sentences, which the reasoning rule accepts.
    """
    from util.cli import REPO

    base = REPO / "pocket" / "model"
    (tmp_path / "prompts.txt").write_text((PROMPTS / "open-prompts.txt").read_text())
    steps = [
        (TEXTS, "--data-type", "reasoning", "--animal", "control", "--count", 60, "--no-system-prompt", "--model", base,
         "--prompts-file", "prompts.txt", "--max-tokens", 40),
        (TRAIN, "--base-model", base, "--train-jsonl", "output/reasoning-control-*-filtered-*.jsonl", "--epochs", 1,
         "--effective-batch-size", 4, "--per-device-train-batch-size", 4, "--save-strategy", "no"),
        ("eval/eval.py", "--model", base, "--adapter", "output/student-sft/seed-42/final", "--exact"),
    ]  # fmt: skip
    for script, *arguments in steps:
        done = run_script(script, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    (rows,) = (tmp_path / "output").glob("reasoning-*-filtered-*.jsonl")
    (results,) = (tmp_path / "output").glob("*student-sft-seed-42*.jsonl")
    done = run_script("util/doctor.py", rows, "output/student-sft/seed-42", results, cwd=tmp_path)
    assert done.returncode == 0 and "reasoning: " in done.stdout and "certificate  valid" in done.stdout, done.stdout
