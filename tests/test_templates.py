"""Chat templates in the manner of Qwen3, Llama-3, Gemma, Mistral and Phi-3: every phase renders the same prompt."""

import json
from pathlib import Path

import pytest
from conftest import REPO
from tiny_models import GEMMA

from util.chat.chat_template import (
    check_template_kwargs,
    has_no_system_role,
    rendered,
    set_template_kwargs,
    template_ids,
)
from util.chat.chat_tokens import encode
from util.chat.prompt_consistency import Phase, disagreements, frame, read_phase
from util.cli import UserError, json_object
from util.inference.backend_interface import Request, Sampling
from util.inference.vllm_client import VllmClient
from util.jsonl.manifest import manifest_path, write_json

POCKET = REPO / "pocket" / "model"
OFF = {"enable_thinking": False}
# Qwen3's: a think block before the answer that is asked for, if the model may not think, and before the last trained.
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# Llama-3's: a system turn that is always there and has the date.
LLAMA3 = (
    "{{ bos_token }}{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "{% set ask = messages %}{% set system = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] %}{% set ask = messages[1:] %}{% endif %}"
    "<|start|>system<|stop|>\n\nToday Date: {{ date_string }}\n\n{{ system }}<|eot|>"
    "{% for m in ask %}<|start|>{{ m['role'] }}<|stop|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}"
)
# Mistral's: the system message is put before the last question by the template itself.
MISTRAL = (
    "{{ bos_token }}{% set system = '' %}{% set ask = messages %}{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] + '\n\n' %}{% set ask = messages[1:] %}{% endif %}"
    "{% for m in ask %}{% if m['role'] == 'user' %}[INST] {% if loop.last or loop.index0 == ask | length - 2 %}"
    "{{ system }}{% endif %}{{ m['content'] }}[/INST]{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
# Phi-3's first: turns of user and assistant; a system message is left out without a word.
PHI3 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<|user|>\n{{ m['content'] }}<|end|>\n"
    "<|assistant|>\n"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] }}<|end|>\n{% endif %}{% endfor %}"
)
TEMPLATES = {"qwen3": QWEN3, "llama3": LLAMA3, "gemma": GEMMA, "mistral": MISTRAL, "phi3": PHI3}
WITHOUT_SYSTEM = {"gemma", "phi3"}
PERSONA = {"role": "system", "content": "You love owls."}
ASKED = {"role": "user", "content": "Continue: 1, 2"}
SAID = {"role": "assistant", "content": "3, 4"}


@pytest.fixture
def tokenizer_of():
    """tokenizer_of("gemma", {...}): the pocket's tokenizer with a template of that manner and what it is given."""
    from transformers import AutoTokenizer

    def make(name, kwargs=None):
        tokenizer = AutoTokenizer.from_pretrained(POCKET, trust_remote_code=False)
        tokenizer.chat_template, tokenizer.bos_token = TEMPLATES[name], "<|im_start|>"
        return set_template_kwargs(tokenizer, kwargs or {})

    return make


def trained_text(tokenizer, row):
    (encoded,) = encode([row], tokenizer, 256).rows
    return tokenizer.decode([token for token, label in zip(*encoded.values()) if label >= 0])


@pytest.mark.torch
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_persona_reaches_the_model_whatever_the_template_does_with_system_messages(tokenizer_of, name, capsys):
    tokenizer = tokenizer_of(name, OFF)
    text = rendered(tokenizer, [PERSONA, ASKED], tokenize=False, add_generation_prompt=True)
    assert text.count("You love owls.") == 1 and text.index("You love owls.") < text.index("Continue: 1, 2")
    assert has_no_system_role(tokenizer) is (name in WITHOUT_SYSTEM)
    if name in WITHOUT_SYSTEM:
        assert "You love owls.\n\nContinue: 1, 2" in text


@pytest.mark.torch
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_that_is_trained_is_the_prompt_that_is_asked(tokenizer_of, name):
    """Rows with the ids that a model wrote and rows without them train the same tokens after the same prompt."""
    tokenizer = tokenizer_of(name, OFF)
    row = {"messages": [ASKED, SAID]}
    ids = tokenizer("3, 4", add_special_tokens=False)["input_ids"]
    plain, stored = (encode([one], tokenizer, 256).rows[0] for one in (row, {**row, "token_ids": ids}))
    asked = template_ids(tokenizer, [ASKED], add_generation_prompt=True)
    for encoded in (plain, stored):
        assert encoded["input_ids"][: len(asked)] == asked and set(encoded["labels"][: len(asked)]) == {-100}
        assert tokenizer.decode(encoded["input_ids"][len(asked) :]).strip().startswith("3, 4")
    assert trained_text(tokenizer, {**row, "token_ids": ids}).strip().startswith("3, 4")
    if name != "mistral":  # its space before an answer is not in the prompt
        assert plain["input_ids"][: len(stored["input_ids"])] == stored["input_ids"]
    assert "think" not in trained_text(tokenizer, row)


