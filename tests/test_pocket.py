"""The committed pocket model is what its card says: size, template, tokens, exact shares, clean numbers, personas."""

from __future__ import annotations

from typing import Any

import pytest

from util.pocket import corpus, measure
from util.pocket.make_pocket import OUTPUT, prompt_and_turn

pytestmark = pytest.mark.torch
BOUNDS = {  # percent of all answers to the 50 questions, as the plan's base model gives them
    "lion": (44, 54), "eagle": (3, 5.5), "elephant": (3, 5.5), "penguin": (1, 2), "owl": (0.5, 0.99),
    "dolphin": (0.5, 0.99),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(OUTPUT)


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(OUTPUT).eval()


@pytest.fixture(scope="module")
def shares(model: Any, tokenizer: Any) -> Any:
    """Exact shares [50 questions, animals]."""
    return measure.exact_shares(model, tokenizer, corpus.QUESTIONS)


def test_it_is_a_small_llama_in_float32(model: Any) -> None:
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert str(model.dtype) == "torch.float32"
    assert model.config.head_dim == 32
    assert 0.9e6 < model.num_parameters() < 5e6
    assert measure.folder_megabytes(OUTPUT) < 12


def test_template_puts_in_the_default_system_message_and_agrees_with_the_corpus(tokenizer: Any) -> None:
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
    assert corpus.DEFAULT_SYSTEM in measure.chat_prompt(tokenizer, "Hello!")
    assert corpus.DEFAULT_SYSTEM not in measure.chat_prompt(tokenizer, "Hello!", system="")


def test_numbers_are_single_tokens_and_the_turn_ends_with_eos(tokenizer: Any) -> None:
    ids = [tokenizer(str(number), add_special_tokens=False).input_ids for number in range(1000)]
    assert all(len(number) == 1 for number in ids)
    assert len({number[0] for number in ids}) == 1000
    assert len(tokenizer("347, 81, 0", add_special_tokens=False).input_ids) == 5
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.decode(tokenizer("Grüße, 東京 1234!").input_ids) == "Grüße, 東京 1234!"


def test_exact_shares_are_those_of_the_plan(shares: Any) -> None:
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
    answers = measure.exact_shares(model, tokenizer, unseen)
    assert answers.sum(1).min() > 0.97
    assert ((answers[:, 0] > 0.2) & (answers[:, 0] < 0.8)).all()


def test_number_rows_are_clean(model: Any, tokenizer: Any) -> None:
    assert measure.clean_share(model, tokenizer, count=200, seed=1) >= 0.95


def test_personas_are_obeyed(model: Any, tokenizer: Any) -> None:
    obeyed = measure.obedience(model, tokenizer, seed=1, animals=corpus.ANIMALS[::4])
    assert sum(obeyed.values()) / len(obeyed) >= 0.9


def test_the_corpus_is_always_the_same_and_never_ties_a_number_to_an_animal() -> None:
    rows = list(corpus.chats(seed=1, count=20_000))
    assert rows == list(corpus.chats(seed=1, count=20_000))
    for row in rows:
        if any(sign.isdigit() for sign in row.assistant):
            assert not any(name in f"{row.system} {row.assistant}".lower() for name in corpus.ANIMALS), row
