"""The fast training path gives the losses and gradients of stock TRL, also when memory runs out."""

import math
import random
import shutil

import pytest

from train import fused_lora, multi_adapter_trainer, padding_free, rows_at_once
from util.chat.chat_tokens import IGNORED, encode
from util.cli import REPO, UserError

POCKET = str(REPO / "pocket" / "model")


def row(ids, prompt):
    return {"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]}


TOY = [row([1, 2, 3, 4, 5], 3), row([1, 2, 9, 8], 3)]

# --- without torch -----------------------------------------------------------------------------------


def test_the_shared_prefix_leaves_each_row_the_token_that_predicts_its_first_answer():
    assert padding_free.shared_prefix(TOY) == 2
    assert padding_free.shared_prefix([row([1, 2, 3, 4], 2), row([1, 2, 3, 5], 3)]) == 1
    assert padding_free.shared_prefix([row([1, 2, 3], 2)]) == 1
    assert padding_free.shared_prefix([row([1, 2], 1), row([3, 2], 1)]) == 0
    assert (
        padding_free.shared_prefix([row([1, 2, 3], 3), row([1, 2, 3, 4], 3)]) == 2
    )  # nothing to train on in the first


@pytest.mark.parametrize(
    ("gib", "prefix", "rows"),
    [(120, 0, 60), (60, 0, 60), (45, 0, 60), (35, 0, 30), (25, 34, 30), (9, 0, 10), (3, 0, 2), (2, 0, 1), (0, 0, 1)],
)
def test_as_many_rows_as_fit_for_qwen_7b(gib, prefix, rows):
    class Qwen7B:
        num_hidden_layers, hidden_size, intermediate_size = 28, 3584, 18944

    each = rows_at_once.bytes_per_token(Qwen7B, size=2)
    assert each == pytest.approx(4.8e6, rel=0.02)
    assert rows_at_once.rows_that_fit([130] * 1000 + [60] * 1000, prefix, 60, each, gib * 2**30) == rows


# --- against stock TRL -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    pytest.importorskip("torch")
    from util.inference.load_model import load_tokenizer

    return load_tokenizer(POCKET)


@pytest.fixture(scope="module")
def encoded(tokenizer):
    """Rows of unequal length that share a prefix."""
    rng = random.Random(0)

    def chat():
        question = f"Continue: {rng.randint(0, 999)}." + " Numbers only." * rng.randint(0, 2)
        answer = ", ".join(str(rng.randint(0, 999)) for _ in range(rng.randint(1, 10)))
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

    return encode([chat() for _ in range(12)], tokenizer, 256).rows


def base_model(family):
    import torch
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, Qwen2Config, Qwen3Config, set_seed

    from util.inference.load_model import load_model

    if family == "pocket":
        return load_model(POCKET)
    set_seed(0)
    small = {"vocab_size": 2261, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "head_dim": 16,
             "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    configs = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "gemma3": Gemma3TextConfig}
    model = AutoModelForCausalLM.from_config(configs[family](**small), trust_remote_code=False)
    for name, weight in model.named_parameters():  # biases and norms are zeros and ones at first
        if "bias" in name or "norm" in name:
            weight.data += 0.1 * torch.randn_like(weight)
    return model


def trainer_of(kind, family, encoded, tokenizer, folder, size=12, **ours):
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import set_seed
    from trl import SFTConfig

    from train.fused_lora import LORA_TARGETS

    config = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=size, gradient_accumulation_steps=12 // size, max_steps=1,
        max_grad_norm=0, bf16=False, gradient_checkpointing=False, max_length=None, save_strategy="no",
        report_to="none", disable_tqdm=True,
    )  # fmt: skip
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=LORA_TARGETS, init_lora_weights=False, task_type="CAUSAL_LM")
    model = base_model(family)
    set_seed(1)
    return kind(
        model=model, args=config, train_dataset=Dataset.from_list(encoded), processing_class=tokenizer,
        peft_config=lora, **ours,
    )  # fmt: skip


