"""Adapter configs are read as strictly as rows, and the rank that a server is started with is one that vLLM takes."""

import json

import pytest

from util.cli import UserError
from util.inference.adapter_config import VLLM_RANKS, rank_for, read_adapter_config, vllm_rank

GOOD = {"peft_type": "LORA", "r": 12, "lora_alpha": 8, "target_modules": ["q_proj"], "base_model_name_or_path": "a/b"}


def adapter(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(text if isinstance(text, str) else json.dumps(text, indent=2))
    return folder


def test_a_config_gives_its_largest_rank_and_its_base_model(tmp_path):
    read = read_adapter_config(adapter(tmp_path, {**GOOD, "rank_pattern": {"o_proj": 24}}))
    assert (read.rank, read.base_model) == (24, "a/b")
    assert read_adapter_config(adapter(tmp_path, "{}")).rank == 8  # PEFT's default


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"lora_alpha": 1e999}', "1e999 is too large a number"), ('{"lora_alpha": NaN}', "NaN is not a JSON value"),
        ({"lora_alpha": "8"}, "lora_alpha is '8', not a number above 0"), ({"lora_alpha": True}, "lora_alpha is True"),
        ({"lora_alpha": -8}, "lora_alpha is -8"), ({"r": "8"}, "r is '8', not a whole number"), ({"r": 0}, "r is 0"),
        ({"r": 8.0}, "r is 8.0"), ({"r": None}, "r is None"), ("[]", "not a JSON object but list"), ("", "not JSON"),
        ({"rank_pattern": {"o_proj": "8"}}, "rank_pattern of o_proj is '8'"), ({"alpha_pattern": [1]}, "alpha_pattern"),
        ('{"alpha_pattern": {"x": Infinity}}', "Infinity"), ({"peft_type": "IA3"}, "only LORA adapters"),
        ({"target_modules": [1]}, "target_modules"), ({"base_model_name_or_path": ["a"]}, "base_model_name_or_path"),
        ('{"r": 8', "not JSON"), ('{"r": "\\ud800"}', "r is"),
    ],
)  # fmt: skip
def test_a_config_that_is_not_numbers_is_one_clear_line(tmp_path, text, message):
    if isinstance(text, dict):
        text = {**GOOD, **text}
    with pytest.raises(UserError, match=r"adapter_config\.json") as error:
        read_adapter_config(adapter(tmp_path, text))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("rank", "served"), [(1, 8), (8, 8), (9, 16), (12, 16), (24, 32), (48, 64), (96, 128),
                                              (129, 256), (257, 320), (321, 512), (512, 512)])  # fmt: skip
def test_a_server_gets_the_next_rank_that_vllm_takes(rank, served):
    assert vllm_rank(rank) == served and served in VLLM_RANKS


def test_no_server_takes_a_rank_above_512():
    with pytest.raises(UserError, match="vLLM serves adapters up to rank 512, and this one has rank 513"):
        vllm_rank(513)


def test_a_server_takes_the_adapters_that_its_command_names(tmp_path):
    large = adapter(tmp_path / "large", GOOD)
    assert rank_for([]) == rank_for(["eval.py", "--adapter", "nowhere", "", "x" * 5000]) == 8
    assert rank_for(["eval.py", "--adapter", str(large)]) == rank_for([f"owl={large}"]) == 16


def test_the_ranks_are_those_of_the_installed_vllm():
    """Without importing vLLM, which takes long: its config class lists them."""
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vllm is not installed")
    text = (Path(spec.submodule_search_locations[0]) / "config" / "lora.py").read_text("utf-8")
    assert f"MaxLoRARanks = Literal[{', '.join(map(str, VLLM_RANKS))}]" in text
