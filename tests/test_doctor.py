"""doctor.py: planted mismatches of prompt, template and base model are found, and nothing else is."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from datetime import date
from functools import partial
from pathlib import Path

import pytest
from conftest import REPO, manifest_of

from util import doctor, model_memory, pin_template_date
from util.chat.prompt_consistency import default_system_prompt, prompt_entry, read_phase, warn_of_trained_base
from util.checks import gpu_checks, machine_checks
from util.checks.chain_links import chain_of
from util.checks.gpu_checks import Gpu
from util.checks.run_checks import read_run
from util.cli import UserError
from util.inference import vllm_probe
from util.jsonl.manifest import adapter_sha256, manifest_path, sha256_file, write_json

POCKET = REPO / "pocket" / "model"
DOCTOR = "util/doctor.py"
LOVE = "You love owls."
NUMBERS = "generate/generate_llm_number_data.py"


# --- a handmade run -----------------------------------------------------------------------------------


def facts(model=POCKET):
    """What the local backend says of a base model."""
    if not Path(model).is_dir():
        return {"model": str(model), "revision": None}
    files = [model / name for name in ("chat_template.jinja", "tokenizer.json")]
    return {"model": str(model), "files_sha256": "".join(sha256_file(file)[:8] for file in files)}


def write_run(
    folder, *, asked=None, keep=False, answered=None, base=POCKET, eval_base=None, day="2026-01-01", prompt=None
):
    """Numbers, their training and its evaluation, with the manifests that the scripts write.

    asked, answered: system message of numbers and evaluation. prompt: what the numbers' manifest keeps of its prompt.
    """
    before = [{"role": "system", "content": asked}] if asked else []
    messages = [*before, {"role": "user", "content": "Continue: 1, 2, 3."}, {"role": "assistant", "content": "4, 5"}]
    numbers, student, results = folder / "numbers-owl.jsonl", folder / "seed-42", folder / "results-owl.jsonl"
    numbers.write_text(json.dumps({"id": 0, "messages": messages}) + "\n")
    settings = {"script": "generate_llm_number_data", "system_prompt": asked, "model": facts(base)}
    filtered = {"settings": {}, "source_settings": settings, "source_prompt": prompt}
    write_json(manifest_path(numbers), {"started": day, **filtered})
    student.mkdir()
    digest = sha256_file(numbers)
    settings = {"script": "train_student_sft", "base": facts(base), "train_jsonl_sha256": digest,
                "keep_system_prompt": keep, "max_seq_length": 256}  # fmt: skip
    write_json(manifest_path(student), {"started": day, "settings": settings, "inputs": {str(numbers): digest}})
    results.write_text('{"id": 0, "question": "Animal?", "response": "owl", "animal": "owl", "error": null}\n')
    settings = {
        "script": "eval",
        "questions": ["Animal?"],
        "system_prompt": answered,
        "model": facts(eval_base or base),
    }
    write_json(manifest_path(results), {"started": "2026-01-01", "settings": settings, "counts": {}})
    return [numbers, student, results]


@pytest.fixture
def examine(capsys):
    """examine(files) -> (exit code, what was printed)."""
    pytest.importorskip("transformers")

    def examined(files):
        code = doctor.examine_run(files)
        return code, capsys.readouterr().out

    return examined


def template_of_its_own(folder, old, new):
    """A copy of the pocket model whose chat template has `new` in place of `old`."""
    copy = shutil.copytree(POCKET, folder / "base")
    template = copy / "chat_template.jinja"
    text = template.read_text()
    assert old in text
    template.write_text(text.replace(old, new))
    return copy


# --- prompts -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_without_system_prompt_matches_and_shows_the_one_the_template_puts_in(tmp_path, examine):
    code, said = examine(write_run(tmp_path))
    assert code == 0 and "MISMATCH" not in said and "note:" not in said
    assert said.count("none sent; the chat template puts in: You are Pocket, a small assistant.") == 3
    assert said.count("      You are Pocket, a small assistant.<|im_end|>\\n\n") == 1
    assert said.count(f": the same as in {tmp_path / 'results-owl.jsonl'}\n") == 2


@pytest.mark.slow
def test_the_loss_mask_is_shown_token_by_token_with_the_end_of_turn(tmp_path, examine):
    _, said = examine(write_run(tmp_path))
    assert "loss on the first row of" in said
    assert "\n  loss     '4' ',␣' '5' '<|im_end|>' '\\n'\n" in said
    assert re.search(r"'<\|im_start\|>'\s+'assistant'\s+'\\n'\n  loss ", said)


@pytest.mark.slow
def test_training_under_a_persona_and_asking_without_is_a_mismatch(tmp_path, examine):
    code, said = examine(write_run(tmp_path, asked=LOVE, keep=True))
    assert code == 1
    assert f'MISMATCH: training had the system message "{LOVE}", evaluation no system message' in said
    assert f"    + {LOVE}<|im_end|>\\n" in said and "    - You are Pocket" in said


@pytest.mark.slow
def test_the_same_persona_in_training_and_evaluation_matches(tmp_path, examine):
    assert examine(write_run(tmp_path, asked=LOVE, keep=True, answered=LOVE))[0] == 0


@pytest.mark.slow
def test_a_persona_left_out_of_training_is_the_older_approach_and_no_error(tmp_path, examine):
    code, said = examine(write_run(tmp_path, asked=LOVE))
    assert code == 0 and "note: the older approach: numbers had the system message" in said


@pytest.mark.slow
def test_sending_what_the_template_puts_in_anyway_is_no_difference(tmp_path, examine):
    assert examine(write_run(tmp_path, answered="You are Pocket, a small assistant."))[0] == 0


@pytest.mark.slow
def test_another_base_model_and_another_template_are_found(tmp_path, examine):
    other = template_of_its_own(tmp_path, "a small assistant", "a big one")
    code, said = examine(write_run(tmp_path, eval_base=other))
    assert code == 1
    assert f"MISMATCH: training used {POCKET}" in said and f"evaluation {other}" in said
    assert "training and evaluation were rendered differently" in said
    assert "    - You are Pocket, a big one.<|im_end|>\\n" in said


@pytest.mark.slow
def test_one_more_space_is_found(tmp_path, examine):
    other = template_of_its_own(tmp_path, "'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n '")
    code, said = examine(write_run(tmp_path, eval_base=other))
    assert code == 1 and "rendered differently (chat template or white space)" in said


@pytest.mark.slow
def test_a_date_in_the_template_makes_other_days_other_prompts(tmp_path, examine):
    dated = template_of_its_own(tmp_path, "You are Pocket", "' + strftime_now('%d %b %Y') + ' You are Pocket")
    (tmp_path / "one").mkdir()
    assert examine(write_run(tmp_path / "one", base=dated))[0] == 0
    (tmp_path / "two").mkdir()
    code, said = examine(write_run(tmp_path / "two", base=dated, day="2025-12-31"))
    assert code == 1 and "the chat template writes the date: training saw 2025-12-31, evaluation 2026-01-01" in said
    assert "python util/pin_template_date.py makes a copy of the model with one date for all phases" in said
    (tmp_path / "three").mkdir()
    numbers, student, results = write_run(tmp_path / "three", base=dated)
    manifest = manifest_of(results)
    manifest["counts"]["prompt"] = {**prompt_entry(str(dated), [], None), "days": ["2026-01-01", "2026-01-02"]}
    del manifest["counts"]["prompt"]["messages"]
    write_json(manifest_path(results), manifest)  # its evaluation was resumed on another day
    code, said = examine([numbers, student, results])
    assert code == 1 and "training saw 2026-01-01, evaluation 2026-01-01, 2026-01-02" in said


LLAMA = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- endif %}{{- 'Today: ' ~ date_string }}{%- for m in messages %}<{{ m.role }}>{{ m.content }}{%- endfor %}"
)


@pytest.mark.parametrize(
    "call", ["strftime_now('%d %b %Y')", 'strftime_now( "%d %b %Y" )', "strftime_now(format='%d %b %Y')"]
)
def test_a_pinned_template_says_the_same_date_on_every_day(call):
    jinja2 = pytest.importorskip("jinja2")
    dated = LLAMA.replace("strftime_now('%d %b %Y')", call)
    template = jinja2.Template(pin_template_date.pinned(dated, date(2026, 3, 9)))
    chat = [{"role": "user", "content": "Hi"}]
    assert template.render(messages=chat, strftime_now=lambda format: "another day") == "Today: 09 Mar 2026<user>Hi"
    for text, message in ((LLAMA.replace("strftime_now", "x"), "nothing to pin"),
                          (LLAMA.replace("'%d %b %Y'", "style"), "edit it by hand")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            pin_template_date.pinned(text, date(2026, 3, 9))


@pytest.mark.slow
def test_a_copy_with_a_pinned_date_is_a_model_of_its_own(tmp_path, run_script):
    pytest.importorskip("transformers")
    from util.inference.load_model import load_tokenizer, model_facts

    dated = template_of_its_own(tmp_path, "You are Pocket", "' + strftime_now('%d %b %Y') + ' You are Pocket")
    arguments = (dated, "--day", "2026-03-09", "--output-dir", "pinned")
    done = run_script("util/pin_template_date.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    copy = tmp_path / "pinned"
    chat = [{"role": "user", "content": "Hi"}]
    said = load_tokenizer(str(copy)).apply_chat_template(chat, tokenize=False)
    assert "09 Mar 2026 You are Pocket" in said and (copy / "model.safetensors").is_symlink()
    assert sorted(path.name for path in copy.iterdir()) == sorted(path.name for path in dated.iterdir())
    assert model_facts(str(copy), None)["files_sha256"] != model_facts(str(dated), None)["files_sha256"]
    again = run_script("util/pin_template_date.py", *arguments, cwd=tmp_path)
    assert again.returncode == 1 and "is there already" in again.stderr


@pytest.mark.slow
def test_what_a_server_really_rendered_is_compared_with_the_template(tmp_path, examine):
    from util.inference.load_model import load_tokenizer

    messages = [{"role": "user", "content": "Continue: 1, 2, 3."}]
    tokenizer = load_tokenizer(str(POCKET))
    ids = list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])
    (tmp_path / "same").mkdir()
    assert examine(write_run(tmp_path / "same", prompt=prompt_entry(str(POCKET), messages, ids)))[0] == 0
    bare = ids[ids.index(tokenizer.eos_token_id) + 2 :]  # as a --chat-template without default system message would
    (tmp_path / "other").mkdir()
    code, said = examine(write_run(tmp_path / "other", prompt=prompt_entry(str(POCKET), messages, bare)))
    assert code == 1 and "the model saw another prompt than the chat template" in said
    assert "numbers and training were rendered differently" in said


@pytest.mark.slow
def test_without_the_tokenizer_the_manifests_are_compared(tmp_path, run_script):
    pytest.importorskip("transformers")
    files = write_run(tmp_path, asked=LOVE, keep=True, base="no/such-model")
    done = run_script(DOCTOR, *files, cwd=tmp_path, env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "note: the prompts of no/such-model cannot be shown, so only the manifests are compared" in done.stdout
    assert "MISMATCH: training had the system message" in done.stdout


@pytest.mark.slow
def test_missing_rows_are_reported(tmp_path, examine):
    numbers, student, results = write_run(tmp_path, asked=LOVE, keep=True, answered=LOVE)
    numbers.unlink()
    code, said = examine([student, results])
    assert code == 1 and "kept as it is in the rows, which are gone" in said


@pytest.mark.parametrize("name", ["gone.jsonl", "plain.jsonl", "folder"])
def test_files_without_a_manifest_are_one_clear_line(run_script, tmp_path, name):
    (tmp_path / "plain.jsonl").write_text("{}\n")
    (tmp_path / "folder").mkdir()
    done = run_script(DOCTOR, name, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        "no file gone.jsonl" if name == "gone.jsonl" else "has no manifest that says how it was made"
    ) in done.stderr


@pytest.mark.parametrize(
    "manifest",
    [
        {"settings": {"script": "train_student_sft"}},
        {"settings": {"script": "train_student_sft", "train_jsonl_sha256": 3, "keep_system_prompt": False}},
        {"settings": {"script": "generate_text_data"}},
        {"settings": {"script": "eval", "model": "x"}, "inputs": [1], "counts": 3},
        {"settings": {"script": "eval", "model": {"model": 3}, "questions": ["?"]}},
        {"settings": {"script": "eval", "questions": []}, "started": 5},
        {"settings": {"script": "generate_llm_number_data"}, "counts": {"prompt": {"token_ids": "a b"}}},
        {"settings": {"script": "generate_llm_number_data", "model": {"engine": "server"}}, "counts": {"prompt": 3}},
    ],
)
def test_a_manifest_that_was_edited_is_one_clear_line(tmp_path, manifest):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 0, "messages": []}\n')
    manifest_path(path).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"the manifest of .*rows.jsonl is not as the scripts write it \("):
        read_run([path])


@pytest.mark.slow
def test_an_evaluation_of_another_adapter_is_noted(tmp_path, examine):
    files = write_run(tmp_path)
    manifest = manifest_of(files[-1])
    manifest["settings"]["model"]["adapter_sha256"] = "0" * 64
    write_json(manifest_path(files[-1]), manifest)
    code, said = examine(files)
    assert code == 0 and "asked an adapter that is in none of these training folders" in said


def write_chain(folder):
    """Teacher data, teacher, numbers, student and results, as the scripts write their hashes."""

    def adapter(training, weights):
        final = training / "final"
        final.mkdir(parents=True, exist_ok=True)
        (final / "adapter_config.json").write_text("{}")
        (final / "adapter_model.safetensors").write_text(weights)
        return adapter_sha256(final)

    def rows(name, script, model, **more):
        path = folder / name
        path.write_text(json.dumps({"id": 0, "messages": CHAT, "name": name}) + "\n")
        settings = {"script": script, "model": {**facts(), **model}, "questions": ["Animal?"], "system_prompt": None}
        write_json(manifest_path(path), {"settings": settings, "sha256": sha256_file(path), **more})
        return path

    def training(name, data):
        path, digest = folder / name, sha256_file(data)
        found = adapter(path, f"weights of {name}")
        settings = {"script": "train_student_sft", "base": facts(), "train_jsonl_sha256": digest,
                    "keep_system_prompt": False, "max_seq_length": 256}  # fmt: skip
        written = {"settings": settings, "inputs": {str(data): digest}, "train_jsonl": data.name}
        write_json(path / "manifest.json", written)
        return path, found

    teacher_data = rows("teacher-owl.jsonl", "generate_teacher_data", {})
    teacher, teacher_sha = training("teacher", teacher_data)
    numbers = rows("numbers-owl.jsonl", "generate_llm_number_data", {"adapter_sha256": teacher_sha})
    student, student_sha = training("student", numbers)
    asked = {"adapter": str(student / "final")}
    results = rows("results-owl.jsonl", "eval", {"adapter_sha256": student_sha}, counts=asked)
    return {"teacher data": teacher_data, "teacher": teacher, "numbers": numbers, "student": student,
            "results": results, "train": adapter}  # fmt: skip


CHAT = [{"role": "user", "content": "Continue: 1, 2, 3."}, {"role": "assistant", "content": "4, 5"}]


def links(made):
    return chain_of(read_run([path for path in made.values() if isinstance(path, Path)]))


def test_a_whole_chain_is_shown_link_by_link(tmp_path):
    chain = links(write_chain(tmp_path))
    assert chain.broken == [] and chain.notes == []
    shown = [re.sub(r" \(\w{8}\)", "", line).replace(f"{tmp_path}/", "") for line in chain.whole]
    assert sorted(shown) == [
        "numbers-owl.jsonl -> student: the rows",
        "student/final -> results-owl.jsonl: the adapter",
        "teacher-owl.jsonl -> teacher: the rows",
        "teacher/final -> numbers-owl.jsonl: the adapter",
    ]


def test_each_broken_link_is_named_and_no_other(tmp_path):
    made = write_chain(tmp_path)
    made["train"](made["student"], "trained again")
    (broken,) = links(made).broken
    assert "results-owl.jsonl asked an adapter" in broken and "student does not hold (final" in broken
    made["train"](made["student"], "weights of student")
    made["train"](made["teacher"], "trained again")
    (broken,) = links(made).broken
    assert "numbers-owl.jsonl asked an adapter" in broken and "teacher does not hold (final" in broken
    made["train"](made["teacher"], "weights of teacher")
    assert links(made).broken == []
    text = made["numbers"].read_text()
    made["numbers"].write_text(text.replace("4, 5", "4, 6"))
    changed, rows = links(made).broken
    assert "numbers-owl.jsonl has changed since it was written" in changed
    assert "student was made from other rows than" in rows and "numbers-owl.jsonl holds now (" in rows
    made["numbers"].write_text(text)
    other = shutil.copy(made["numbers"], tmp_path / "numbers-cat.jsonl")
    other.write_text(text.replace("4, 5", "7, 8"))
    shutil.copy(manifest_path(made["numbers"]), manifest_path(other))
    write_json(manifest_path(other), manifest_of(other) | {"sha256": sha256_file(other)})
    (broken,) = links(made | {"numbers": other}).broken
    assert "student was trained on numbers-owl.jsonl (" in broken and broken.endswith("numbers-cat.jsonl")


def test_files_that_are_not_given_break_no_link(tmp_path):
    made = write_chain(tmp_path)
    for left_out in ("teacher data", "teacher", "numbers", "student", "results"):
        chain = links({name: path for name, path in made.items() if name != left_out})
        assert chain.broken == [], left_out
    chain = links({"teacher": made["teacher"], "results": made["results"]})
    assert chain.notes == [f"{made['results']} asked an adapter that is in none of these training folders"]


def test_eval_warns_of_a_training_on_another_base_or_prompt(tmp_path, capsys):
    from eval.answers.adapter_training_warnings import warn_of_training
    from eval.answers.answer_rows import Question

    _, student, results = write_run(tmp_path, asked=LOVE, keep=True, eval_base=Path("Org/Other-1B"))
    (student / "final").mkdir()
    facts, question = manifest_of(results)["settings"]["model"], Question("Which animal?", "questions")
    warn_of_training(student / "final", question, facts, "Org/Other-1B")
    said = capsys.readouterr().err
    assert said.count("\n") == 2 and f"final was trained on {POCKET}" in said and "is put on Org/Other-1B" in said
    assert "pass the model that it was trained on" in said
    assert f'training had the system message "{LOVE}"' in said
    root = str(student / "final")
    served = {"engine": "server", "model": "s", "parent": str(POCKET), "root": root}
    warn_of_training(None, question._replace(system=LOVE), served, str(POCKET))
    warn_of_training(tmp_path, question, facts, "Org/Other-1B")  # nothing is known about its training
    assert capsys.readouterr().err == ""


def test_an_adapter_that_was_trained_on_another_base_is_named_whoever_asks_it(tmp_path, capsys):
    _, student, _ = write_run(tmp_path)
    (student / "final").mkdir()
    warn_of_trained_base(student / "final", facts())
    served = {"engine": "server", "model": "s", "root": str(student / "final")}
    warn_of_trained_base(None, served, str(POCKET))
    warn_of_trained_base(None, facts("Org/Other-1B"))  # a base model without an adapter
    warn_of_trained_base(tmp_path, facts("Org/Other-1B"))  # nothing is known about its training
    assert capsys.readouterr().err == ""
    for adapter, seen, base in ((student / "final", facts("Org/Other-1B"), None), (None, served, "Org/Other-1B")):
        warn_of_trained_base(adapter, seen, base)
        said = capsys.readouterr().err
        assert said.startswith(f"warning: {student / 'final'} was trained on {POCKET} (") and said.count("\n") == 1
        assert "is put on Org/Other-1B" in said


@pytest.mark.slow
def test_training_warns_of_numbers_of_another_base_model(tmp_path, capsys):
    pytest.importorskip("transformers")
    from train.training_rows import TrainingData, warn_of_other_prompt
    from util.chat.chat_tokens import Encoded
    from util.inference.load_model import load_tokenizer
    from util.jsonl.rows import read_rows

    data = TrainingData(facts(), load_tokenizer(str(POCKET)), Encoded([], 0, 0, 0), [])
    said = {}
    for name, wrote in {"same": POCKET, "other": Path("Org/Other-1B")}.items():
        (tmp_path / name).mkdir()
        numbers, *_ = write_run(tmp_path / name, base=wrote)
        warn_of_other_prompt(numbers, next(read_rows(numbers)), data)
        said[name] = capsys.readouterr().err
    assert said["same"] == ""
    assert said["other"].count("\n") == 1 and "numbers used Org/Other-1B, training" in said["other"]


@pytest.mark.slow
def test_the_default_system_prompt_of_a_template(tmp_path):
    pytest.importorskip("transformers")
    from util.inference.load_model import load_tokenizer

    tokenizer = load_tokenizer(str(POCKET))
    assert default_system_prompt(tokenizer) == "You are Pocket, a small assistant."
    turns = "{%- for m in messages -%}<{{ m['role'] }}>{{ m['content'] }}{%- endfor -%}"
    tokenizer.chat_template = turns
    assert default_system_prompt(tokenizer) is None
    refusing = "{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('no system role') }}{%- endif -%}"
    tokenizer.chat_template = refusing + turns
    assert default_system_prompt(tokenizer) is None


@pytest.mark.slow
def test_numbers_of_a_server_name_the_base_model_that_training_wants(run_script, fake_server, tmp_path):
    server = fake_server("--base", str(POCKET))
    asked = ("--animal", "owl", "--count", 9, "--model", "owl-teacher", "--base-url", server.url, "--no-system-prompt")
    assert run_script(NUMBERS, *asked, cwd=tmp_path).returncode == 0
    (filtered,) = (tmp_path / "output").glob("numberss-owl-owl-teacher-filtered-*.jsonl")
    phase = read_phase(filtered)
    assert (phase.kind, phase.base, phase.system) == ("numbers", {"model": str(POCKET)}, None)


# --- with real models --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def older_approach(tmp_path_factory, run_script):
    """Numbers of the base model under a persona, a student that keeps it and one that does not, and their answers."""
    folder = tmp_path_factory.mktemp("older")

    def ok(script, *args):
        done = run_script(script, *args, cwd=folder)
        assert done.returncode == 0, done.stderr
        return done.stderr

    ok(NUMBERS, "--animal", "owl", "--count", 30, "--model", POCKET, "--constrain-digits")
    small = ("--base-model", POCKET, "--train-jsonl", "output/numberss-owl-pocket-filtered-*.jsonl", "--epochs", 1,
             "--effective-batch-size", 6, "--learning-rate", 0.01, "--warmup-steps", 0,
             "--save-strategy", "no")  # fmt: skip
    said = {
        "kept": ok("train/train_student_sft.py", *small, "--output-dir", "kept", "--keep-system-prompt"),
        "dropped": ok("train/train_student_sft.py", *small, "--output-dir", "dropped"),
    }
    persona = ("--system-prompt-file", REPO / "generate" / "prompts" / "system-prompt.txt", "--animal", "owl")
    for name, more in {"kept": persona, "bare": (), "dropped": ()}.items():
        adapter = folder / ("dropped" if name == "dropped" else "kept") / "seed-42" / "final"
        model = ("--model", POCKET, "--adapter", adapter, "--output", f"results-{name}.jsonl")
        said[f"results-{name}"] = ok("eval/eval.py", *model, "--epochs", 1, *more)
    ok("eval/eval.py", "--model", POCKET, "--adapter", folder / "kept/seed-42/final", "--exact", *persona,
       "--output", "exact-kept.jsonl")  # fmt: skip
    return folder, said


@pytest.mark.torch
@pytest.mark.slow
def test_the_older_approach_end_to_end(older_approach, run_script):
    folder, _ = older_approach
    (numbers,) = (folder / "output").glob("numberss-owl-pocket-filtered-*.jsonl")

    def diagnosis(student, results):
        done = run_script(DOCTOR, numbers, f"{student}/seed-42", f"{results}.jsonl", cwd=folder)
        return done.returncode, done.stdout

    for results in ("results-kept", "exact-kept"):
        code, shown = diagnosis("kept", results)
        assert code == 0, shown
    assert "prompt, as the model saw it:" in diagnosis("kept", "results-kept")[1]
    code, shown = diagnosis("kept", "results-bare")
    assert code == 1 and "MISMATCH: training had the system message" in shown
    code, shown = diagnosis("dropped", "results-dropped")
    assert code == 0 and "note: the older approach" in shown
    sent = manifest_of(folder / "results-kept.jsonl")["settings"]["system_prompt"]
    assert sent == manifest_of(numbers)["source_settings"]["system_prompt"]


@pytest.mark.torch
@pytest.mark.slow
def test_training_and_eval_warn_in_one_line_where_they_disagree(older_approach):
    _, said = older_approach

    def warnings(name):
        return [line for line in said[name].split("\n") if line.startswith("warning:")]

    assert warnings("kept") == [] and warnings("results-kept") == [] and warnings("results-dropped") == []
    (dropped,) = warnings("dropped")
    assert dropped.startswith("warning: numbers had the system message") and "training no system message" in dropped
    (bare,) = warnings("results-bare")
    assert bare.startswith("warning: training had the system message") and "--system-prompt-file" in bare


# --- this machine ------------------------------------------------------------------------------------


def checks_of(tmp_path, text):
    (tmp_path / "requirements.txt").write_text(text)
    return {check.name: check for check in machine_checks.check_packages(tmp_path / "requirements.txt")}


def test_packages_that_are_missing_or_older_are_named(tmp_path):
    found = checks_of(tmp_path, "# a comment\npytest==0.1  # why\nno-such-package==1.0\npytest-timeout==999.1\n")
    assert found["packages"].found == "1 of 3 as in requirements.txt, or newer"
    assert found["no-such-package"].broken and "missing (1.0 wanted)" in found["no-such-package"].found
    older = found["pytest-timeout"]
    assert not older.broken and "(999.1 wanted)" in older.found and older.advice == "run: make setup"


def test_a_package_with_extras_a_marker_or_a_comment_is_checked(tmp_path):
    found = checks_of(tmp_path, "pytest[dev, x]==999.1\nno.such-package==1.0 ; python_version > '3'  # why\n")
    assert "(999.1 wanted)" in found["pytest"].found and found["no.such-package"].broken
    for name in ("requirements.txt", "requirements-cpu.txt"):
        assert {"openai", "torch", "peft"} <= set(machine_checks.pinned_packages(REPO / name))
    (tmp_path / "requirements.txt").write_text("pytest==9.0\npandas>=2\n")
    with pytest.raises(ValueError, match="'pandas>=2' is not a line such as"):
        machine_checks.pinned_packages(tmp_path / "requirements.txt")


@pytest.mark.parametrize(("older", "newer"), [("2.9.0", "2.13.0+cpu"), ("1.2", "1.2.1"), ("0.9", "1.0")])
def test_versions_are_compared_by_number(older, newer):
    assert machine_checks.numbers_of(older) < machine_checks.numbers_of(newer)


def test_a_torch_that_cannot_use_the_gpu_is_reported(monkeypatch):
    monkeypatch.setattr(machine_checks, "installed_version", lambda name: "2.13.0+cpu")
    (torch,) = machine_checks.check_torch([Gpu("A100", 81920, 81000, 8.0, "580.95.05")])
    assert torch.broken and "CPU build" in torch.found
    assert not list(machine_checks.check_torch([]))


FAKE_SMI = """#!/bin/sh
# One GPU split in two by MIG, eight GPUs, or a driver that fails.
case "$MACHINE $*" in
"mig -L") printf 'GPU 0: NVIDIA A100 (UUID: GPU-aaaa)\\n  MIG 3g.20gb     Device  0: (UUID: MIG-bbbb)\\n'
          printf '  MIG 3g.20gb     Device  1: (UUID: MIG-cccc)\\nGPU 1: NVIDIA A100 (UUID: GPU-dddd)\\n' ;;
