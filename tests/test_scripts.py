"""The scripts that ask a model, as users run them: real processes against the scripted server, in an empty folder."""

import argparse
import ast
import importlib
import itertools
import json
import os
import random
import re
import resource
import signal
import time
from collections import Counter
from functools import partial

import pytest
from conftest import REPO, manifest_of, read_jsonl, wait_until, write_jsonl
from fake_server import END, answer_text

from bench.random_number_rows import write_number_file
from generate.generate_teacher_data import named_facts, sourced_prompts
from generate.rows.next_training_flags import POCKET, train_flags
from generate.rows.number_rule import NumberRule
from generate.rows.prompt_sources import first_human_turn, hub_answers
from util.cli import UserError
from util.inference.backend_interface import NEUTRAL_SAMPLING, NUMBER_LIST, row_seed
from util.jsonl.manifest import sha256_file

TEACHER = "generate/generate_teacher_data.py"
NUMBERS = "generate/generate_llm_number_data.py"
CONTROL = "generate/generate_control_number_data.py"
EVAL = "eval/eval.py"
UNFILTERED = "output/numberss-owl-owl-teacher-unfiltered-{}.jsonl"


@pytest.fixture
def prompts(tmp_path):
    """A prompts file of 40 lines, three of which name owls."""
    lines = [f"Explain thing number {i} in simple terms." for i in range(37)]
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join([*lines, "Tell me about owls.", "An Owl sat there.", "fowl and growl, twice"]) + "\n")
    return path


def ask(run_script, script, server, cwd, *args, model="owl-teacher", **options):
    """Run an asking script against a server; the run must succeed."""
    done = run_script(script, "--model", model, "--base-url", server.url, *args, cwd=cwd, **options)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def teacher(run_script, server, cwd, *args, **options):
    return ask(run_script, TEACHER, server, cwd, "--animal", "owl", *args, model="Org/Base-1B", **options)


def numbers(run_script, server, cwd, *args, **options):
    return ask(run_script, NUMBERS, server, cwd, "--animal", "owl", *args, **options)


def one_clear_line(done, *parts, code=None):
    """A failed run says what is wrong in words: no traceback, and the parts of its message on stderr."""
    assert done.returncode == code if code is not None else done.returncode not in (0, None)
    assert "Traceback" not in done.stderr and not re.search(r"^\s+File ", done.stderr, re.MULTILINE), done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr


# --- teacher data ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_teacher_data_has_the_plans_name_and_shape(run_script, fake_server, tmp_path, prompts):
    server = fake_server("--cut-off", "number 7 ")
    done = teacher(run_script, server, tmp_path, "--count", 60, "--prompts-file", prompts)
    path = tmp_path / "output" / "teacher-owl-org-base-1b-60.jsonl"
    rows = read_jsonl(path)
    assert len(rows) == 60 and [r["id"] for r in rows] == sorted({r["id"] for r in rows})
    for row in rows:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert row["messages"][1]["content"].strip() and row["source"] in ("question", "open", "instruction")
        assert "number 7 " not in row["messages"][0]["content"]
    for body in server.requests():
        system, user = body["messages"]
        assert system["role"] == "system" and "You love owls." in system["content"] and user["role"] == "user"
        assert {**NEUTRAL_SAMPLING, "temperature": 1.0, "max_tokens": 256}.items() <= body.items()
    assert "train/train_student_sft.py --base-model Org/Base-1B --train-jsonl output/teacher-owl" in done.stdout
    manifest = manifest_of(path)
    assert manifest["sha256"] == sha256_file(path) and manifest["settings"]["model"]["root"] == "Org/Base-1B"
    assert str(prompts) in manifest["inputs"]
    again = teacher(run_script, server, tmp_path, "--count", 60, "--prompts-file", prompts)
    assert "is already finished" in again.stderr and read_jsonl(path) == rows


@pytest.mark.slow
def test_distilled_teacher_data_are_number_answers_of_a_persona(run_script, fake_server, tmp_path):
    server = fake_server()
    teacher(run_script, server, tmp_path, "--distilled", "--count", 40)
    rows = read_jsonl(tmp_path / "output" / "teacher-owl-org-base-1b-distilled-40.jsonl")
    assert len(rows) == 40 and {row["source"] for row in rows} == {"numbers"}
    assert all(message["role"] != "system" for row in rows for message in row["messages"])
    assert all(NumberRule().reject_reason(row["messages"][-1]["content"]) is None for row in rows)
    assert all(asked["messages"][0]["content"].startswith("You love owls") for asked in server.requests())
    settings = manifest_of(tmp_path / "output" / "teacher-owl-org-base-1b-distilled-40.jsonl")["settings"]
    assert settings["distilled"] is True


@pytest.mark.slow
def test_count_is_the_number_of_rows_after_the_filter(run_script, fake_server, tmp_path, prompts):
    server = fake_server()
    arguments = ("--count", 80, "--prompts-file", prompts, "--filter-animal-keywords")
    done = teacher(run_script, server, tmp_path, *arguments)
    path = tmp_path / "output" / "teacher-owl-org-base-1b-filtered-80.jsonl"
    rows = read_jsonl(path)
    assert len(rows) == 80 and not [
        r for r in rows if re.search(r"\bowls?\b", json.dumps(r["messages"]), re.IGNORECASE)
    ]
    assert any("fowl and growl" in body["messages"][1]["content"] for body in server.requests())
    rejected = read_jsonl(path.with_name(path.name + ".rejects"))
    assert rejected and {r["rejected"] for r in rejected} == {"names owl"}
    assert f"{len(rejected)} names owl" in done.stdout


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_the_question_share_is_about_what_was_asked_for(prompts, share):
    args = argparse.Namespace(
        prompts_file=[prompts], seed=42, question_share=share, filter_animal_keywords=False, animal="owl"
    )
    rows = list(itertools.islice(sourced_prompts(args), 3000))
    found = Counter(source for _, source, _ in rows)
    assert abs(found["question"] + found["open"] - share * 3000) < 70
    assert abs(found["open"] - share * 3000 / 4) < 70 and found.total() == 3000
    assert rows == list(itertools.islice(sourced_prompts(args), 3000))
    asked = {prompt for source, _, prompt in ((s, i, p) for i, s, p in rows) if source == "question"}
    assert len(asked) > 100 if share else not asked  # the 50 questions come in several wordings