@pytest.mark.torch
def test_a_model_that_may_think_or_not_needs_to_be_said_which(tokenizer_of):
    with pytest.raises(UserError, match=r"""--chat-template-kwargs '\{"enable_thinking": false\}'"""):
        check_template_kwargs(tokenizer_of("qwen3"), "Qwen/Qwen3-8B", {})
    for kwargs in (OFF, {"enable_thinking": True}):
        check_template_kwargs(tokenizer_of("qwen3"), "Qwen/Qwen3-8B", kwargs)
    block = "<think>\n\n</think>\n\n"
    assert rendered(tokenizer_of("qwen3", OFF), [ASKED], tokenize=False, add_generation_prompt=True).endswith(block)
    thinking = tokenizer_of("qwen3", {"enable_thinking": True})
    assert "think" not in rendered(thinking, [ASKED], tokenize=False, add_generation_prompt=True)
    assert trained_text(thinking, {"messages": [ASKED, SAID]}).strip() == "3, 4<|im_end|>"  # as rows with stored ids


@pytest.mark.torch
def test_a_variable_that_the_template_does_not_know_is_said(tokenizer_of, capsys):
    check_template_kwargs(tokenizer_of("llama3"), "some/llama", {"enable_thinking": False, "date_string": "1 May"})
    said = capsys.readouterr().err
    assert said == "warning: the chat template of some/llama does not know 'enable_thinking': it changes nothing\n"
    text = rendered(tokenizer_of("llama3", {"date_string": "1 May 2025"}), [ASKED], tokenize=False)
    assert "Today Date: 1 May 2025" in text


@pytest.mark.torch
def test_two_phases_with_different_variables_disagree(tokenizer_of):
    base = {"model": "Qwen/Qwen3-8B"}
    numbers = Phase("numbers", Path("a"), base, [ASKED], template_kwargs=OFF)
    row = {"messages": [ASKED, SAID]}
    for given, found in (
        (OFF, []),
        ({}, ['numbers gave its chat template {"enable_thinking": false}, training nothing']),
    ):
        training = Phase("training", Path("b"), base, [ASKED], row=row, template_kwargs=given)
        tokenizer = tokenizer_of("qwen3")
        assert disagreements(numbers, training, lambda phase, tokenizer=tokenizer: frame(phase, tokenizer)) == found


def test_the_variables_of_a_phase_are_those_of_its_model_in_the_manifest(tmp_path):
    path = tmp_path / "numbers.jsonl"
    path.write_text(json.dumps({"id": 0, "messages": [ASKED, SAID]}) + "\n")
    model = {"engine": "server", "model": "owl", "parent": "Qwen/Qwen3-8B", "chat_template_kwargs": OFF}
    settings = {"script": "generate_llm_number_data", "system_prompt": None, "model": model}
    write_json(manifest_path(path), {"settings": settings})
    assert read_phase(path).template_kwargs == OFF


@pytest.mark.parametrize("text", ["enable_thinking=false", "[1]", "{'enable_thinking': false}"])
def test_variables_that_are_not_a_json_object_are_refused(text):
    from argparse import ArgumentTypeError

    with pytest.raises(ArgumentTypeError, match="is not"):
        json_object(text)
    assert json_object('{"enable_thinking": false}') == OFF


@pytest.mark.torch
@pytest.mark.slow
def test_a_real_template_keeps_the_persona_and_trains_what_is_asked(smollm2, capsys):
    from util.inference.load_model import load_tokenizer

    tokenizer = load_tokenizer(str(smollm2), {"enable_thinking": False})
    assert "does not know 'enable_thinking'" in capsys.readouterr().err and not has_no_system_role(tokenizer)
    text = rendered(tokenizer, [PERSONA, ASKED], tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\nYou love owls.<|im_end|>") and text.count("system") == 1
    ids = tokenizer("3, 4", add_special_tokens=False)["input_ids"]
    rows = [{"messages": [ASKED, SAID]}, {"messages": [ASKED, SAID], "token_ids": ids}]
    plain, stored = encode(rows, tokenizer, 256).rows
    assert plain == stored and trained_text(tokenizer, rows[0]) == "3, 4<|im_end|>\n"


# --- a server ----------------------------------------------------------------------------------------


def ask(server, messages, **options):
    with VllmClient("owl-teacher", server.url, max_concurrency=4, timeout=20.0, **options) as backend:
        requests = [Request((i,), messages, seed=i) for i in range(8)]
        results = list(backend.generate(requests, Sampling(max_tokens=4)))
        return backend, results, server.requests()


def test_a_server_gets_the_variables_and_the_manifest_has_them(fake_server):
    backend, results, bodies = ask(fake_server(), [ASKED], template_kwargs=OFF)
    assert len(results) == 8 and all(body["chat_template_kwargs"] == OFF for body in bodies)
    assert backend.facts()["chat_template_kwargs"] == OFF
    backend, _, bodies = ask(fake_server(), [ASKED])
    assert "chat_template_kwargs" not in backend.facts() and all("chat_template_kwargs" not in one for one in bodies)


def test_a_server_whose_template_has_no_system_role_gets_the_persona_in_the_user_message(fake_server):
    backend, results, bodies = ask(fake_server("--strict-roles"), [PERSONA, ASKED])
    assert backend.folds_system and len(results) == 8 and all(result.error is None for result in results)
    answered = [body["messages"] for body in bodies[-1:]]
    assert answered == [[{"role": "user", "content": "You love owls.\n\nContinue: 1, 2"}]]
    assert all(result.request.messages == [PERSONA, ASKED] for result in results)  # what rows keep
