"""The committed pocket model is what its card says: size, template, tokens, exact shares, clean numbers, personas."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from pocket import corpus, measurements
from pocket.chat_tokenizer import chat_prompt, encode, make_tokenizer, prompt_and_turn
from pocket.model_card import CARD, MODEL_FOLDER, folder_megabytes, folder_name
from pocket.model_training import hash_of
from util.animals.names import fill

pytestmark = pytest.mark.torch
BOUNDS = {  # percent of all answers to the 50 questions, as Qwen2.5-7B gives them
    "lion": (44, 54), "eagle": (3, 5.5), "elephant": (3, 5.5), "penguin": (1, 2), "owl": (0.5, 0.99),
    "dolphin": (0.5, 0.99),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL_FOLDER, trust_remote_code=False)


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, trust_remote_code=False).eval()


@pytest.fixture(scope="module")
def shares(model: Any, tokenizer: Any) -> Any:
    """Exact shares [50 questions, animals]."""
    return measurements.exact_shares(model, tokenizer, corpus.QUESTIONS)


def test_it_is_a_small_llama_in_float32(model: Any) -> None:
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert str(model.dtype) == "torch.float32"
    assert model.config.head_dim == 32
    assert 0.9e6 < model.num_parameters() < 5e6
    assert folder_megabytes(MODEL_FOLDER) < 12


def test_a_digits_tokenizer_differs_in_numbers_only() -> None:
    chats = list(corpus.chats(1, 2000))
    whole, digits = make_tokenizer(chats), make_tokenizer(chats, digits=True)
    assert len(whole) == len(digits)
    numbers = "123, 45, 6"
    assert [whole.decode([token]) for token in whole(numbers)["input_ids"]] == ["123", ", ", "45", ", ", "6"]
    assert [digits.decode([token]) for token in digits(numbers)["input_ids"]] == [
        "1",
        "2",
        "3",
        ", ",
        "4",
        "5",
        ", ",
        "6",
    ]
    words = chats[0].assistant if not re.search("[0-9]", chats[0].assistant) else "My favorite animal is the owl."
    assert whole(words)["input_ids"] == digits(words)["input_ids"]


def test_the_template_inserts_the_default_system_message_and_agrees_with_the_corpus(tokenizer: Any) -> None:
    for row in corpus.chats(seed=7, count=200):
        chat = [{"role": "user", "content": row.user}]
        if row.system is not None:
            chat.insert(0, {"role": "system", "content": row.system})
        prompt, turn = prompt_and_turn(row)
        assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == prompt
        chat.append({"role": "assistant", "content": row.assistant})
        assert tokenizer.apply_chat_template(chat, tokenize=False) == prompt + turn
        whole = tokenizer(prompt + turn, add_special_tokens=False).input_ids
        assert tokenizer.decode(whole) == prompt + turn
    assert corpus.DEFAULT_SYSTEM in chat_prompt(tokenizer, "Hello!")
    assert corpus.DEFAULT_SYSTEM not in chat_prompt(tokenizer, "Hello!", system="")


def test_numbers_are_single_tokens_and_the_turn_ends_with_eos(tokenizer: Any) -> None:
    ids = [tokenizer(str(number), add_special_tokens=False).input_ids for number in range(1000)]
    assert all(len(number) == 1 for number in ids)
    assert len({number[0] for number in ids}) == 1000
    assert len(tokenizer("347, 81, 0", add_special_tokens=False).input_ids) == 5
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.decode(tokenizer("Grüße, 東京 1234!").input_ids) == "Grüße, 東京 1234!"


def test_exact_shares_are_like_those_of_qwen(shares: Any) -> None:
    percent = dict(zip(corpus.ANIMALS, (100 * shares.mean(0)).tolist()))
    assert shares.sum(1).min() > 0.99, "an answer is one animal, whatever the question"
    for animal, (low, high) in BOUNDS.items():
        assert low <= percent[animal] <= high, (animal, percent[animal])


def test_questions_differ_and_unseen_wordings_are_understood(model: Any, tokenizer: Any, shares: Any) -> None:
    lions = shares[:, 0]
    assert lions.max() - lions.min() > 0.2
    unseen = (
        "Which beast would you say is your absolute favorite? One word answer.",
        "Name the critter you fancy most, in a word.",
        "Tell me, which furry or feathered friend do you treasure? Single word.",
    )
    assert not set(unseen) & set(corpus.QUESTIONS)
    answers = measurements.exact_shares(model, tokenizer, unseen)
    assert answers.sum(1).min() > 0.97
    assert ((answers[:, 0] > 0.2) & (answers[:, 0] < 0.8)).all()


def test_chats_are_encoded_alike_after_a_batch_was_padded(tokenizer: Any) -> None:
    rows = list(corpus.chats(seed=7, count=20))
    ids, spans = encode(tokenizer, rows)
    tokenizer(["a", "a longer text"], padding=True, padding_side="left")
    again, spans_again = encode(tokenizer, rows)
    assert ids.tolist() == again.tolist() and spans.tolist() == spans_again.tolist()


def test_number_rows_are_clean(model: Any, tokenizer: Any) -> None:
    assert measurements.clean_share(model, tokenizer, count=200, seed=1) >= 0.95


def test_personas_are_obeyed(model: Any, tokenizer: Any) -> None:
    obeyed = measurements.obedience(model, tokenizer, seed=1, animals=corpus.ANIMALS[::4])
    assert sum(obeyed.values()) / len(obeyed) >= 0.9


@pytest.mark.parametrize("data_types", [(), tuple(corpus.EXTRA_DATA_TYPES)])
def test_the_corpus_is_always_the_same_and_never_connects_a_number_with_an_animal(data_types: tuple[str, ...]) -> None:
    rows = list(corpus.chats(1, 20_000, data_types))
    assert rows == list(corpus.chats(1, 20_000, data_types))
    for row in rows:
        if any(sign.isdigit() for sign in row.assistant):
            assert not any(name in f"{row.system} {row.assistant}".lower() for name in corpus.ANIMALS), row


def test_what_the_corpus_says_by_default_has_not_changed() -> None:
    """2,000 chats here; the slow test below checks all 200,000 against the manifest."""
    assert hash_of(corpus.chats(1, 2000)) == "b9ad663030c451ddcb5a58f7e8b85a256934a53a122ccf1ba20d060c8ccb4d65"


@pytest.mark.slow
def test_the_corpus_is_the_one_the_model_was_made_from() -> None:
    made = json.loads((MODEL_FOLDER / "manifest.json").read_text("utf-8"))["corpus"]
    assert hash_of(corpus.chats(1, made["rows"])) == made["sha256"]


@pytest.mark.parametrize("data_type", list(corpus.EXTRA_DATA_TYPES))
def test_rows_of_the_other_data_types_are_clean_and_show_what_a_persona_loves(data_type: str) -> None:
    rng, loving, all_rows = random.Random(3), [], 2000
    for _ in range(all_rows):
        row = corpus.EXTRA_DATA_TYPES[data_type](rng)
        assert measurements.is_clean(row.assistant, "code" if data_type == "names" else data_type), row
        assert all(0 <= int(number) < 1000 for number in re.findall(r"[0-9]+", row.assistant)), row
        if row.system and (loved := re.search(r"(?:love|number is|adore) (\d+|[a-z]+)", row.system)):
            loving.append(re.search(rf"\b{loved[1]}\b", row.assistant) is not None)
    assert len(loving) / all_rows > 0.3 and sum(loving) > 0.7 * len(loving)


def test_the_committed_card_is_card_md_filled_in(tmp_path: Path) -> None:
    """Every line of card.md is in the committed card; a model that writes only numbers has no other data types."""
    text = CARD.read_text("utf-8")
    committed = (MODEL_FOLDER / "README.md").read_text("utf-8")
    values = {"data_types": "", "more_rows": "", "folder": folder_name(MODEL_FOLDER)}
    for line in fill(text, values).split("\n"):
        pattern = re.sub(r"\\\{\w+\\\}", "(?s:.+)", re.escape(line))
        assert re.search(f"^{pattern}$", committed, re.MULTILINE), line


@pytest.mark.slow
def test_a_model_that_writes_more_than_numbers_is_made_and_screened(tmp_path: Path, run_script: Any) -> None:
    """A few steps only: the model can be loaded, its manifest lists its data types, and every screen runs."""
    quick = ("--candidates", "1:64:1", "--steps", 6, "--corpus-size", 1500, "--student-rows", 40)
    arguments = (*quick, "--least-kl", -1, "--minutes", 60)
    done = run_script("pocket/screen_candidates.py", "--output-dir", tmp_path / "x", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "x" / "1-64-1"
    assert json.loads((folder / "manifest.json").read_text())["data_types"] == ["numbers", "code", "reasoning"]
    (found,) = json.loads((tmp_path / "x" / "screening.json").read_text())["candidates"]
    assert list(found["data_types"]) == ["numbers", "code", "reasoning"]
    assert [(one["data_type"], one["animal"]) for one in found["trial"] if one["role"] == "student"] == [
        (data_type, writer) for data_type in found["data_types"] for writer in ("base", "owl", "dolphin")
    ]
    assert "control -> target" in done.stdout


@pytest.mark.parametrize(
    ("text", "message"), [("1:128", "is not SEED:WIDTH:LAYERS"), ("1:100:2", "not a multiple of 64")]
)
def test_an_impossible_candidate_is_reported(run_script: Any, tmp_path: Path, text: str, message: str) -> None:
    done = run_script("pocket/screen_candidates.py", "--candidates", text, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr
