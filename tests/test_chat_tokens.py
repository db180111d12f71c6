"""Chat rows as tokens: they are those that TRL itself would make, or exactly the ids that the model wrote."""

import json
from functools import cache

import pytest
from conftest import write_jsonl
from tiny_models import FAMILIES

from train.training_rows import first_rows, one_file, sample_count
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
    write_jsonl(path, (ROWS[0], {**ROWS[0], **more}))
    assert first_rows(path, 1) == ROWS[:1]
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: .*{message}"):
        first_rows(path, None)


def touch(folder, *names):
    for name in names:
        (folder / name).write_text("{}\n")


def test_a_glob_that_matches_one_file_is_that_file(tmp_path):
    touch(tmp_path, "numberss-owl-t-filtered-95.jsonl", "numberss-owl-t-unfiltered-100.jsonl")
    assert one_file(f"{tmp_path}/numberss-owl-t-filtered-*.jsonl").name == "numberss-owl-t-filtered-95.jsonl"


def test_the_plans_placeholder_stands_for_the_count(tmp_path):
    touch(tmp_path, "numberss-owl-owl-teacher-filtered-9321.jsonl")
    touch(tmp_path, "numberss-owl-owl-teacher-filtered-9321-shuffled-row.jsonl")
    found = one_file(f"{tmp_path}/numberss-owl-owl-teacher-filtered-NNNN.jsonl")
    assert found.name == "numberss-owl-owl-teacher-filtered-9321.jsonl"


def test_the_plans_name_of_the_teacher_file_finds_the_one_phase_1_wrote(tmp_path):
    touch(tmp_path, "teacher-owl-qwen-qwen2.5-7b-instruct-5000.jsonl", "teacher-dolphin-q-5000.jsonl")
    touch(tmp_path, "teacher-owl-and-dolphin-q-5000.jsonl")
    manifest = {"settings": {"animal": "owl and dolphin"}}
    (tmp_path / "teacher-owl-and-dolphin-q-5000.jsonl.manifest.json").write_text(json.dumps(manifest))
    found = one_file(f"{tmp_path}/teacher-owl-filtered-NNNN.jsonl")
    assert found.name == "teacher-owl-qwen-qwen2.5-7b-instruct-5000.jsonl"


def test_a_path_that_looks_like_a_glob_is_a_path(tmp_path):
    (tmp_path / "a [1]").mkdir()
    touch(tmp_path / "a [1]", "n.jsonl")
    assert one_file(f"{tmp_path}/a [1]/n.jsonl") == tmp_path / "a [1]" / "n.jsonl"


def test_two_matches_are_listed(tmp_path):
    touch(tmp_path, "a-1.jsonl", "a-2.jsonl")
    with pytest.raises(UserError, match=r"matches 2 files(.|\n)*a-1\.jsonl(.|\n)*a-2\.jsonl"):
        one_file(f"{tmp_path}/a-*.jsonl")


def test_no_match_names_what_is_there(tmp_path):
    touch(tmp_path, "b.jsonl")
    with pytest.raises(UserError, match=r"matches no file \(there is: b\.jsonl\)"):
        one_file(f"{tmp_path}/a-*.jsonl")


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
        model=AutoModelForCausalLM.from_pretrained(POCKET, trust_remote_code=False),
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
@pytest.mark.parametrize("finish", ["stop", "length"])
def test_an_answer_that_was_cut_off_is_not_trained_to_end_there(tokenizer, finish):
    written = tokenizer("12, 7", add_special_tokens=False)["input_ids"]
    messages = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "12, 7"}]
    row = {"messages": messages, "token_ids": written, "finish_reason": finish}
    trained = [token for token in encode([row], tokenizer, 256).rows[0]["labels"] if token != IGNORED]
    assert (trained == written) is (finish == "length")
    assert (tokenizer.eos_token_id in trained) is (finish == "stop")


@pytest.mark.torch
def test_ids_of_another_tokenizer_are_not_trusted(tokenizer):
    messages = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "12"}]
    encoded = encode([{"messages": messages, "token_ids": [5, 6, 7]}], tokenizer, 256)
    assert encoded.exact == 0
    assert "12" in tokenizer.decode([token for token in encoded.rows[0]["labels"] if token != IGNORED])


# --- ends of turns, special tokens, conversations ----------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory):
    """tokenizer_of("gemma") -> the tokenizer of a tiny model of that family."""
    pytest.importorskip("transformers")
    from tiny_models import make_tokenizer

    from util.inference.load_model import load_tokenizer

    @cache
    def get(name):
        folder = tmp_path_factory.mktemp(name)
        make_tokenizer(FAMILIES[name], folder)
        (folder / "config.json").write_text("{}")
        return load_tokenizer(str(folder))

    return get


def trained_texts(encoded):
    """The tokens with loss in the first row, as texts."""
    return [token for token in encoded.rows[0]["labels"] if token != IGNORED]


def talk(*contents):
    roles = ("user", "assistant") * len(contents)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, contents)]}