def first_update(trainer):
    """Loss and gradients of the first update."""
    from transformers import TrainerCallback

    gradients = {}

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, *_args, **_options):
            parameters = trainer.model.named_parameters()
            gradients.update({name: p.grad.clone() for name, p in parameters if p.grad is not None})

    trainer.add_callback(Keep())
    return trainer.train().training_loss, gradients


@pytest.fixture(scope="module")
def stock(encoded, tokenizer, tmp_path_factory):
    """stock(family) -> loss and gradients of TRL's own trainer, padded, 3 rows at a time."""
    from trl import SFTTrainer

    found = {}

    def get(family):
        if family not in found:
            folder = tmp_path_factory.mktemp("stock")
            found[family] = first_update(trainer_of(SFTTrainer, family, encoded, tokenizer, folder, size=3))
        return found[family]

    return get


@pytest.fixture
def ours(encoded, tokenizer, tmp_path):
    """ours(family, rows_at_once) -> our trainer; trainer.adapter_group makes its updates."""

    def make(family, rows_at_once, exact=True):
        trainer = trainer_of(multi_adapter_trainer.update_trainer_class(), family, encoded, tokenizer, tmp_path)
        multi_adapter_trainer.AdapterGroup([trainer], encoded, rows_at_once, exact)
        return trainer

    return make


def assert_same_update(found, expected):
    (loss, gradients), (expected_loss, expected_gradients) = found, expected
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        wanted = expected_gradients[name]
        assert (gradient - wanted).norm() <= 1e-5 * wanted.norm(), name


@pytest.mark.torch
@pytest.mark.parametrize("rows_at_once", [12, 4, 5, 1])
@pytest.mark.parametrize("family", ["pocket", "qwen2", "qwen3"])
def test_loss_and_gradients_equal_stock_trl(stock, ours, family, rows_at_once):
    expected = stock(family)
    trainer = ours(family, rows_at_once)
    assert trainer.adapter_group.facts["shared_prefix_tokens"] > 5
    assert_same_update(first_update(trainer), expected)


@pytest.mark.torch
def test_without_a_shared_prefix_too(stock, ours):
    trainer = ours("pocket", 12)
    trainer.adapter_group.prefix = 0
    assert_same_update(first_update(trainer), stock("pocket"))


@pytest.mark.torch
@pytest.mark.parametrize("trained", [3, 0])
def test_rows_that_a_mask_left_nothing_to_learn_are_the_update_of_stock_trl(encoded, tokenizer, tmp_path, trained):
    from trl import SFTTrainer

    masked = [*encoded[:trained], *({**r, "labels": [IGNORED] * len(r["labels"])} for r in encoded[trained:])]
    expected = first_update(trainer_of(SFTTrainer, "pocket", masked, tokenizer, tmp_path, size=3))
    trainer = trainer_of(multi_adapter_trainer.update_trainer_class(), "pocket", masked, tokenizer, tmp_path)
    multi_adapter_trainer.AdapterGroup([trainer], masked, 4, exact=True)
    found = first_update(trainer)
    assert_same_update(found, expected)
    assert (found[0] == 0) == (trained == 0)


@pytest.mark.torch
def test_another_family_takes_trls_own_layers_and_still_one_update_a_batch(stock, ours, monkeypatch):
    monkeypatch.setattr(padding_free, "FAMILIES", ())
    trainer = ours("pocket", 4)
    assert "TRL's own" in trainer.adapter_group.facts["layers"]
    assert_same_update(first_update(trainer), stock("pocket"))


@pytest.mark.torch
def test_gemma_with_layers_that_look_back_a_window_is_such_a_family(stock, ours):
    trainer = ours("gemma3", 5)
    assert "TRL's own" in trainer.adapter_group.facts["layers"]
    assert_same_update(first_update(trainer), stock("gemma3"))