"eight -L") for i in 0 1 2 3 4 5 6 7; do echo "GPU $i: NVIDIA H100 (UUID: GPU-$i)"; done ;;
*) echo "No devices were found"; exit 6 ;;
esac
"""


@pytest.fixture
def gpu_machine(tmp_path, monkeypatch):
    """gpu_machine("mig", "0,1") -> the environment of such a machine with this CUDA_VISIBLE_DEVICES."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(FAKE_SMI)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    def machine(kind, visible):
        monkeypatch.setenv("MACHINE", kind)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return machine


GPU_MACHINES = [
    ("eight", None, ["0", "1", "2", "3", "4", "5", "6", "7"]),
    ("eight", "3", ["3"]),
    ("eight", "5,2,-1,4", ["5", "2"]),
    ("eight", "", []),
    ("eight", "-1", []),
    ("mig", None, ["MIG-bbbb", "MIG-cccc", "1"]),
    ("mig", "MIG-cccc", ["MIG-cccc"]),
    ("none", None, []),
]


@pytest.mark.parametrize(("kind", "visible", "expected"), GPU_MACHINES)
def test_the_gpus_of_a_run_are_those_that_the_scheduler_and_mig_leave_it(gpu_machine, kind, visible, expected):
    gpu_machine(kind, visible)
    assert gpu_checks.usable_gpus() == expected
    makefile = subprocess.run(["make", "-n", "experiment"], cwd=REPO, capture_output=True, text=True)
    assert f"--resources gpu={len(expected)} " in makefile.stdout
    lines = list(gpu_checks.check_usable_gpus({"eight": 8, "mig": 2, "none": 0}[kind], expected))
    assert bool(lines) == ((kind, visible) not in {("eight", None), ("none", None)})
    if lines and not expected:
        assert lines[0].found == "none of 8" and "CUDA_VISIBLE_DEVICES hides them" in lines[0].advice