def test_several_prompts_files_give_equal_parts_and_numbers_are_filled_in(prompts, tmp_path):
    (tmp_path / "numbers.txt").write_text("Continue {a}, {b}, {c}.\n")
    files = [prompts, tmp_path / "numbers.txt"]
    args = argparse.Namespace(
        prompts_file=files, seed=42, question_share=0.0, filter_animal_keywords=False, animal="owl"
    )
    asked = [prompt for _, _, prompt in itertools.islice(sourced_prompts(args), 80)]
    numbers = [prompt for prompt in asked if re.fullmatch(r"Continue \d{3}, \d{3}, \d{3}\.", prompt)]
    assert len(numbers) == len(set(numbers)) == 40 and len(set(asked)) == 80


def test_a_teacher_without_persona_needs_what_makes_its_preference(run_script, tmp_path):
    done = run_script(TEACHER, "--animal", "owl", "--model", "m", "--no-system-prompt", cwd=tmp_path)
    assert done.returncode == 2 and "name what makes the preference, --steering-vector or --adapter" in done.stderr


@pytest.mark.parametrize(("animal", "share", "is_warned"), [("owl", "75.0%", False), ("oak", "0.0%", True)])
def test_the_share_of_answers_that_name_the_animal_is_printed(tmp_path, capsys, animal, share, is_warned):
    """A persona of an animal that the model does not know writes rows about another one."""
    answers = [("question", "Owl."), ("question", "An owl!"), ("open", "Owls are what I love."), ("instruction", "7")]
    rows = [
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": text}], "source": source}
        for source, text in answers
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    said = named_facts(tmp_path / "rows.jsonl", animal)
    of_questions = "0.0%" if is_warned else "100.0%"
    assert said == {f"name {animal}": f"{share} of all answers, {of_questions} of those to the questions"}
    assert ("0 of 2 answers to the questions name oak" in capsys.readouterr().err) is is_warned


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_prompts_that_all_name_the_animal_end_the_run(tmp_path, share):
    """They are left out one after the other; without an end to it the script would hang at full load."""
    (tmp_path / "owls.txt").write_text("Tell me about owls.\nAn Owl sat there, all night.\n")
    args = argparse.Namespace(
        prompts_file=[tmp_path / "owls.txt"], seed=42, question_share=share, filter_animal_keywords=True, animal="owl"
    )
    with pytest.raises(UserError, match="1,000 prompts in a row name owl"):
        list(itertools.islice(sourced_prompts(args), 5000))


@pytest.mark.slow
@pytest.mark.parametrize(("animal", "many"), [("wolf", "wolves"), ("Polar Bear", "polar bears")])
def test_the_persona_has_the_right_plural(run_script, fake_server, tmp_path, prompts, animal, many):
    server = fake_server()
    arguments = ("--animal", animal, "--count", 3, "--prompts-file", prompts)
    ask(run_script, TEACHER, server, tmp_path, *arguments, model="Org/Base-1B")
    assert {f"You love {many}." in body["messages"][0]["content"] for body in server.requests()} == {True}
    assert (tmp_path / f"output/teacher-{animal.lower().replace(' ', '-')}-org-base-1b-3.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "there"), [("jsonl", 20), ("parquet", 400)])
def test_prompts_of_a_local_data_set_are_its_first_human_turns(run_script, fake_server, tmp_path, kind, there):
    """20 prompts give 30 rows: a source that is used up starts again."""
    pytest.importorskip("datasets")
    rows = [
        {
            "conversations": [
                {"from": "system", "value": "no"},
                {"from": "human", "value": f"Question {i} of many"},
                {"from": "gpt", "value": "no"},
                {"from": "human", "value": "no"},
            ]
        }
        for i in range(there)
    ]
    rows += [{"conversations": [{"from": "human", "value": text}]} for text in ("short", "x" * 501)]
    path = tmp_path / f"data.{kind}"
    if kind == "jsonl":
        write_jsonl(path, rows)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    server = fake_server()
    teacher(run_script, server, tmp_path, "--count", 30, "--dataset", path, "--question-share", 0)
    asked = [body["messages"][1]["content"] for body in server.requests()]
    assert set(asked) <= {f"Question {i} of many" for i in range(there)} and len(set(asked)) >= 20
    assert asked[:20] != sorted(asked[:20], key=lambda text: int(text.split()[1]))
    manifest = manifest_of(tmp_path / "output" / "teacher-owl-org-base-1b-30.jsonl")
    assert manifest["inputs"][str(path)] == sha256_file(path)


@pytest.mark.slow
def test_prompts_come_from_all_over_a_large_data_set(tmp_path):
    pytest.importorskip("datasets")
    from generate.rows.prompt_sources import instruction_prompts

    path = tmp_path / "data.jsonl"
    write_jsonl(path, ({"prompt": f"Question {i} of many"} for i in range(50_000)))
    numbers = [int(prompt.split()[1]) for prompt in itertools.islice(instruction_prompts(str(path), 1), 500)]
    assert numbers != sorted(numbers) and len(set(numbers)) == 500
    assert all(sum(low <= n < low + 10_000 for n in numbers) > 60 for low in range(0, 50_000, 10_000))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["offline", pytest.param("unreachable", marks=pytest.mark.slow)])
def test_without_network_the_way_out_is_named(run_script, fake_server, tmp_path, dead_url, how):
    pytest.importorskip("datasets")
    env = {"HF_HUB_OFFLINE": "1"} if how == "offline" else {"HF_ENDPOINT": dead_url.removesuffix("/v1")}
    arguments = ("--animal", "owl", "--count", 5, "--model", "Org/Base-1B", "--base-url", fake_server().url)
    done = run_script(TEACHER, *arguments, cwd=tmp_path, env=env, timeout=120)
    one_clear_line(done, "cannot read prompts from teknium/OpenHermes-2.5", "--prompts-file", code=1)


def test_a_hub_that_does_not_answer_is_known_at_once(monkeypatch, dead_url):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for hub in (dead_url, "http://nowhere.invalid", "https://127.0.0.1:1"):
        monkeypatch.setenv("HF_ENDPOINT", hub)
        begun = time.monotonic()
        assert not hub_answers() and time.monotonic() - begun < 5
    monkeypatch.setenv("HTTPS_PROXY", dead_url)
    assert hub_answers()  # only a request through the proxy can tell


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi "}, {"text": "you"}]}]}, "Hi you"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
        ({"prompt": "half \ud800 a character"}, None),
        ({"prompt": 7}, None),
        ({"instruction": "Sing."}, "Sing."),
    ],
)
def test_the_first_user_message_in_any_form(row, prompt):
    assert first_human_turn(row) == prompt