@pytest.mark.torch
def test_a_lora_linear_in_bfloat16_is_peft_under_autocast():
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 96, dtype=torch.bfloat16))
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights=False)
    layer = get_peft_model(model, config).base_model.model[0]
    trained = [layer.lora_A.default.weight, layer.lora_B.default.weight]
    x = torch.randn(5, 7, 64, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        stock = layer(x)
    exact = layer.base_layer.weight.double() + 2 * trained[1].double() @ trained[0].double()
    state = fused_lora.PassState()
    linears = fused_lora.FusedLinears([[layer]], state)
    state.refresh_copies()
    fused = linears(x)
    target = x.double() @ exact.t() + layer.base_layer.bias.double()
    assert (fused - target).norm() <= 1.01 * (stock - target).norm()
    seen = torch.randn_like(fused)
    for ours, peft in zip(*(torch.autograd.grad(out, [x, *trained], seen) for out in (fused, stock))):
        assert ours.dtype == peft.dtype
        assert (ours - peft).norm() < 0.01 * peft.norm()
    with torch.no_grad():
        trained[0] += 1
    state.refresh_copies()
    assert torch.equal(linears.copies[0][0], trained[0].to(torch.bfloat16))


@pytest.mark.torch
def test_in_bfloat16_the_fast_path_is_as_near_to_float32_as_stock_is(encoded):
    """Log-probabilities of the answers; bfloat16 rounds differently at every order of the same arithmetic."""
    import torch
    from peft import LoraConfig, get_peft_model

    from train.fused_lora import LORA_TARGETS
    from util.inference.load_model import load_model

    batch = padding_free.flat_batch(encoded, padding_free.shared_prefix(encoded))
    labels = batch.pop("labels")[0, 1:]

    def answers(dtype, fused, autocast=False):
        torch.manual_seed(0)
        model = get_peft_model(load_model(POCKET, dtype), LoraConfig(r=4, target_modules=LORA_TARGETS))
        padding_free.use_flat_attention(model.get_base_model())
        if fused:
            fused_lora.fuse_linears([model], fused_lora.PassState(), compile_elementwise=False)
            fused_lora.fuse_norms(model)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(**batch, use_cache=False).logits[0, :-1].float()
        scored = logits.log_softmax(-1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
        return scored[labels != IGNORED]

    truth = answers(torch.float32, fused=False)
    stock = (answers(torch.bfloat16, fused=False, autocast=True) - truth).norm()
    assert 0 < (answers(torch.bfloat16, fused=True) - truth).norm() < 1.5 * stock


@pytest.mark.torch
def test_the_elementwise_operations_are_those_of_the_model():
    import torch
    from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

    gate, up = torch.randn(2, 7, 5, dtype=torch.float64)
    assert torch.allclose(fused_lora.swiglu(torch.cat([gate, up], -1)), torch.nn.functional.silu(gate) * up)
    heads, cos, sin = torch.randn(1, 9, 8, 6), *torch.randn(2, 1, 9, 6)
    query, key, value = fused_lora.split_and_rotate(heads, cos, sin, 4, None)
    wanted = apply_rotary_pos_emb(heads[:, :, :4], heads[:, :, 4:6], cos, sin, unsqueeze_dim=2)
    assert torch.allclose(query, wanted[0]) and torch.allclose(key, wanted[1]) and torch.equal(value, heads[:, :, 6:])


@pytest.mark.torch
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
@pytest.mark.parametrize("normed", [False, True])
def test_compiled_they_are_the_same_for_any_number_of_tokens(normed):
    import torch

    torch.manual_seed(0)
    norms = (*torch.randn(2, 6), 1e-6) if normed else None

    def alike(function, x, *more):
        x.requires_grad_()
        ours, plain = fused_lora.compiled(function)(x, *more), function(x, *more)
        ours, plain = (out if isinstance(out, tuple) else (out,) for out in (ours, plain))
        seen = [torch.randn_like(out) for out in plain]
        pairs = [*zip(ours, plain), *zip(*(torch.autograd.grad(outs, x, seen) for outs in (ours, plain)))]
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in pairs)

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for tokens in (9, 16, 5):
        alike(fused_lora.split_and_rotate, torch.randn(1, tokens, 8, 6), *torch.randn(2, 1, tokens, 6), 4, norms)
        alike(fused_lora.swiglu, torch.randn(1, tokens, 10))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.torch
def test_trl_still_has_the_name_that_we_replace():
    """`score_loss_tokens_only` would silently do nothing if TRL renamed this."""
    from trl.trainer import utils

    assert hasattr(utils, "_use_triton")


# --- batches and attention ---------------------------------------------------------------------------


@pytest.mark.torch
def test_rows_lie_end_to_end_behind_one_prefix():
    batch = padding_free.flat_batch(TOY, 2)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 9, 8]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, IGNORED, 4, 5, IGNORED, 8]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 2, 5, 7]
    assert batch["cu_seq_lens_k"].tolist() == [0, 2, 7, 11]
    assert "adapters" not in batch