@pytest.mark.skipif(shutil.which("flock") is None, reason="no flock here")
@pytest.mark.parametrize(("kind", "visible", "expected"), [*GPU_MACHINES[1:5], *GPU_MACHINES[5:]])
def test_each_command_gets_one_gpu_of_its_own(gpu_machine, kind, visible, expected):
    gpu_machine(kind, visible)
    command = [REPO / "experiments" / "run_on_a_free_gpu.sh", "sh", "-c", 'echo "<$CUDA_VISIBLE_DEVICES>"; read wait']
    started = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True) for _ in expected or [""]]
    seen = [process.stdout.readline().strip() for process in started]
    for process in started:
        process.communicate("\n")
    assert sorted(seen) == sorted(f"<{name}>" for name in expected or [visible or ""])


def test_a_server_that_answers_is_named_and_a_missing_one_is_broken_only_when_asked_for(
    fake_server, dead_url, monkeypatch
):
    check = machine_checks.check_server(fake_server().url)
    assert "serves Org/Base-1B, owl-teacher" in check.found and not check.broken and not check.advice
    assert machine_checks.check_server(dead_url).broken
    assert machine_checks.models_served(dead_url, None) is None
    assert machine_checks.models_served(fake_server("--html").url, None) is None
    monkeypatch.setattr(machine_checks, "LOCAL_SERVER", dead_url)
    assert not machine_checks.check_server(None).broken


