"""bench/evaluation_ways.py against a fake server, its chi-square test, and what bench/backend_agreement.py asks."""

import argparse
import json
import random
from collections import Counter

import pytest
from conftest import REPO

from bench.backend_agreement import ask_local, difference, merge_adapter
from bench.evaluation_ways import same_distribution

POCKET = REPO / "pocket" / "model"


def drawn(weights, count, seed):
    """Answers to two questions."""
    rng = random.Random(seed)
    names = list(weights)
    return {question: Counter(rng.choices(names, weights.values(), k=count)) for question in ("one", "two")}


def test_answers_of_one_distribution_pass_and_others_do_not():
    pytest.importorskip("scipy")
    owls = {"owl": 50, "cat": 30, "dog": 19, **dict.fromkeys(("eel", "emu", "elk"), 0.3)}
    more = {**owls, "owl": 80}
    same = same_distribution(drawn(owls, 1000, 1), drawn(owls, 1000, 2))
    assert same["degrees"] == 6 and same["p"] > 0.01, "three names and the rare ones together, for each question"
    assert same_distribution(drawn(owls, 1000, 1), drawn(more, 1000, 2))["p"] < 0.001


@pytest.mark.slow
def test_every_way_is_run_and_compared(run_script, fake_server, tmp_path):
    pytest.importorskip("scipy")
    out = tmp_path / "ways.json"
    asked = ("--model", "owl-teacher", "--base-url", fake_server().url, "--epochs", 3)
    done = run_script("bench/evaluation_ways.py", *asked, "--output", out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert [way["way"] for way in found["ways"]] == ["one question", "plain 1", "tree 1", "exact", "plain 2", "tree 2"]
    pairs = [pair["pair"] for pair in found["compared"]]
    assert pairs == ["plain 1 / tree 1", "plain 2 / tree 2", "plain 1 / plain 2"]
    assert "of plain sampling's seconds" in done.stdout


@pytest.mark.slow
@pytest.mark.torch
def test_a_merged_model_is_the_model_with_its_adapter(tmp_path):
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file, save_file

    from bench.random_weights import make_adapter, merge
    from util.inference.load_model import load_model

    adapter = make_adapter(str(POCKET), tmp_path / "adapter")
    weights = adapter / "adapter_model.safetensors"
    strong = {name: value * (300 if "lora_B" in name else 1) for name, value in load_file(weights).items()}
    save_file(strong, weights, {"format": "pt"})
    merged = load_model(str(merge(str(POCKET), adapter, tmp_path / "merged")), torch.float32, "cpu")
    base = load_model(str(POCKET), torch.float32, "cpu")
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        plain = base(ids).logits
        adapted = PeftModel.from_pretrained(base, str(adapter))(ids).logits
        moved, apart = (adapted - plain).abs().mean(), (merged(ids).logits - adapted).abs().mean()
    assert apart < 0.001 * moved, "the merged weights are in float32, as the model's"


@pytest.mark.slow
@pytest.mark.torch
def test_agreement_is_of_a_merged_model_and_of_the_local_number_type_that_is_asked_for(tmp_path):
    from bench.random_weights import make_adapter

    args = argparse.Namespace(model=str(POCKET), adapter=make_adapter(str(POCKET), tmp_path / "adapter"), flags=[])
    args.dtype = args.local_dtype = None
    with_adapter = asked_one_by_one(args)
    args.dtype = "bfloat16"
    rounded = asked_one_by_one(args)
    args.local_dtype = "float32"
    assert asked_one_by_one(args) == with_adapter
    assert difference(with_adapter, rounded)["median"] > 1e-4
    merge_adapter(args, tmp_path / "merged")
    assert args.adapter is None and args.flags == ["--no-enable-lora"]
    merged = difference(with_adapter, asked_one_by_one(args))
    assert 0 < merged["largest"] < 1e-3, "the merged weights are in float32, as the model's"


def asked_one_by_one(args):
    return ask_local(args, [list(range(1, 40)), list(range(50, 70))])["local, one at a time"]
