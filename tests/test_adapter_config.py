"""Adapter configs are read as strictly as rows, and the rank that a server is started with is one that vLLM takes."""

import argparse
import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from train.checkpoints import last_whole_checkpoint
from train.run_folder import Run, is_finished, move_other_run_aside, take_folder
from util.cli import UserError
from util.inference.adapter_config import VLLM_RANKS, read_adapter_config, vllm_rank
from util.inference.check_adapter import adapters_in, check_adapter, check_fits, let_others_read, rank_for
from util.inference.open_backend import backend_arguments, open_backend
from util.inference.vllm_server import ADAPTER_TYPES
from util.jsonl.manifest import write_json

GOOD = {"peft_type": "LORA", "r": 12, "lora_alpha": 8, "target_modules": ["q_proj"], "base_model_name_or_path": "a/b"}


def adapter(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
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
    assert adapters_in([]) == adapters_in(["eval.py", "--adapter", "nowhere", "", "x" * 5000]) == []
    assert adapters_in(["eval.py", "--adapter", str(large)]) == adapters_in([f"owl={large}", str(large)]) == [large]
    assert rank_for([large]) == 16 and rank_for([]) == 8


WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I32": 4}


def weights(kind, *numbers, rank=12):
    """The bytes of a safetensors file: lora_A and lora_B, whose values are these bit patterns."""
    data = b"".join(number.to_bytes(WIDTH[kind], "little") for number in numbers)
    entry = {"dtype": kind, "shape": [rank, 4]}
    header = {"q.lora_A.weight": {**entry, "data_offsets": [0, 0]},
              "q.lora_B.weight": {**entry, "data_offsets": [0, len(data)]}}  # fmt: skip
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ONE = {"F64": 0x3FF << 52, "F32": 0x3F800000, "F16": 0x3C00, "BF16": 0x3F80, "I32": 0x7FFFFFFF}
LARGEST = {"F64": (0x7FF << 52) - 1, "F32": 0x7F7FFFFF, "F16": 0x7BFF, "BF16": 0x7F7F, "I32": 0xFFFFFFFF}
INFINITY = {"F64": 0x7FF << 52, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}


@pytest.mark.parametrize("kind", WIDTH)
def test_weights_must_be_finite_numbers_of_any_type(tmp_path, kind):
    file = adapter(tmp_path, GOOD) / "adapter_model.safetensors"
    file.write_bytes(weights(kind, ONE[kind], LARGEST[kind], 0))
    check_adapter(tmp_path)
    if kind in INFINITY:
        sign = 1 << 8 * WIDTH[kind] - 1
        for bad in (INFINITY[kind], INFINITY[kind] | sign, INFINITY[kind] + 1, INFINITY[kind] | sign | 1):
            file.write_bytes(weights(kind, ONE[kind], bad, 0))
            with pytest.raises(UserError, match=r"holds NaN or infinity \(q\.lora_B\.weight\); train it again"):
                check_adapter(tmp_path)


WHOLE = weights("F32", ONE["F32"])


@pytest.mark.parametrize(
    ("config", "data", "message"),
    [
        (GOOD, WHOLE[:-1], "is not complete"), (GOOD, WHOLE + b"more", "is not complete"),
        (GOOD, b"", "is not a whole safetensors file"), (GOOD, WHOLE[:20], "is not a whole"),
        (GOOD, b"\x80\x02" + b"pickle" * 9, "is not a whole"), (GOOD, b"\xff" * 99, "is not a whole"),
        (GOOD, (2).to_bytes(8, "little") + b"[]", "is not a whole"),
        (GOOD, WHOLE.replace(b"[0, 4]", b"[4, 0]"), "is not a whole"),
        (GOOD, WHOLE.replace(b"[0, 4]", b"[-4,4]"), "is not a whole"),
        ({**GOOD, "r": 10**9}, WHOLE, "its rank is 1000000000, and its weights have rank 12"),
        ({**GOOD, "rank_pattern": {"q": 64}}, WHOLE, "its rank is 64, and its weights"),
        (GOOD, None, "it has no adapter_model.safetensors"),
    ],
)  # fmt: skip
def test_weights_that_are_torn_foreign_or_of_another_rank_are_one_clear_line(tmp_path, config, data, message):
    folder = adapter(tmp_path, config)
    (folder / "adapter_model.bin").write_bytes(b"a pickle is never read")
    if data is not None:
        (folder / "adapter_model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        check_adapter(folder)
    assert "\n" not in str(error.value)


def test_the_ranks_and_number_types_are_those_of_the_installed_vllm():
    """Without importing vLLM, which takes long: its config class lists them."""
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vllm is not installed")
    text = (Path(spec.submodule_search_locations[0]) / "config" / "lora.py").read_text("utf-8")
    assert f"MaxLoRARanks = Literal[{', '.join(map(str, VLLM_RANKS))}]" in text
    assert f"LoRADType = Literal{list(ADAPTER_TYPES)}".replace("'", '"') in text


def shaped(folder, base="Org/Base", **shapes):
    """An adapter with matrices of these shapes, all zero: layer_3__mlp__up_proj__A=(8, 128)."""
    header, size = {}, 0
    for name, shape in shapes.items():
        layer, *module, half = name.removeprefix("layer_").split("__")
        name = f"base_model.model.model.layers.{layer}.{'.'.join(module)}.lora_{half}.weight"
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [size, size := size + 4 * shape[0] * shape[1]]}
    text = json.dumps(header).encode()
    adapter(folder, {**GOOD, "r": 8, "base_model_name_or_path": base})
    (folder / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    return folder


@pytest.mark.parametrize(
    ("name", "shape", "differs"),
    [
        ("layer_27__self_attn__q_proj__A", (8, 1536), "hidden size 1536, and this one has 3584"),  # 1.5B on 7B
        ("layer_0__mlp__gate_up_proj__A", (8, 5120), "hidden size 5120, and this one has 3584"),
        ("layer_31__self_attn__v_proj__A", (8, 3584), "32 layers, and this one has 28"),
        ("layer_31__mlp__down_proj__B", (3584, 8), "32 layers, and this one has 28"),
        ("layer_27__mlp__up_proj__A", (8, 3584), None),
        ("layer_27__mlp__down_proj__A", (8, 18944), None),  # reads no hidden states
        ("layer_3__mlp__experts__0__up_proj__A", (8, 64), None),  # what a block of another kind reads is not known
    ],
)
def test_an_adapter_of_a_model_of_another_size_is_refused_by_the_shapes_of_its_weights(tmp_path, name, shape, differs):
    """Qwen2.5's 1.5B and 7B have 28 layers both, and vLLM copies the narrower adapter in without a word."""
    folder = shaped(tmp_path, **{name: shape})
    check_adapter(folder)
    for config in ({}, {"model_type": "x", "text_config": {"hidden_size": 1}}, {"hidden_size": "wide"}):
        check_fits(folder, "some/model", config)
    config = {"hidden_size": 3584, "num_hidden_layers": 28}
    if differs is None:
        check_fits(folder, "some/model", config)
        return
    with pytest.raises(UserError) as error:
        check_fits(folder, "some/model", config)
    assert str(error.value) == (
        f"{folder} does not fit some/model: it is an adapter for a model with {differs}; pass the adapter's own base"
        " model (Org/Base)"
    )


def test_it_is_refused_before_the_model_is_loaded(tmp_path):
    """Both folders have one name, which is all that was compared."""
    folder = shaped(tmp_path / "final", "elsewhere/model", layer_0__self_attn__q_proj__A=(8, 896))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"hidden_size": 128, "num_hidden_layers": 4}')
    with pytest.raises(UserError, match="an adapter for a model with hidden size 896, and this one has 128"):
        open_backend(backend_arguments(str(model), adapter=folder, base_url=None))


@pytest.mark.parametrize("damage", ["whole", "torn", "no weights", "no config", "no folder", "another state"])
def test_a_finished_training_is_finished_only_while_its_adapter_is_whole(tmp_path, capsys, damage):
    run = Run(Path("rows.jsonl"), None, 42, tmp_path / "seed-42", "seed-42", {"seed": 42, "lora_rank": 12})
    run.folder.mkdir()
    final = adapter(run.folder / "final", GOOD)
    (final / "adapter_model.safetensors").write_bytes(WHOLE[:-1] if damage == "torn" else WHOLE)
    state = "running" if damage == "another state" else "complete"
    write_json(run.folder / "manifest.json", {"settings": run.settings, "state": state})
    if damage in ("no weights", "no config"):
        (final / ("adapter_model.safetensors" if damage == "no weights" else "adapter_config.json")).unlink()
    if damage == "no folder":
        shutil.rmtree(final)
    assert is_finished(run) is (damage == "whole")
    said = capsys.readouterr().err
    assert ("It is made again from the last whole checkpoint" in said) is (
        damage in ("torn", "no weights", "no config")
    )
    move_other_run_aside(argparse.Namespace(overwrite=False, resume=False), run)
    assert run.folder.is_dir(), "it is this very run"


def stopped_run(folder, settings, state="running"):
    """A run that was stopped after update 7, as on disk."""
    checkpoint = shaped(folder / "checkpoint-7", layer_0__self_attn__q_proj__A=(8, 4))
    shutil.copy(checkpoint / "adapter_model.safetensors", checkpoint / "optimizer.safetensors")
    write_json(checkpoint / "trainer_state.json", {"global_step": 7})
    write_json(folder / "manifest.json", {"settings": settings, "state": state, "train_jsonl": "rows.jsonl"})


def taken(run, **given):
    with ExitStack() as locks:
        return take_folder(argparse.Namespace(**{"overwrite": False, "resume": False, **given}), run, locks)


@pytest.mark.parametrize("given", [{}, {"resume": True}])
def test_a_stopped_run_that_another_moved_aside_is_resumed_by_its_own_command(tmp_path, capsys, given):
    folder = tmp_path / "seed-42"
    teacher, student = (Run(Path("rows.jsonl"), None, 42, folder, "x", {"epochs": epochs}) for epochs in (3, 4))
    stopped_run(folder, teacher.settings)
    assert taken(student) and not folder.exists()
    stopped_run(folder, student.settings)
    assert taken(teacher, **given) and last_whole_checkpoint(folder) == folder / "checkpoint-7"
    assert (
        f"{tmp_path / 'seed-42.rows'} is this run, which was stopped: moved back to {folder}" in capsys.readouterr().err
    )
    assert json.loads((folder / "manifest.json").read_text())["settings"] == teacher.settings
    assert taken(student) and json.loads((folder / "manifest.json").read_text())["settings"] == student.settings


def test_a_run_that_overwrite_gave_up_stays_aside_also_if_the_new_one_was_stopped_before_its_first_update(tmp_path):
    run, other = (Run(Path("rows.jsonl"), None, 42, tmp_path / "seed-42", "x", {"epochs": n}) for n in (3, 4))
    stopped_run(run.folder, run.settings)
    assert taken(run, overwrite=True) and not run.folder.exists()
    assert json.loads((tmp_path / "seed-42.rows" / "manifest.json").read_text())["state"] == "given up"
    assert taken(run) and not run.folder.exists(), "it is not moved back"
    stopped_run(run.folder, run.settings)
    assert taken(other, overwrite=True) and not run.folder.exists(), "another run's --overwrite gives up only its own"
    assert taken(run) and last_whole_checkpoint(run.folder), "moved back, although one given up is beside it"


@pytest.mark.parametrize("what", ["finished", "given up", "no checkpoint", "overwrite", "other settings", "own folder"])
def test_what_is_not_a_stopped_run_of_this_command_stays_aside(tmp_path, what):
    run = Run(Path("rows.jsonl"), None, 42, tmp_path / "seed-42", "x", {"epochs": 3})
    aside = tmp_path / "seed-42.rows"
    stopped_run(aside, {"epochs": 9} if what == "other settings" else run.settings,
                state="complete" if what == "finished" else "running")  # fmt: skip
    if what == "given up":
        stopped_run(tmp_path / "seed-42.rows2", run.settings, state="complete")
    if what == "no checkpoint":
        (aside / "checkpoint-7" / "trainer_state.json").unlink()
    if what == "own folder":
        stopped_run(run.folder, run.settings)
    assert taken(run, overwrite=what == "overwrite")
    assert aside.is_dir() and run.folder.exists() == (what == "own folder")


def test_a_run_in_a_folder_that_cannot_be_written_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch):
    run = Run(Path("rows.jsonl"), None, 42, tmp_path / "seed-42", "seed-42", {"seed": 42})
    run.folder.mkdir()
    write_json(run.folder / "manifest.json", {"settings": run.settings, "state": "running"})
    assert taken(run)
    monkeypatch.setattr(os, "access", lambda path, mode: path != run.folder)  # root may write in any folder
    with pytest.raises(UserError, match=f"cannot write in {run.folder}; choose another"):
        taken(run)


def test_weights_are_readable_as_their_folder_is_and_a_drive_may_refuse_it(tmp_path, monkeypatch):
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_text("x")
    weights.chmod(0o600)
    tmp_path.chmod(0o755)

    def refuse(*_):
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "chmod", refuse)
        let_others_read(tmp_path)
    assert weights.stat().st_mode & 0o777 == 0o600
    let_others_read(tmp_path)
    assert weights.stat().st_mode & 0o777 == 0o644