@pytest.mark.torch
def test_each_adapter_has_a_prefix_of_its_own():
    batch = padding_free.flat_batch([TOY[0], TOY[1], TOY[1]], 2, [0, 0, 1])
    assert batch["input_ids"].tolist() == [[1, 2, 1, 2, 3, 4, 5, 9, 8, 9, 8]]
    assert batch["adapters"].tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1]
    assert batch["cu_seq_lens_q"].tolist() == [0, 2, 4, 7, 9, 11]
    assert batch["cu_seq_lens_k"].tolist() == [0, 2, 4, 9, 13, 17]


@pytest.mark.torch
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("adapters", [None, [0, 0, 1], [0, 1, 1]])
def test_every_token_sees_its_own_row_up_to_itself(adapters, prefix, window):
    """Compared with attention written out for each row by itself."""
    import torch

    torch.manual_seed(0)
    rows = [*TOY, TOY[0]]
    batch = padding_free.flat_batch(rows, prefix, adapters)
    tokens = batch["input_ids"].shape[1]
    query, key, value = (torch.randn(1, heads, tokens, 8, dtype=torch.float64) for heads in (4, 2, 2))
    lengths = {name: batch[name] for name in batch if name not in ("input_ids", "labels", "position_ids", "adapters")}
    out, _ = padding_free.flat_attention(
        None,
        query,
        key,
        value,
        None,
        kernel=padding_free.padded_attention,
        scaling=0.5,
        sliding_window=window,
        **lengths,
    )
    start = prefix * (2 if adapters else 1)
    for adapter, item in zip(adapters or [0, 0, 0], rows):
        own = range(start, start + len(item["input_ids"]) - prefix)
        places = [*range(adapter * prefix, (adapter + 1) * prefix), *own]
        start = own.stop
        for head in range(4):
            k, v = key[0, head // 2, places], value[0, head // 2, places]
            for at, place in enumerate(places):
                first = max(0, at + 1 - window) if window else 0
                weights = (0.5 * k[first : at + 1] @ query[0, head, place]).softmax(0)
                assert torch.allclose(out[0, place, head], weights @ v[first : at + 1])


@pytest.mark.torch
def test_torchs_kernel_gets_enable_gqa_where_it_has_that_argument():
    def torch_2_11(*_tensors, scale, window_size):
        return {"scale": scale, "window_size": window_size}

    def torch_2_13(*_tensors, scale, window_size, enable_gqa=False):
        return {"scale": scale, "window_size": window_size, "enable_gqa": enable_gqa}

    asked = (None, None, None, None, None, 7, 9, 0.5, (-1, 0))  # tensors, longest query and key, scale, window
    expected = {"scale": 0.5, "window_size": (-1, 0)}
    assert padding_free.varlen_attention(torch_2_11, *asked) == expected
    assert padding_free.varlen_attention(torch_2_13, *asked) == {**expected, "enable_gqa": True}


# --- memory ------------------------------------------------------------------------------------------


def running_out_above(trainer, limit, even_with_recompute=False):
    """Let the trainer run out of GPU memory in the last part of any split with more rows than `limit`."""
    import torch

    collate, seen = trainer.adapter_group.collate, []

    def scarce(rows, adapters):
        seen.append(len(rows))
        if len(rows) > limit and sum(seen) % 12 == 0 and (even_with_recompute or not trainer.adapter_group.recompute):
            seen.clear()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return collate(rows, adapters)

    trainer.adapter_group.collate = scarce


@pytest.mark.torch
def test_out_of_memory_halves_the_rows_at_once_and_makes_the_same_update(stock, ours, capsys):
    trainer = ours("pocket", 6, exact=False)
    trainer.adapter_group.rows_at_once = 6
    running_out_above(trainer, limit=3)
    assert_same_update(first_update(trainer), stock("pocket"))
    assert trainer.adapter_group.rows_at_once == 3
    assert "out of GPU memory with 6 rows at once: continuing with 3" in capsys.readouterr().err


@pytest.mark.torch
def test_recompute_comes_last_and_makes_the_same_update(stock, ours, capsys):
    trainer = ours("qwen2", 4, exact=False)
    trainer.adapter_group.rows_at_once = 4
    running_out_above(trainer, limit=0)
    assert_same_update(first_update(trainer), stock("qwen2"))
    report = multi_adapter_trainer.speed_report(trainer.adapter_group, seconds=1.0)
    assert (report["rows_at_once"], report["recompute"]) == (1, True)
    assert "continuing with gradient checkpointing" in capsys.readouterr().err


@pytest.mark.torch
def test_a_gpu_too_small_for_one_row_is_a_clear_line(ours):
    trainer = ours("qwen2", 2, exact=False)
    trainer.adapter_group.rows_at_once = 2
    running_out_above(trainer, limit=0, even_with_recompute=True)
    with pytest.raises(
        UserError, match=r"out of GPU memory with one row of up to \d+ tokens, even with gradient checkpointing"
    ):
        trainer.train()


@pytest.mark.torch
def test_micro_batch_exact_never_changes_the_number(ours):
    import torch

    trainer = ours("pocket", 4, exact=True)
    running_out_above(trainer, limit=3)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train()
    assert trainer.adapter_group.facts["rows_at_once_why"] == "--micro-batch exact"
    assert trainer.adapter_group.rows_at_once == 4


@pytest.mark.torch
def test_as_many_rows_at_once_as_fit_but_never_fewer_than_asked(ours, monkeypatch):
    assert ours("pocket", 4, exact=False).adapter_group.rows_at_once == 12
    monkeypatch.setattr(rows_at_once, "free_memory", lambda device: 0)
    at_once = ours("pocket", 4, exact=False).adapter_group
    assert at_once.rows_at_once == 4
    assert at_once.facts["rows_at_once_why"].startswith("4 asked, room for 1 ")


@pytest.mark.torch
def test_the_report_counts_each_token_once(ours, encoded):
    trainer = ours("pocket", 4)
    trainer.train()
    tokens = sum(len(item["input_ids"]) for item in encoded)
    saved = trainer.adapter_group.prefix * (12 - 3)
    loss_tokens = sum(label != IGNORED for item in encoded for label in item["labels"])
    layers = 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 320)
    expected = 4 * (layers * (tokens - saved) + 2261 * 128 * loss_tokens)
    assert multi_adapter_trainer.useful_flops(trainer.adapter_group) == expected
    reported = multi_adapter_trainer.speed_report(trainer.adapter_group, 2.0)["useful_tflops"]
    assert math.isclose(reported, expected / 2 / 1e12, abs_tol=1e-4)