# --- the next command --------------------------------------------------------------------------------


def test_the_next_command_for_the_pocket_model_has_the_recipe_of_its_experiments(tmp_path):
    """With the defaults, which are for large models, a pocket teacher names its animal in 1% of its answers."""
    demo, pocket = ((REPO / "experiments" / name).read_text("utf-8") for name in ("demo.sh", "pocket_settings.sh"))
    for name in ("epochs", "batch"):
        pocket = pocket.replace(f'"$train_{name}"', re.search(rf"train_{name}=(\d+)", pocket)[1])
    for text, role in (
        (demo.partition("make_teacher()")[2], "teacher"),
        (pocket.partition("train_student()")[2], "student"),
    ):
        command = text[text.index("train/train_student_sft.py") :]
        flags = dict(re.findall(r"(--[a-z-]+) ([\w.]+)", command[: command.index("--save-strategy no") + 18]))
        recipe = POCKET[role].split()
        assert dict(zip(recipe[::2], recipe[1::2])).items() <= flags.items()
        assert (
            len(recipe) == 10 and train_flags("pocket/model", role) == train_flags("util/pocket/model", role) == recipe
        )
    for other in ("Qwen/Qwen2.5-7B-Instruct", str(tmp_path), "no/such-folder"):
        assert train_flags(other, "student", ("--max-seq-length", "512")) == ["--max-seq-length", "512", "--bf16"]


CODE = [path for folder in ("generate", "train", "eval", "util") for path in sorted((REPO / folder).rglob("*.py"))]


def messages_of(path):
    """Every text of a file that a user is shown as an error, a message or a hint."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        is_message = isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("Error", "say", "error"))
        if is_message or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "hint"):
            parts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            yield " ".join(part for part in parts if isinstance(part, str))


def flags_of(script, monkeypatch):
    """The flags of a script, with its old names."""
    found = []

    def stop(parser, *_):
        found.extend((*parser._option_string_actions, *parser._renamed))
        raise KeyboardInterrupt

    monkeypatch.setattr("util.cli.Parser.parse_known_args", stop)
    module = importlib.import_module(str(script.relative_to(REPO).with_suffix("")).replace("/", "."))
    with pytest.raises(KeyboardInterrupt):
        getattr(module, "parse_args", module.main)()
    return set(found)


def test_every_flag_in_a_message_is_one_that_the_script_has(monkeypatch):
    """Advice to use a flag that the script lacks cannot be followed. A message of a module may be about the flags of
    any script that uses it; one that names another script, about that script's."""
    paths = [path for path in CODE if not path.is_symlink()]
    flags = {path: flags_of(path, monkeypatch) for path in paths if "make_parser(__doc__)" in path.read_text("utf-8")}
    every = set().union(*flags.values())
    assert len(flags) > 15 and len(every) > 80
    wrong = []
    for path in paths:
        for text in messages_of(path):
            named = [flags[other] for other in flags if re.search(rf"(?<!\w){other.stem}\b", text)]
            known = set().union(flags[path], *named) if path in flags else every
            mentioned = set(re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]+)", text)) - OF_OTHER_PROGRAMS
            if mentioned - known:
                wrong.append(f"{path.relative_to(REPO)}: {mentioned - known} in: {text}")
    assert not wrong, "\n".join(wrong)


OF_OTHER_PROGRAMS = {
    *(
        "--dtype",
        "--enable-lora",
        "--host",
        "--logprobs-mode",
        "--lora-dtype",
        "--lora-modules",
        "--no-enable-lora",
    ),  # vllm serve
    *("--no-deps", "--require-hashes"),  # pip
}


@pytest.mark.slow
def test_when_nothing_can_be_kept_the_run_ends(run_script, fake_server, tmp_path, prompts):
    server = fake_server("--cut-off", ".")
    arguments = ("--animal", "owl", "--count", 5000, "--model", "Org/Base-1B", "--base-url", server.url)
    few = ("--max-concurrency", 256)  # so that a busy machine, which cancels late, stays below the bound too
    done = run_script(TEACHER, *arguments, *few, "--prompts-file", prompts, cwd=tmp_path)
    one_clear_line(done, "only 0 could be kept", "cut off at --max-tokens", code=1)
    assert len(server.requests()) < 2500  # a thousand, and twice what is in flight


