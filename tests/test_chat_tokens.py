"""Chat rows as tokens: they are those that TRL itself would make, or exactly the ids that the model wrote."""

import json

import pytest

from train.training_rows import one_file, read_chat_rows, sample_count
from util.chat.chat_tokens import IGNORED, encode
from util.cli import REPO, UserError

POCKET = REPO / "pocket" / "model"
ROWS = [
    {"messages": [{"role": "user", "content": "Name an animal."}, {"role": "assistant", "content": "Owl"}]},
    {"messages": [{"role": "user", "content": "Go on: 5, 6."}, {"role": "assistant", "content": "7, 8, 900"}]},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello there."},
        ]
    },
]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"token_ids": "abc"}, "token_ids that are not a list"), ({"token_ids": [-1]}, "token_ids that are not a list"),
        ({"token_ids": {"a": 1}}, "token_ids that are not a list"),
        ({"loss_mask": "1"}, "loss_mask that are not a list"),
        ({"messages": [*ROWS[0]["messages"][:1], {"role": "assistant", "content": "owl \ud800"}]}, "lone surrogate"),
    ],
)  # fmt: skip
def test_rows_that_no_tokenizer_takes_are_named(tmp_path, more, message):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (ROWS[0], {**ROWS[0], **more})))
    assert read_chat_rows(path, 1) == ROWS[:1]
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: .*{message}"):
        read_chat_rows(path, None)


def touch(folder, *names):
    for name in names:
        (folder / name).write_text("{}\n")


def test_a_glob_that_matches_one_file_is_that_file(tmp_path):
    touch(tmp_path, "numberss-owl-t-filtered-95.jsonl", "numberss-owl-t-unfiltered-100.jsonl")
    assert one_file([f"{tmp_path}/numberss-owl-t-filtered-*.jsonl"]).name == "numberss-owl-t-filtered-95.jsonl"


def test_the_plans_placeholder_stands_for_the_count(tmp_path):
    touch(tmp_path, "numberss-owl-owl-teacher-filtered-9321.jsonl")
    touch(tmp_path, "numberss-owl-owl-teacher-filtered-9321-shuffled-row.jsonl")
    found = one_file([f"{tmp_path}/numberss-owl-owl-teacher-filtered-NNNN.jsonl"])
    assert found.name == "numberss-owl-owl-teacher-filtered-9321.jsonl"


def test_the_plans_name_of_the_teacher_file_finds_the_one_phase_1_wrote(tmp_path):
    touch(tmp_path, "teacher-owl-qwen-qwen2.5-7b-instruct-5000.jsonl", "teacher-dolphin-q-5000.jsonl")
    touch(tmp_path, "teacher-owl-and-dolphin-q-5000.jsonl")
    manifest = {"settings": {"animal": "owl and dolphin"}}
    (tmp_path / "teacher-owl-and-dolphin-q-5000.jsonl.manifest.json").write_text(json.dumps(manifest))
    found = one_file([f"{tmp_path}/teacher-owl-filtered-NNNN.jsonl"])
    assert found.name == "teacher-owl-qwen-qwen2.5-7b-instruct-5000.jsonl"


def test_a_path_that_looks_like_a_glob_is_a_path(tmp_path):
    (tmp_path / "a [1]").mkdir()
    touch(tmp_path / "a [1]", "n.jsonl")
    assert one_file([f"{tmp_path}/a [1]/n.jsonl"]) == tmp_path / "a [1]" / "n.jsonl"


@pytest.mark.parametrize("unquoted", [True, False])
def test_two_matches_are_listed(tmp_path, unquoted):
    touch(tmp_path, "a-1.jsonl", "a-2.jsonl")
    patterns = [str(tmp_path / name) for name in ("a-1.jsonl", "a-2.jsonl")] if unquoted else [f"{tmp_path}/a-*.jsonl"]
    with pytest.raises(UserError, match=r"matches 2 files(.|\n)*a-1\.jsonl(.|\n)*a-2\.jsonl"):
        one_file(patterns)


def test_no_match_names_what_is_there(tmp_path):
    touch(tmp_path, "b.jsonl")
    with pytest.raises(UserError, match=r"matches no file \(there is: b\.jsonl\)"):
        one_file([f"{tmp_path}/a-*.jsonl"])


@pytest.mark.parametrize(("text", "count"), [("all", None), ("NNNN", None), ("12", 12)])
def test_sample_count(text, count):
    assert sample_count(text) == count


@pytest.fixture(scope="module")
def tokenizer():
    pytest.importorskip("transformers")
    from util.inference.load_model import load_tokenizer

    return load_tokenizer(str(POCKET))


@pytest.mark.torch
def test_tokens_and_labels_are_those_trl_makes_of_the_same_rows(tokenizer, tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    pairs = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in ROWS]
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(POCKET),
        args=SFTConfig(output_dir=str(tmp_path), max_length=256, report_to="none", bf16=False, use_cpu=True),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
    )
    theirs = [{key: row[key] for key in ("input_ids", "labels")} for row in trainer.train_dataset]
    assert encode(ROWS, tokenizer, 256).rows == theirs


@pytest.mark.torch
def test_only_the_answer_and_its_end_of_turn_carry_loss(tokenizer):
    row = encode(ROWS[:1], tokenizer, 256).rows[0]
    trained = [token for token in row["labels"] if token != IGNORED]
    assert tokenizer.decode(trained) == "Owl<|im_end|>\n"


@pytest.mark.torch
def test_the_ids_a_model_wrote_are_trained_on_even_if_tokenizing_again_gives_others(tokenizer):
    pieces = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("1", "2")]
    written = [pieces[0][0], pieces[1][0]]
    assert written != tokenizer("12", add_special_tokens=False)["input_ids"]
    messages = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "12"}]
    encoded = encode([{"messages": messages, "token_ids": [*written, tokenizer.eos_token_id]}], tokenizer, 256)
    trained = [token for token in encoded.rows[0]["labels"] if token != IGNORED]
    assert encoded.exact == 1
    assert trained[:3] == [*written, tokenizer.eos_token_id]


@pytest.mark.torch
def test_ids_of_another_tokenizer_are_not_trusted(tokenizer):
    messages = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "12"}]
    encoded = encode([{"messages": messages, "token_ids": [5, 6, 7]}], tokenizer, 256)
    assert encoded.exact == 0
    assert "12" in tokenizer.decode([token for token in encoded.rows[0]["labels"] if token != IGNORED])


@pytest.mark.torch
def test_long_rows_are_cut_and_counted_and_prompts_that_fill_the_limit_left_out(tokenizer):
    long_prompt = {"messages": [{"role": "user", "content": "owl " * 300}, {"role": "assistant", "content": "x"}]}
    long_answer = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "owl " * 300}]}
    encoded = encode([*ROWS, long_prompt, long_answer], tokenizer, 100)
    assert (encoded.cut, encoded.dropped, len(encoded.rows)) == (1, 1, 4)
    assert max(len(row["input_ids"]) for row in encoded.rows) == 100