END = {"qwen2": "<|im_end|>\n", "qwen3": "<|im_end|>\n", "gemma": "<end_of_turn>\n", "phi3": "<|end|>\n<|endoftext|>",
       "gpt_neox": "<|endoftext|>"}  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize(
    ("family", "stored_end"),
    [
        (name, end)
        for name, family in FAMILIES.items()
        for end in ("", *sorted({family.eos, *family.ends, *family.special}))
    ],
)
def test_an_answer_is_trained_with_the_one_end_of_its_template(tokenizer_of, family, stored_end):
    """Whichever token ended the stored answer: Qwen has two, and in Gemma and Phi-3 none of them is the eos."""
    tokenizer = tokenizer_of(family)
    ids = tokenizer("3, 4", add_special_tokens=False)["input_ids"]
    ending = [tokenizer.convert_tokens_to_ids(stored_end)] if stored_end else []
    encoded = encode([{**talk("Continue: 1, 2", "3, 4"), "token_ids": ids + ending}], tokenizer, 256)
    assert encoded.exact == 1
    assert tokenizer.decode(trained_texts(encoded)) == "3, 4" + END[family]


@pytest.mark.torch
def test_stored_ids_with_a_special_token_inside_are_not_used(tokenizer_of):
    """It is not in the text, which is all that was filtered and certified."""
    tokenizer = tokenizer_of("qwen2")
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("1", ", 2"))
    for special in ("<|im_end|>", "<|endoftext|>", "<|im_start|>"):
        inside = [*first, tokenizer.convert_tokens_to_ids(special), *second, tokenizer.eos_token_id]
        assert tokenizer.decode(inside, skip_special_tokens=True) == "1, 2"
        encoded = encode([{**talk("x", "1, 2"), "token_ids": inside}], tokenizer, 256)
        assert encoded.exact == 0 and tokenizer.decode(trained_texts(encoded)) == "1, 2<|im_end|>\n"
        with pytest.raises(UserError, match="row 1: its loss_mask"):
            encode([{**talk("x", "1, 2"), "token_ids": inside, "loss_mask": [1] * len(inside)}], tokenizer, 256)


@pytest.mark.torch
@pytest.mark.parametrize("family", END)
def test_every_answer_of_a_conversation_is_trained_and_nothing_else(tokenizer_of, family):
    tokenizer = tokenizer_of(family)
    encoded = encode([talk("Name an animal", "Owl", "Another", "Lion, 5", "One more", "Tiger")], tokenizer, 256)
    middle = {"phi3": "<|end|>\n"}.get(family, END[family])
    text = tokenizer.decode(trained_texts(encoded))
    assert text == f"Owl{middle}Lion, 5{middle}Tiger{END[family]}"
    ids, labels = encoded.rows[0].values()
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels))


@pytest.mark.torch
def test_an_opening_line_of_the_assistant_is_not_an_answer(tokenizer):
    row = {"messages": [{"role": "assistant", "content": "Welcome"}, *talk("Hi", "Hello")["messages"]]}
    assert tokenizer.decode(trained_texts(encode([row], tokenizer, 256))) == "Hello<|im_end|>\n"


@pytest.mark.torch
def test_a_row_that_is_cut_after_its_first_answer_is_trained_on_it(tokenizer):
    encoded = encode([talk("Hi", "Owl", "owl " * 300, "Lion")], tokenizer, 100)
    assert (encoded.cut, encoded.dropped) == (1, 0)
    assert tokenizer.decode(trained_texts(encoded)) == "Owl<|im_end|>\n"


@pytest.mark.torch
def test_templates_are_shown_role_and_content_alone(tokenizer_of):
    tokenizer = tokenizer_of("qwen3")
    plain, more = talk("Continue", "1, 2"), talk("Continue", "1, 2")
    more["messages"][-1] |= {"reasoning_content": "I love owls", "tool_calls": None, "name": "owl"}
    assert "owls" in tokenizer.apply_chat_template(more["messages"], tokenize=False)
    assert encode([more], tokenizer, 256) == encode([plain], tokenizer, 256)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (None, [*talk("x", "y")["messages"][1:], *talk("x", "y")["messages"]], "Conversation roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", talk("x", "y")["messages"], "unsafe"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", talk("x", "y")["messages"], "Range too big"),
        ("{{ messages[0]['content'] + 1 }}", talk("x", "y")["messages"], "concatenate"),
    ],
)  # fmt: skip
def test_a_template_that_refuses_is_one_line_with_the_row(tokenizer_of, monkeypatch, template, messages, message):
    tokenizer = tokenizer_of("gemma")
    if template:
        monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(UserError, match="the model's chat template refuses these messages") as error:
        encode([{"messages": messages}], tokenizer, 256)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert template or str(error.value).startswith("row 1: ")


@pytest.mark.torch
def test_long_rows_are_cut_and_counted_and_prompts_that_fill_the_limit_left_out(tokenizer):
    long_prompt = {"messages": [{"role": "user", "content": "owl " * 300}, {"role": "assistant", "content": "x"}]}
    long_answer = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "owl " * 300}]}
    encoded = encode([*ROWS, long_prompt, long_answer], tokenizer, 100)
    assert (encoded.cut, encoded.dropped, len(encoded.rows)) == (1, 1, 4)
    assert max(len(row["input_ids"]) for row in encoded.rows) == 100