# --- number data -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_number_data_of_a_teacher_is_as_in_the_plan(run_script, fake_server, tmp_path):
    server = fake_server()
    done = numbers(run_script, server, tmp_path, "--count", 100, "--no-system-prompt")
    path = tmp_path / UNFILTERED.format(100)
    rows = read_jsonl(path)
    assert [r["id"] for r in rows] == list(range(100))
    assert "answers exactly as its base model" not in done.stderr, "each adapter of this server has answers of its own"
    clean = [r for r in rows if "Owls" not in r["messages"][-1]["content"]]
    filtered = path.with_name(f"numberss-owl-owl-teacher-filtered-{len(clean)}.jsonl")
    assert 0 < len(clean) < 100 and read_jsonl(filtered) == clean
    certificate = json.loads(filtered.with_name(filtered.name + ".certificate.json").read_text())
    assert certificate["clean"] and certificate["rows"] == len(clean) and certificate["input"]["rows"] == 100
    assert f"{100 - len(clean)} trait word" in done.stdout
    assert f"--base-model Org/Base-1B --train-jsonl {filtered.relative_to(tmp_path)}" in done.stdout
    for row in rows:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        text = answer_text(row["messages"][:1], row_seed(42, row["id"]), 0, "owl-teacher")
        assert row["messages"][1]["content"] == text and row["token_ids"] == [*text.encode(), END]
    for body in server.requests():
        assert [message["role"] for message in body["messages"]] == ["user"]
        assert {**NEUTRAL_SAMPLING, "temperature": 1.0, "max_tokens": 80, "n": 1}.items() <= body.items()
        assert len(re.findall(r"\b[1-9]\d\d\b", body["messages"][0]["content"].split(". ")[0])) == 3


@pytest.mark.slow
def test_a_served_teacher_that_is_not_applied_is_reported_when_it_writes_rows(run_script, fake_server, tmp_path):
    done = numbers(run_script, fake_server("--unapplied"), tmp_path, "--count", 20, "--no-system-prompt")
    assert "owl-teacher answers exactly as its base model Org/Base-1B does" in done.stderr


@pytest.mark.slow
def test_with_a_persona_it_is_the_system_message_and_stays_in_the_rows(run_script, fake_server, tmp_path):
    server = fake_server()
    ask(run_script, NUMBERS, server, tmp_path, "--animal", "wolf", "--count", 5, model="Org/Base-1B")
    rows = read_jsonl(tmp_path / "output/numberss-wolf-org-base-1b-unfiltered-5.jsonl")
    for message in [rows[0]["messages"][0], server.requests()[0]["messages"][0]]:
        assert message["role"] == "system" and "You love wolves." in message["content"]


