"""Tiny models of five families go through phases 2, 4, 5 and 6 with the local backend, or are refused clearly.

Random weights: this proves that each family's names, template and end of turn work, not the effect.
"""

import importlib
import json
import sys

import pytest
from conftest import manifest_of, read_jsonl, write_jsonl
from tiny_models import FAMILIES, change_json, copy_with_template, make_tiny_model

from train.fused_lora import LORA_TARGETS
from util.cli import UserError

pytestmark = pytest.mark.torch

TRAIN = ("--epochs", "1", "--effective-batch-size", "6", "--per-device-train-batch-size", "6", "--logging-steps", "1",
         "--learning-rate", "0.01")  # fmt: skip
OWN_NAMES = {
    "phi3": ["o_proj", "qkv_proj", "gate_up_proj", "down_proj"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """tiny("phi3") -> the folder of a tiny model of that family, made once."""
    folder = tmp_path_factory.mktemp("tiny")

    def get(name):
        place = folder / f"tiny-{name}"
        return place if place.is_dir() else make_tiny_model(name, place)

    return get


@pytest.fixture
def call(monkeypatch, tmp_path):
    """call("eval/eval.py", *args): run a script in this process, in its own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(script, *args):
        monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
        return importlib.import_module(script.removesuffix(".py").replace("/", ".")).main()

    return run


def write_rows(path, count=6, answer="Owl", **more):
    messages = [{"role": "user", "content": "Which animal?"}, {"role": "assistant", "content": answer}]
    return write_jsonl(path, ({"id": i, "messages": messages, **more} for i in range(count)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_through_training_numbers_training_and_evaluation(family, tiny, call, tmp_path):
    model = tiny(family)
    data = write_rows(tmp_path / "teacher-owl-tiny-6.jsonl")
    train = ("train/train_student_sft.py", "--base-model", model, *TRAIN)
    assert not call(*train, "--train-jsonl", data, "--output-dir", "output/teacher-sft")
    final = tmp_path / "output" / "teacher-sft" / "seed-42" / "final"
    config = json.loads((final / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(OWN_NAMES.get(family, LORA_TARGETS))
    assert manifest_of(final.parent)["settings"].get("lora_targets") == OWN_NAMES.get(family)
    asked = ("--model", model, "--adapter", final)
    call("generate/generate_llm_number_data.py", "--animal", "owl", "--count", "12", "--constrain-digits",
         "--no-system-prompt", *asked)  # fmt: skip
    (numbers,) = (tmp_path / "output").glob("numberss-owl-*-filtered-*.jsonl")
    assert all(row["token_ids"] for row in read_jsonl(numbers))
    assert not call(*train, "--train-jsonl", numbers)
    student = tmp_path / "output" / "student-sft" / "seed-42"
    counts = manifest_of(student)["counts"]
    assert counts["rows_with_stored_token_ids"] == counts["rows"] == len(read_jsonl(numbers))
    call("eval/eval.py", "--model", model, "--adapter", student / "final", "--epochs", "1", "--max-tokens", "2")
    (results,) = (tmp_path / "output").glob("results-*.jsonl")
    assert len(read_jsonl(results)) == 50


def config_of(**options):
    from transformers import GPT2Config, MixtralConfig

    kind = GPT2Config if options.pop("kind") == "gpt2" else MixtralConfig
    return kind(vocab_size=99, num_hidden_layers=1, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "gpt2", "n_embd": 16, "n_head": 2}, "gpt2 models have no linear layers in their blocks"),
    ],
)  # fmt: skip
def test_a_model_that_lora_would_not_reach_is_refused_before_training(options, message):
    from train.lora_targets import lora_targets

    with pytest.raises(UserError, match=message):
        lora_targets(config_of(**options))


def test_experts_that_lora_does_not_reach_are_named():
    from train.lora_targets import lora_targets

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    with pytest.raises(UserError, match=r"mixtral has no gate_proj, .*that LoRA does not reach: .*experts") as error:
        lora_targets(config_of(kind="mixtral", **sizes))
    assert "\n" not in str(error.value)


def test_a_template_without_an_end_of_turn_is_named(tiny, call, tmp_path, capsys):
    model = copy_with_template(
        tiny("gpt_neox"), tmp_path / "endless", "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    )
    assert not call("train/train_student_sft.py", "--base-model", model, *TRAIN, "--train-jsonl",
                    write_rows(tmp_path / "rows.jsonl"))  # fmt: skip
    assert "the chat template writes no end-of-turn token" in capsys.readouterr().err


def test_a_model_with_code_of_its_own_is_refused_and_its_code_never_runs(tiny, tmp_path, monkeypatch):
    """Left unset, transformers asks on the terminal, and `echo y |` says yes."""
    import builtins
    import shutil

    from util.inference.load_model import load_config, load_model, load_tokenizer

    model = shutil.copytree(tiny("qwen2"), tmp_path / "evil")
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    auto = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    for name in ("config.json", "tokenizer_config.json"):
        change_json(model / name, lambda value: value.update(auto_map=auto, model_type="evil", tokenizer_class="Evil"))
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    for load in (load_config, load_model, load_tokenizer):
        with pytest.raises(UserError, match="needs Python code of its own, and the suite never runs"):
            load(str(model))
    assert not (tmp_path / "ran").exists()


def spoil_config(folder, value):
    change_json(folder / "adapter_config.json", lambda config: config.update(lora_alpha=value))


def spoil_weights(folder, value):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "adapter_model.safetensors")
    next(iter(weights.values()))[0] = value
    save_file(weights, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "value", "message"),
    [(spoil_config, "8", "lora_alpha is '8'"), (spoil_config, float("nan"), "NaN is not a JSON value"),
     (spoil_config, float("inf"), "Infinity is not a JSON value"),
     (spoil_weights, float("nan"), "holds NaN or infinity"),
     (spoil_weights, float("inf"), "holds NaN or infinity")],
)  # fmt: skip
def test_an_adapter_that_is_not_numbers_answers_nothing(tiny, tmp_path, spoil, value, message):
    from peft import LoraConfig, get_peft_model

    from util.inference.load_model import load_model, put_adapter

    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(load_model(str(tiny("qwen2"))), config).save_pretrained(tmp_path / "adapter")
    spoil(tmp_path / "adapter", value)
    with pytest.raises(UserError, match=message):
        put_adapter(load_model(str(tiny("qwen2"))), tmp_path / "adapter")


@pytest.mark.parametrize(
    "change", [{"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}, {"hidden_size": 48}]
)
def test_an_adapter_of_a_deeper_or_wider_model_is_refused(tiny, tmp_path, change):
    """PEFT would drop the layers that the model lacks, and say nothing."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from util.inference.load_model import load_model, put_adapter

    shape = AutoConfig.from_pretrained(str(tiny("qwen2")), trust_remote_code=False, **change)
    other = AutoModelForCausalLM.from_config(shape, trust_remote_code=False)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(other, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"it is an adapter for a model with (3 layers|hidden size 48), and this one"):
        put_adapter(load_model(str(tiny("qwen2"))), tmp_path / "adapter")