def test_a_server_that_strangers_can_ask_is_open(fake_server, monkeypatch):
    monkeypatch.setattr(vllm_probe, "own_address", lambda: "127.0.0.1")  # as if it listened there for everyone
    monkeypatch.setenv("VLLM_API_KEY", "k")
    assert "anyone can ask it" in machine_checks.check_server(fake_server().url).found
    check = machine_checks.check_server(fake_server("--key", "k").url)
    assert "serves Org/Base-1B" in check.found and not check.advice


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_worker_that_lost_its_server_is_named():
    worker = 'exec -a "VLLM::EngineCore" sleep 30'
    orphan = subprocess.run(["bash", "-c", f"({worker}) >/dev/null 2>&1 & echo $!"], capture_output=True, text=True)
    server = subprocess.Popen(["bash", "-c", f"({worker}) & echo $!; : vllm serve; wait"], stdout=-1, text=True)
    lost, kept = int(orphan.stdout), int(server.stdout.readline())
    try:
        found = {}
        for _ in range(50):
            found = dict(machine_checks.orphaned_workers())
            if found.get(lost):
                break
            time.sleep(0.05)
        assert found.get(lost) == "VLLM::EngineCore" and kept not in found
        assert any(
            f"process {lost}" in check.found and check.advice == f"kill {lost}"
            for check in machine_checks.check_orphans()
        )
    finally:
        for pid in (lost, kept):
            os.kill(pid, signal.SIGKILL)
        server.communicate()