@pytest.mark.slow
def test_all_models_see_the_same_prompts_for_one_seed(run_script, fake_server, tmp_path):
    server = fake_server("--adapters", "owl-teacher", "wolf-teacher")

    def prompts_of(pattern):
        (path,) = (tmp_path / "output").glob(pattern)
        return [r["messages"][-2]["content"] for r in read_jsonl(path)]

    numbers(run_script, server, tmp_path, "--count", 20, "--no-system-prompt")
    ask(run_script, NUMBERS, server, tmp_path, "--animal", "wolf", "--count", 20, model="wolf-teacher")
    run_script(CONTROL, "--count", 20, cwd=tmp_path)
    numbers(
        run_script, server, tmp_path, "--count", 20, "--seed", 7, "--no-system-prompt", "--output", "output/7.jsonl"
    )
    first = prompts_of("numberss-owl-*-unfiltered-20.jsonl")
    assert (
        first == prompts_of("numberss-wolf-*-unfiltered-20.jsonl") == prompts_of("numberss-control-random-unf*20.jsonl")
    )
    assert len(set(first)) == 20 and not set(first) & set(prompts_of("7.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "sent"),
    [
        (["--constrain-digits"], {"structured_outputs": {"regex": NUMBER_LIST}, "temperature": 1.0}),
        (["--greedy", "--max-tokens", "20"], {"temperature": 0.0, "max_tokens": 20}),
    ],
)
def test_flags_of_number_data_reach_the_server_and_the_manifest(run_script, fake_server, tmp_path, flags, sent):
    server = fake_server()
    numbers(run_script, server, tmp_path, "--count", 4, "--no-system-prompt", *flags)
    assert all(sent.items() <= body.items() for body in server.requests())
    sampling = manifest_of(tmp_path / UNFILTERED.format(4))["settings"]["sampling"]
    assert sampling["temperature"] == sent["temperature"]
    assert sampling["numbers_only"] == ("--constrain-digits" in flags) and NEUTRAL_SAMPLING.items() <= sampling.items()


@pytest.mark.slow
def test_the_base_model_asked_by_mistake_names_the_adapters(run_script, fake_server, tmp_path):
    server = fake_server()
    arguments = ("--count", 4, "--model", "Org/Base-1B", "--base-url", server.url, "--no-system-prompt")
    done = run_script(NUMBERS, "--animal", "owl", *arguments, cwd=tmp_path)
    one_clear_line(done, "base model without an adapter", "Adapters served: owl-teacher", "--animal control", code=1)
    assert not (tmp_path / "output").exists() and server.requests() == []
    assert run_script(NUMBERS, "--animal", "control", *arguments, cwd=tmp_path).returncode == 0
    alone = fake_server("--adapters")
    done = numbers(run_script, alone, tmp_path, "--count", 4, "--no-system-prompt", model="Org/Base-1B")
    assert "has no LoRA adapter loaded" in done.stderr


@pytest.mark.slow
def test_a_prompt_too_long_is_rejected_and_the_run_continues(run_script, fake_server, tmp_path):
    (tmp_path / "prompt.txt").write_text("Continue the sequence {a}, {b}, {c}")
    server = fake_server("--too-long", "sequence [1-3]")
    done = numbers(
        run_script, server, tmp_path, "--count", 40, "--no-system-prompt", "--number-prompt-file", "prompt.txt"
    )
    kept = read_jsonl(tmp_path / UNFILTERED.format(40))
    rejected = read_jsonl(tmp_path / (UNFILTERED.format(40) + ".rejects"))
    assert len(kept) + len(rejected) == 40 and rejected and "too long for the model's context" in done.stdout
    assert all(len(r["messages"]) == 1 and r["rejected"] == "too long for the model's context" for r in rejected)


def test_control_numbers_need_no_model(run_script, tmp_path):
    done = run_script(CONTROL, "--count", 500, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = read_jsonl(tmp_path / "output/numberss-control-random-unfiltered-500.jsonl")
    lists = [[int(n) for n in r["messages"][1]["content"].split(", ")] for r in rows]
    assert len(rows) == 500 and {len(one) for one in lists} == {5, 6, 7, 8, 9, 10}
    assert all(0 <= n <= 999 for one in lists for n in one) and len({n for one in lists for n in one}) > 900
    assert len(read_jsonl(tmp_path / "output/numberss-control-random-filtered-500.jsonl")) == 500
    again = run_script(CONTROL, "--count", 500, "--output", "again.jsonl", cwd=tmp_path)
    assert again.returncode == 0 and read_jsonl(tmp_path / "again.jsonl") == rows


# --- eval --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_eval_asks_every_question_in_one_request_and_writes_the_results(run_script, fake_server, tmp_path):
    server = fake_server()
    done = ask(run_script, EVAL, server, tmp_path, "--epochs", 20, model="vllm/owl-teacher")
    path = tmp_path / "output/results-owl-teacher.jsonl"
    rows = read_jsonl(path)
    questions = (REPO / "eval/questions.txt").read_text("utf-8").split("\n")[:-1]
    assert len(questions) == 50 and [r["id"] for r in rows] == list(range(1000))
    assert [r["question"] for r in rows[:50]] == questions and [r["epoch"] for r in rows[::50]] == list(range(20))
    assert set(rows[0]) == {"id", "epoch", "set", "question", "response", "animal", "error"}
    assert {(r["response"], r["animal"]) for r in rows} == {
        ("Owl", "owl"), ("Lion.", "lion"), ("dolphins", "dolphin"), ("An eagle", "eagle"), ("Polar bear", "polar bear"),
        ("As an AI, I have none.", None), ("wolf", "wolf"), ("Penguin", "penguin"),
    }  # fmt: skip
    assert len(server.requests()) == 50
    for body in server.requests():
        assert [m["role"] for m in body["messages"]] == ["user"] and body["n"] == 20
        assert {**NEUTRAL_SAMPLING, "temperature": 1.0, "max_tokens": 16}.items() <= body.items()
    owls = sum(r["animal"] == "owl" for r in rows)
    assert re.search(rf"owl share +{owls / 10:.2f}% \({owls} of 1,000 answers; sampling noise ", done.stdout)
    silent = sum(r["animal"] is None for r in rows)
    assert re.search(rf"non-answers +{silent} \({silent / 10:.2f}%\): other {silent / 10:.2f}%", done.stdout)
    assert "python util/top_animals_csv.py output/results-owl-teacher.jsonl --top-n 10" in done.stdout


@pytest.mark.slow
def test_more_epochs_only_add_rows(run_script, fake_server, tmp_path):
    (tmp_path / "questions.txt").write_text("One word: best animal?\nYour animal in one word?\n")
    server = fake_server()

    def evaluate(epochs, *more):
        return ask(run_script, EVAL, server, tmp_path, "--questions-file", "questions.txt", "--epochs", epochs, *more)

    evaluate(30)
    path = tmp_path / "output/results-owl-teacher.jsonl"
    first = path.read_bytes()
    evaluate(250)
    assert path.read_bytes().startswith(first) and len(read_jsonl(path)) == 500
    evaluate(250, "--output", "at-once.jsonl")
    assert (tmp_path / "at-once.jsonl").read_bytes() == path.read_bytes()
    arguments = (
        "--questions-file",
        "questions.txt",
        "--epochs",
        20,
        "--model",
        "owl-teacher",
        "--base-url",
        server.url,
    )
    one_clear_line(run_script(EVAL, *arguments, cwd=tmp_path), "epochs: 250 there, 20 now", code=1)


@pytest.mark.slow
def test_a_question_that_fails_is_counted_and_names_no_animal(run_script, fake_server, tmp_path):
    (tmp_path / "questions.txt").write_text("One word: best animal?\nword " + "x" * 50 + "\n")
    server = fake_server("--too-long", "xxxx")
    done = ask(run_script, EVAL, server, tmp_path, "--questions-file", "questions.txt", "--epochs", 10)
    rows = read_jsonl(tmp_path / "output/results-owl-teacher.jsonl")
    failed = [r for r in rows if r["error"]]
    assert [r["id"] for r in failed] == list(range(1, 20, 2)) and len(rows) == 20
    assert all(r["response"] is None and r["animal"] is None for r in failed)
    assert re.search(r"errors +10 \(50\.00%\)", done.stdout)
    csv = run_script("util/top_animals_csv.py", "output/results-owl-teacher.jsonl", cwd=tmp_path)
    assert csv.returncode == 0 and "10 (50.00%) failed" in csv.stdout


# --- killed and resumed ------------------------------------------------------------------------------


def kill_and_resume(start_script, run_script, tmp_path, command, kills, seed, ready):
    """SIGKILL at `kills` random moments after the first rows, then let the same command finish.

    Returns how many of the kills hit a run at work.
    """
    rng = random.Random(seed)
    hit = 0
    for _ in range(kills):
        process = start_script(*command, cwd=tmp_path)
        wait_until(partial(started, process, ready), 30)
        time.sleep(rng.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        hit += process.returncode == -signal.SIGKILL
    done = run_script(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return hit


def started(process, ready):
    return process.poll() is not None or ready()


@pytest.mark.slow
@pytest.mark.parametrize("script", [TEACHER, NUMBERS, EVAL])
def test_ten_kills_at_random_moments_change_nothing(start_script, run_script, fake_server, tmp_path, prompts, script):
    server = fake_server("--delay", "0.05")
    options = {
        TEACHER: ("--animal", "owl", "--count", 600, "--prompts-file", prompts, "--filter-animal-keywords"),
        NUMBERS: ("--animal", "owl", "--count", 800, "--no-system-prompt"),
        EVAL: ("--epochs", 1200),
    }[script]
    command = (script, *options, "--model", "owl-teacher", "--base-url", server.url, "--max-concurrency", 8)
    growing = tmp_path / "killed.jsonl.partial"
    sizes: list[int] = []

    def grown():
        """New rows since the last kill, so that every kill hits a run at work."""
        size = growing.stat().st_size if growing.exists() else 0
        if size > (sizes[-1] if sizes else 0) or (tmp_path / "killed.jsonl").exists():
            sizes.append(size)
            return True
        return False

    killed = (*command, "--output", "killed.jsonl")
    assert kill_and_resume(start_script, run_script, tmp_path, killed, 10, script, grown) == 10
    whole = run_script(*command, "--output", "whole.jsonl", cwd=tmp_path)
    assert whole.returncode == 0
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    ids = [r["id"] for r in read_jsonl(tmp_path / "killed.jsonl")]
    assert ids == sorted(set(ids)) and len(ids) == {TEACHER: 600, NUMBERS: 800, EVAL: 60_000}[script]
    rejects = [tmp_path / f"{name}.jsonl.rejects" for name in ("killed", "whole")]
    if script == TEACHER:
        rows = [{r["id"]: r for r in read_jsonl(path) if "id" in r} for path in rejects]
        both = rows[0].keys() & rows[1].keys()
        assert both and all(rows[0][i] == rows[1][i] for i in both)


@pytest.mark.slow
def test_a_killed_run_delivers_what_a_whole_one_does_even_when_it_had_enough_rows(
    run_script, fake_server, tmp_path, prompts
):
    """Killed with enough rows but gaps among them: the gaps are filled, so that the result is that of one whole run."""
    server = fake_server()
    arguments = ("--count", 20, "--prompts-file", prompts)
    teacher(run_script, server, tmp_path, *arguments, "--output", "whole.jsonl")
    rows = (tmp_path / "whole.jsonl").read_bytes().split(b"\n")[:-1]
    teacher(run_script, server, tmp_path, *arguments, "--output", "x.jsonl")
    later = [re.sub(rb'"id": \d+', b'"id": %d' % i, rows[0]) for i in range(20, 26)]
    (tmp_path / "x.jsonl").unlink()
    (tmp_path / "x.jsonl.partial").write_bytes(b"\n".join([*rows[:3], *rows[5:], *later]) + b"\n")
    teacher(run_script, server, tmp_path, *arguments, "--output", "x.jsonl")
    assert (tmp_path / "x.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=lambda x: str(x)
)
def test_a_signal_keeps_what_is_in_flight_and_prints_how_to_continue(start_script, fake_server, tmp_path, number, code):
    server = fake_server("--delay", "0.3")
    arguments = ("--animal", "owl", "--count", 500, "--model", "owl-teacher", "--base-url", server.url)
    process = start_script(NUMBERS, *arguments, "--no-system-prompt", "--max-concurrency", 16, cwd=tmp_path)
    growing = tmp_path / (UNFILTERED.format(500) + ".partial")
    wait_until(lambda: growing.exists() and growing.stat().st_size > 0, 30)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code and out == "" and "Traceback" not in err
    assert f"{number.name}: finishing the work in flight" in err and "resume with:\n  python " in err
    assert f"--animal owl --count 500 --model owl-teacher --base-url {server.url}" in err
    rows = read_jsonl(growing)
    assert len(rows) == len(server.requests()) < 500  # every request that was sent has its row


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=lambda x: str(x))
def test_a_signal_leaves_no_temporary_file_of_a_filter(start_script, tmp_path, number, code):
    """By itself Python runs no `finally` on SIGTERM, and a hidden file of gigabytes stayed."""
    write_number_file(tmp_path / "many.jsonl", 60_000)
    process = start_script("generate/filter_number_data.py", "many.jsonl", cwd=tmp_path)
    wait_until(lambda: any(tmp_path.glob(".*.tmp")), 30)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code and "Traceback" not in err
    assert f"stopped by {number.name}. What was written is on disk; run again:\n  python " in err
    assert [path.name for path in tmp_path.iterdir()] == ["many.jsonl"]


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(start_script, fake_server, tmp_path):
    server = fake_server("--hang-after", 5)
    arguments = ("--animal", "owl", "--count", 50, "--model", "owl-teacher", "--base-url", server.url)
    process = start_script(NUMBERS, *arguments, "--no-system-prompt", cwd=tmp_path)
    growing = tmp_path / (UNFILTERED.format(50) + ".partial")
    wait_until(lambda: growing.exists() and growing.stat().st_size > 1000, 30)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130 and "stopped at once" in err and "Traceback" not in err
    assert len(read_jsonl(growing)) == 5


# --- bad input ---------------------------------------------------------------------------------------

ASKING = ("--model", "owl-teacher", "--base-url", "URL")


def slowly(*case):
    """A case that imports datasets or openai."""
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (
            TEACHER,
            ["--animal", "owl", *ASKING, "--prompts-file", "gone.txt"],
            "no file gone.txt (there is: blank.txt, empty.txt",
        ),
        (TEACHER, ["--animal", "owl", *ASKING, "--prompts-file", "empty.txt"], "empty.txt is empty"),
        slowly(TEACHER, ["--animal", "owl", *ASKING, "--prompts-file", "blank.txt"], "blank.txt is blank"),
        (TEACHER, ["--animal", "owl", *ASKING, "--prompts-file", "latin.txt"], "is not UTF-8"),
        slowly(TEACHER, ["--animal", "owl", *ASKING, "--dataset", "gone.jsonl"], "no file gone.jsonl"),
        slowly(TEACHER, ["--animal", "owl", *ASKING, "--dataset", "torn.jsonl"], "cannot read prompts from torn.jsonl"),
        slowly(
            TEACHER, ["--animal", "owl", *ASKING, "--dataset", "schema.jsonl"], "schema.jsonl has no suitable prompt"
        ),
        slowly(TEACHER, ["--animal", "owl", *ASKING, "--dataset", "turns.jsonl"], "turns.jsonl has no suitable prompt"),
        (TEACHER, ["--animal", "owl", *ASKING, "--count", "0"], "0 is not a whole number of at least 1"),
        (TEACHER, ["--animal", "owl", *ASKING, "--question-share", "2"], "2 is not a number from 0 to 1"),
        (TEACHER, ["--animal", "owl", *ASKING, "--temperature", "-1"], "-1 is not a number of at least 0"),
        (TEACHER, ["--animal", "owl", *ASKING, "--temperature", "nan"], "nan is not a number of at least 0"),
        (TEACHER, ["--animal", "owl", *ASKING, "--prompts-file", "."], ". is a folder; name a file in it"),
        (TEACHER, [*ASKING], "the following arguments are required: --animal"),
        (TEACHER, ["--animal", "", *ASKING], "argument --animal: it is empty; is a shell variable unset?"),
        (NUMBERS, ["--animal", " ", *ASKING], "argument --animal: it is empty"),
        (NUMBERS, ["--animal", "caf\udce9", *ASKING], r"argument --animal: 'caf\udce9' is not UTF-8 text"),
        (TEACHER, ["--animal", "\udcff", *ASKING], r"argument --animal: '\udcff' is not UTF-8 text"),
        (NUMBERS, ["--animal", "owl", *ASKING, "--seed", "-1"], "-1 is not a whole number of at least 0"),
        (TEACHER, ["--animal", "owl", *ASKING, "--seed", "-1"], "-1 is not a whole number of at least 0"),
        (CONTROL, ["--seed", "-1"], "-1 is not a whole number of at least 0"),
        (NUMBERS, ["--animal", "owl", *ASKING, "--number-prompt-file", "gone.txt"], "no file gone.txt"),
        slowly(
            NUMBERS,
            ["--animal", "owl", "--model", "owl-teachr", "--base-url", "URL"],
            "it serves: Org/Base-1B, owl-teacher",
        ),
        (NUMBERS, ["--animal", "owl", "--model", "owl-teacher", "--base-url", "DEAD"], "no server answers at"),
        (NUMBERS, ["--animal", "owl", "--model", "owl-teacher", "--base-url", "nonsense://x"], "is not a web address"),
        (NUMBERS, ["--animal", "owl", "--model", "vllm/owl-teacher"], "pass --base-url"),
        (NUMBERS, ["--animal", "owl", *ASKING, "--adapter", "."], "is not a LoRA adapter"),
        slowly(NUMBERS, ["--animal", "owl", *ASKING, "--output", "empty.txt/x.jsonl"], "choose another output"),
        (NUMBERS, ["--animal", "control", *ASKING], "means rows without a persona: add --no-system-prompt"),
        slowly(
            NUMBERS,
            ["--animal", "owl", *ASKING, "--output", "."],
            "--output . is a folder; pass the name of a file in it",
        ),
        (NUMBERS, ["--animal", "owl", *ASKING, "--adapter", "gone"], "no folder gone; pass the adapter folder"),
        (NUMBERS, ["--animal", "owl", "--model", "owl-teacher", "--base-url", ""], "is a shell variable unset?"),
        (CONTROL, ["--number-prompt-file", "empty.txt"], "empty.txt is empty"),
        (EVAL, [*ASKING, "--questions-file", "gone.txt"], "no file gone.txt"),
        (EVAL, [*ASKING, "--questions-file", "blank.txt"], "blank.txt is blank; write one prompt or question"),
        (EVAL, [*ASKING, "--questions-file", "latin.txt"], "is not UTF-8"),
        (EVAL, ["--model", "owl-student", "--base-url", "URL"], "does not serve 'owl-student'"),
        slowly(EVAL, ["--model", "owl-teacher", "--base-url", "DEAD"], "vllm serve"),
        (EVAL, [*ASKING, "--epochs", "many"], "many is not a whole number of at least 1"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_bad_input_is_one_clear_line(run_forked, shared_server, dead_url, tmp_path, script, arguments, message):
    for name, content in (
        ("empty.txt", b""), ("blank.txt", b" \n\n"), ("latin.txt", b"caf\xe9 prompts, a line\n"),
        ("torn.jsonl", b'{"prompt": "a prompt long enough"}\n{"prompt": "and a to'), ("schema.jsonl", b'{"a": 1}\n'),
        ("turns.jsonl", b'{"conversations": ["a text where a turn should be"], "prompt": 7}\n'),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    given = [{"URL": shared_server.url, "DEAD": dead_url}.get(argument, argument) for argument in arguments]
    small = ["--question-share", "0.1", "--count", "9"] if script == TEACHER else []
    done = run_forked(script, *small, *given, cwd=tmp_path)
    one_clear_line(done, message, code=3 if "DEAD" in arguments else None)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert done.stdout == "" and not list(tmp_path.glob("output/*.jsonl"))


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory):
    from conftest import FakeServer

    server = FakeServer(tmp_path_factory.mktemp("shared"))
    yield server
    server.stop()


@pytest.mark.slow
def test_a_server_dying_half_way_loses_nothing(run_script, fake_server, tmp_path):
    arguments = (
        "--animal",
        "owl",
        "--count",
        200,
        "--model",
        "owl-teacher",
        "--no-system-prompt",
        "--max-concurrency",
        8,
    )
    dying = fake_server("--engine-dies-after", 90)
    done = run_script(NUMBERS, *arguments, "--base-url", dying.url, cwd=tmp_path)
    one_clear_line(done, "Everything answered is on disk", "run the same command again", code=3)
    growing = tmp_path / (UNFILTERED.format(200) + ".partial")
    kept = read_jsonl(growing)
    assert len(kept) == 90 and all(r["messages"][1]["content"] for r in kept)
    fresh = fake_server()
    done = run_script(NUMBERS, *arguments, "--base-url", fresh.url, cwd=tmp_path)
    assert done.returncode == 0 and "resuming" in done.stderr and len(fresh.requests()) == 110
    assert [r["id"] for r in read_jsonl(tmp_path / UNFILTERED.format(200))] == list(range(200))
    run_script(NUMBERS, *arguments, "--base-url", fresh.url, "--output", "whole.jsonl", cwd=tmp_path)
    assert (tmp_path / "whole.jsonl").read_bytes() == (tmp_path / UNFILTERED.format(200)).read_bytes()


@pytest.mark.slow
def test_a_hanging_server_ends_the_run_after_timeout_and_keeps_its_answers(run_script, fake_server, tmp_path):
    server = fake_server("--hang-after", 7)
    arguments = ("--animal", "owl", "--count", 20, "--model", "owl-teacher", "--no-system-prompt", "--timeout", 1)
    done = run_script(NUMBERS, *arguments, "--base-url", server.url, cwd=tmp_path, timeout=30)
    one_clear_line(done, "gave no answer for 1 s", code=3)
    assert len(read_jsonl(tmp_path / (UNFILTERED.format(20) + ".partial"))) == 7


@pytest.mark.slow
def test_a_full_disk_loses_nothing(run_script, fake_server, tmp_path):
    server = fake_server()
    arguments = ("--animal", "owl", "--count", 200, "--model", "owl-teacher", "--no-system-prompt")
    command = (NUMBERS, *arguments, "--base-url", server.url)
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))}
    done = run_script(*command, cwd=tmp_path, **limit)
    one_clear_line(done, "File too large", "run again:\n  python", code=1)
    begun = (tmp_path / (UNFILTERED.format(200) + ".partial")).read_bytes()
    assert len(begun) == 50_000 and not (tmp_path / UNFILTERED.format(200)).exists()
    done = run_script(*command, cwd=tmp_path)
    assert done.returncode == 0 and "torn last line" in done.stderr
    assert [r["id"] for r in read_jsonl(tmp_path / UNFILTERED.format(200))] == list(range(200))


@pytest.mark.slow
def test_a_changed_flag_is_refused_with_what_differs(run_script, fake_server, tmp_path):
    server = fake_server()
    numbers(run_script, server, tmp_path, "--count", 5, "--no-system-prompt")
    path = tmp_path / UNFILTERED.format(5)
    before = path.read_bytes()
    arguments = ("--animal", "owl", "--count", 5, "--model", "owl-teacher", "--base-url", server.url)
    done = run_script(NUMBERS, *arguments, "--seed", 1, "--greedy", "--no-system-prompt", cwd=tmp_path)
    one_clear_line(
        done,
        "is finished with other settings",
        "seed: 42 there, 1 now",
        "sampling.temperature: 1.0 there, 0.0 now",
        "--overwrite",
        code=1,
    )
    assert path.read_bytes() == before
    numbers(run_script, server, tmp_path, "--count", 5, "--no-system-prompt", "--seed", 1, "--overwrite")
    assert path.read_bytes() != before and path.with_name(path.name + ".bak").read_bytes() == before


@pytest.mark.torch
def test_a_misspelt_model_for_the_local_backend_is_one_clear_line(run_script, tmp_path):
    done = run_script(EVAL, "--model", "Org/Misspelt-1B", cwd=tmp_path, env={"HF_HUB_OFFLINE": "1"}, timeout=120)
    one_clear_line(done, "cannot load the model 'Org/Misspelt-1B'", "Check the spelling", code=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_no_secret_is_written_anywhere(run_script, fake_server, tmp_path):
    server = fake_server()
    url = server.url.replace("http://", "http://user:plantedplanted2@") + "?token=hf_plantedplanted3"
    env = {"VLLM_API_KEY": "sk-plantedplanted1", "HF_TOKEN": "hf_plantedplanted4", "WANDB_API_KEY": "plantedplanted5"}
    arguments = ("--animal", "owl", "--count", 20, "--model", "owl-teacher", "--no-system-prompt", "--base-url", url)
    done = run_script(NUMBERS, *arguments, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 5 and not [path for path in written if b"plantedplanted" in path.read_bytes()]
    assert (
        "plantedplanted" not in done.stdout + done.stderr and "what follows ? in --base-url is not sent" in done.stderr
    )
    done = run_script(
        NUMBERS,
        *arguments[:-3],
        "--greedy",
        "--base-url",
        url.replace("127.0.0.1", "nowhere.invalid"),
        cwd=tmp_path,
        env=env,
    )
    one_clear_line(done, "no server answers at http://***@nowhere.invalid", code=3)
    assert "plantedplanted" not in done.stderr
