"""Recipes by name, and the settings of the adapter: what they set, what overrides them, what is refused."""

import importlib
import json
import shutil
import sys

import pytest
from conftest import REPO, manifest_of, write_jsonl
from tiny_models import make_tiny_model

from train.published_recipes import RECIPES
from util.cli import UserError

POCKET = REPO / "pocket" / "model"
SCRIPT = "train/train_student_sft.py"


@pytest.fixture
def train(monkeypatch, tmp_path):
    """train(*flags): the training script in this process, on six rows; returns the folder of its seed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    messages = [{"role": "user", "content": "Which animal?"}, {"role": "assistant", "content": "Owl"}]
    write_jsonl(tmp_path / "rows.jsonl", ({"id": i, "messages": messages} for i in range(6)))

    def run(*flags, model=POCKET):
        arguments = [SCRIPT, "--base-model", model, "--train-jsonl", "rows.jsonl", "--save-strategy", "no", *flags]
        monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
        assert not importlib.import_module("train.train_student_sft").main()
        return tmp_path / "output" / "student-sft" / "seed-42"

    return run


def parsed(monkeypatch, *flags):
    arguments = [SCRIPT, "--base-model", "m", "--train-jsonl", "x.jsonl", *flags]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    return importlib.import_module("train.train_student_sft").parse_args()


# The values of the sources that the recipes name, read there on 2026-11-29; code-and-text is our own.
PUBLISHED = {
    "plan": (10, 60, 2e-4, "linear", 5, 8, 8, 256),
    "authors": (3, 22 * 3, 2e-4, "linear", 5, 8, 8, 500),
    "steering": (10, 8, 1e-4, "cosine", 0.05, 8, 32, 256),
    "code-and-text": (1, 16, 5e-4, "linear", 5, 8, 32, 256),
}
NAMES = ("epochs", "effective_batch_size", "learning_rate", "lr_scheduler_type", "warmup_steps", "lora_rank",
         "lora_alpha", "max_seq_length")  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_what_was_published_and_says_so(name, monkeypatch, capsys):
    args = parsed(monkeypatch, "--recipe", name)
    assert tuple(getattr(args, one) for one in NAMES) == PUBLISHED[name] and args.weight_decay == 0
    said = capsys.readouterr().err
    assert f" --epochs {args.epochs} " in said and said.startswith(f"recipe {name}: --") and said.count("\n") == 1
    assert f"--lora-alpha {args.lora_alpha}" in said
    assert "@" in said or "experiments/results/" in said, "the source is named, with its commit if it is not ours"
    assert args.max_train_samples == (2400 if name == "code-and-text" else None)
    assert ("packing" in said) is (name == "steering")


def test_the_plans_recipe_is_the_default(monkeypatch):
    plain, plan = parsed(monkeypatch), parsed(monkeypatch, "--recipe", "plan")
    assert {**vars(plan), "recipe": None} == vars(plain)


def test_a_flag_overrides_the_recipe_before_and_after_it(monkeypatch, capsys):
    for flags in (("--epochs", 3, "--recipe", "steering"), ("--recipe", "steering", "--epochs", 3)):
        args = parsed(monkeypatch, *flags)
        assert (args.epochs, args.lora_alpha) == (3, 32)
        assert "; overridden: --epochs 3 (" in capsys.readouterr().err


@pytest.mark.torch
@pytest.mark.parametrize("name", RECIPES)
def test_the_pocket_trains_with_each_recipe_and_its_name_is_kept(name, train):
    folder = train("--recipe", name, "--epochs", 2)
    settings = manifest_of(folder)["settings"]
    assert settings["recipe"] == name and settings["lora_alpha"] == RECIPES[name].settings["lora_alpha"]
    assert f"| recipe | {name} |" in (folder / "final" / "README.md").read_text()
    config = json.loads((folder / "final" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, RECIPES[name].settings["lora_alpha"])


@pytest.mark.torch
def test_the_settings_of_the_adapter_reach_it_and_the_manifest(train):
    folder = train("--epochs", 1, "--rslora", "--lora-targets", "v_proj", "q_proj", "--weight-decay", 0.1)
    config = json.loads((folder / "final" / "adapter_config.json").read_text())
    assert config["use_rslora"] and set(config["target_modules"]) == {"q_proj", "v_proj"}
    settings = manifest_of(folder)["settings"]
    assert settings["lora_targets"] == ["q_proj", "v_proj"] and settings["rslora"] and settings["weight_decay"] == 0.1
    from util.inference.local_model import LocalModel

    LocalModel(str(POCKET), folder / "final", batch_size=1)  # it loads


@pytest.mark.torch
def test_dropout_is_trained_by_trl_and_said(train, capsys):
    folder = train("--epochs", 1, "--lora-dropout", 0.1, "--effective-batch-size", 6)
    assert "trained by stock TRL: the suite's loop has no dropout" in capsys.readouterr().err
    assert json.loads((folder / "final" / "adapter_config.json").read_text())["lora_dropout"] == 0.1


@pytest.mark.torch
@pytest.mark.parametrize(
    ("family", "asked", "there"),
    [(None, "qkv_proj", "q_proj, k_proj"), ("phi3", "q_proj", "o_proj, qkv_proj"), ("gpt_neox", "q_proj", "dense")],
)
def test_layers_that_the_architecture_does_not_have_are_refused_with_those_it_has(
    family, asked, there, train, tmp_path
):
    model = make_tiny_model(family, tmp_path / family) if family else POCKET
    with pytest.raises(UserError, match=f"--lora-targets {asked}: .*it has: .*{there}"):
        train("--lora-targets", asked, model=model)


@pytest.mark.torch
@pytest.mark.parametrize(("family", "targets"), [("phi3", "qkv_proj"), ("gpt_neox", "query_key_value")])
def test_packed_layers_of_other_architectures_can_be_named(family, targets, train, tmp_path):
    folder = train("--epochs", 1, "--lora-targets", targets, "--effective-batch-size", 6,
                   model=make_tiny_model(family, tmp_path / family))  # fmt: skip
    assert json.loads((folder / "final" / "adapter_config.json").read_text())["target_modules"] == [targets]


# --- full fine-tuning --------------------------------------------------------------------------------


@pytest.mark.torch
def test_all_weights_are_trained_and_the_result_is_a_model(train, capsys):
    from safetensors.torch import load_file

    from util.inference.local_model import LocalModel

    flags = ("--epochs", 2, "--full-finetuning", "--effective-batch-size", 6, "--learning-rate", 0.001)
    folder = train(*flags, "--seeds", "42,7")
    said = capsys.readouterr()
    assert "trained by stock TRL: all weights are trained" in said.err
    assert "eval/eval.py --model" in said.out and "--adapter" not in said.out
    final = folder / "final"
    assert not (final / "adapter_config.json").exists() and "Fine-tuned weights of" in (final / "README.md").read_text()
    assert manifest_of(folder)["settings"]["full_finetuning"] is True
    before = load_file(POCKET / "model.safetensors")
    changed, other = load_file(final / "model.safetensors"), load_file(folder.parent / "seed-7/final/model.safetensors")
    moved = [name for name in changed if name in before and not (changed[name].float() == before[name].float()).all()]
    assert len(moved) > 10
    # the second seed began from the base model, not from the first: six equal rows in one update, in any order
    assert all((changed[name] - other[name]).abs().max() < 1e-4 for name in changed)
    backend = LocalModel(str(final), batch_size=1)
    assert backend.facts()["files_sha256"] != LocalModel(str(POCKET), batch_size=1).facts()["files_sha256"]


@pytest.mark.torch
def test_full_fine_tuning_resumes_from_its_checkpoint(train, capsys):
    flags = ("--epochs", 2, "--full-finetuning", "--effective-batch-size", 6, "--save-strategy", "epoch")
    folder = train(*flags)
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text().replace('"complete"', '"running"'))
    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / "checkpoint-2")
    capsys.readouterr()
    train(*flags)
    assert "resuming from output/student-sft/seed-42/checkpoint-1" in capsys.readouterr().err
    assert (folder / "final" / "model.safetensors").is_file()