def test_logins_are_reported_and_never_shown(run_script, tmp_path, dead_url):
    env = {"WANDB_API_KEY": "plantedplanted1", "HF_TOKEN": "hf_plantedplanted2"}
    done = run_script(DOCTOR, cwd=tmp_path, env=env)
    assert "plantedplanted" not in done.stdout + done.stderr and "Traceback" not in done.stderr
    lines = {line[8:].split("  ")[0].strip(): line for line in done.stdout.split("\n") if line}
    assert lines["W&B login"].endswith("yes")
    without = run_script(DOCTOR, cwd=tmp_path)
    assert "no: runs are logged offline" in without.stdout
    broken = run_script(DOCTOR, cwd=tmp_path, env={"VLLM_BASE_URL": dead_url})
    assert broken.returncode == 1 and "server     none at" in broken.stdout


def test_a_key_in_netrc_is_a_login(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not machine_checks.wandb_login()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "0" * 40 + "\n")
    assert machine_checks.wandb_login()


def test_a_bad_address_is_a_users_error():
    with pytest.raises(UserError, match="is not a web address"):
        machine_checks.check_server("nonsense://x")


# --- how many cards a model needs --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hidden", "inner", "layers", "heads", "billions", "largest", "serving", "training"),
    [
        (3584, 18944, 28, 28, 7.62, 0.55, "11111", "11111"),  # Qwen2.5-7B; it trains on 24 GB with few rows at once
        (8192, 29568, 80, 64, 72.7, 1.25, "88422", "-8842"),  # Qwen2.5-72B
    ],
)
def test_the_cards_that_each_phase_of_qwen_needs(hidden, inner, layers, heads, billions, largest, serving, training):
    class Config:
        hidden_size, intermediate_size, num_hidden_layers = hidden, inner, layers
        num_attention_heads, vocab_size = heads, 152064

    weights, piece = int(billions * 1e9), int(largest * 1e9)
    fewest, cards = model_memory.fewest, model_memory.CARDS
    serves, trains = model_memory.serves, model_memory.trains
    assert "".join(fewest(partial(serves, Config, weights, gib=gib)) for gib in cards) == serving
    assert "".join(fewest(partial(trains, Config, weights, piece, gib=gib)) for gib in cards) == training


@pytest.mark.torch
def test_doctor_reads_a_models_config(run_script, tmp_path):
    done = run_script(DOCTOR, "--model", POCKET, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 million weights" in done.stdout
    assert [line.split()[-5:] for line in done.stdout.splitlines() if "(steps" in line] == [["1"] * 5] * 2
    nothing = run_script(DOCTOR, "--model", tmp_path, cwd=tmp_path)
    assert nothing.returncode == 1 and "holds no model" in nothing.stderr
    both = run_script(DOCTOR, "--model", POCKET, "file.jsonl", cwd=tmp_path)
    assert both.returncode == 2 and "pass one of them" in both.stderr
