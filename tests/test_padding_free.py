"""The fast training path gives the losses and gradients of stock TRL, also when memory runs out."""

import math
import random
import shutil
from itertools import pairwise

import pytest

from train import base_model_layers, cuda_graphs, fused_lora, padding_free, rows_at_once
from util import model_memory
from util.chat.chat_tokens import IGNORED, encode, shared_prefix_length
from util.cli import REPO, UserError
from util.terminal import Progress

POCKET = str(REPO / "pocket" / "model")


def row(ids, prompt):
    return {"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]}


TOY = [row([1, 2, 3, 4, 5], 3), row([1, 2, 9, 8], 3)]

# --- without torch -----------------------------------------------------------------------------------


def test_the_shared_prefix_leaves_each_row_the_token_that_predicts_its_first_answer():
    assert shared_prefix_length(TOY) == 2
    assert shared_prefix_length([row([1, 2, 3, 4], 2), row([1, 2, 3, 5], 3)]) == 1
    assert shared_prefix_length([row([1, 2, 3], 2)]) == 1
    assert shared_prefix_length([row([1, 2], 1), row([3, 2], 1)]) == 0
    assert shared_prefix_length([row([1, 2, 3], 3), row([1, 2, 3, 4], 3)]) == 2  # nothing to train on in the first


@pytest.mark.parametrize(
    ("gib", "prefix", "rows"),
    [(120, 0, 60), (60, 0, 60), (45, 0, 60), (35, 0, 30), (25, 34, 30), (9, 0, 10), (3, 0, 2), (2, 0, 1), (0, 0, 1)],
)
def test_as_many_rows_as_fit_for_qwen_7b(gib, prefix, rows):
    class Qwen7B:
        num_hidden_layers, hidden_size, intermediate_size = 28, 3584, 18944

    each = model_memory.bytes_per_token(Qwen7B, size=2)
    assert each == pytest.approx(4.8e6, rel=0.02)
    assert rows_at_once.rows_that_fit([130] * 1000 + [60] * 1000, prefix, 60, each, gib * 2**30) == rows


@pytest.mark.parametrize(("room", "rows"), [(200, 180), (130, 120), (110, 60), (59, 30), (0, 1)])
def test_rows_of_several_students_are_whole_updates_or_a_part_of_one(room, rows):
    free = (room * 100 + model_memory.HEAD_BYTES) / model_memory.MEMORY_SHARE
    assert rows_at_once.rows_that_fit([10] * 1000, 0, 60, 10, free, students=3) == rows


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


def lora_config():
    from peft import LoraConfig

    targets = fused_lora.LORA_TARGETS
    return LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")


def stock_trainer(family, encoded, tokenizer, folder):
    """TRL's own, 3 rows at a time; its weights are those of seed 1."""
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=3, gradient_accumulation_steps=4, max_steps=1,
        max_grad_norm=0, bf16=False, gradient_checkpointing=False, max_length=None, save_strategy="no",
        report_to="none", disable_tqdm=True, seed=1, use_cpu=True,
    )  # fmt: skip
    model = base_model(family)
    set_seed(1)
    return SFTTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(encoded), processing_class=tokenizer,
        peft_config=lora_config(),
    )  # fmt: skip


def our_loop(family, encoded, folder, rows_at_once, exact=True):
    from train.training_loop import Recipe, Student, TrainingLoop

    student = Student(encoded, 1, Recipe(1, 12, 1e-3, lora_config()), folder)
    return TrainingLoop(base_model(family), [student], rows_at_once, exact)


def our_update(loop):
    """Loss and gradients of the first update, as `first_update` gives them."""
    (loss,) = loop.gradients({0: loop.students[0].next_rows()}).tolist()
    return loss, loop.adapters.tensors(loop.adapters.values.grad[0])


def first_update(trainer):
    """Loss and gradients of the first update."""
    from transformers import TrainerCallback

    gradients = {}

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, *_args, **_options):
            parameters = trainer.model.named_parameters()
            named = {name.replace(".default", ""): p.grad.clone() for name, p in parameters if p.grad is not None}
            gradients.update(named)

    trainer.add_callback(Keep())
    return trainer.train().training_loss, gradients


@pytest.fixture(scope="module")
def stock(encoded, tokenizer, tmp_path_factory):
    """stock(family) -> loss and gradients of TRL's own trainer, padded, 3 rows at a time."""
    found = {}

    def get(family):
        if family not in found:
            found[family] = first_update(stock_trainer(family, encoded, tokenizer, tmp_path_factory.mktemp("stock")))
        return found[family]

    return get


@pytest.fixture
def ours(encoded, tmp_path):
    """ours(family, rows_at_once) -> our training loop with one student."""
    return lambda family, rows_at_once, exact=True: our_loop(family, encoded, tmp_path, rows_at_once, exact)


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
    loop = ours(family, rows_at_once)
    assert loop.facts["shared_prefix_tokens"] > 5
    assert_same_update(our_update(loop), stock(family))


@pytest.mark.torch
def test_without_a_shared_prefix_too(stock, ours):
    loop = ours("pocket", 12)
    loop.prefix = 0
    assert_same_update(our_update(loop), stock("pocket"))


@pytest.mark.torch
@pytest.mark.parametrize("trained", [3, 0])
def test_rows_that_a_mask_left_nothing_to_learn_are_the_update_of_stock_trl(encoded, tokenizer, tmp_path, trained):
    masked = [*encoded[:trained], *({**r, "labels": [IGNORED] * len(r["labels"])} for r in encoded[trained:])]
    expected = first_update(stock_trainer("pocket", masked, tokenizer, tmp_path))
    found = our_update(our_loop("pocket", masked, tmp_path, 4))
    assert_same_update(found, expected)
    assert (found[0] == 0) == (trained == 0)


@pytest.mark.torch
def test_an_adapter_on_some_linears_is_that_of_stock_trl(encoded, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(fused_lora, "LORA_TARGETS", ["k_proj", "v_proj", "up_proj"])
    expected = first_update(stock_trainer("qwen2", encoded, tokenizer, tmp_path))
    assert_same_update(our_update(our_loop("qwen2", encoded, tmp_path, 12)), expected)


@pytest.mark.torch
def test_a_lora_linear_in_bfloat16_is_peft_under_autocast():
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 96, dtype=torch.bfloat16))
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights=False)
    layer = get_peft_model(model, config).base_model.model[0]
    trained = [layer.lora_A.default.weight, layer.lora_B.default.weight]
    x = torch.randn(35, 64, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        stock = layer(x)
    exact = layer.base_layer.weight.double() + 2 * trained[1].double() @ trained[0].double()
    pair = [weight.to(torch.bfloat16)[None] for weight in trained]
    fused = fused_lora.lora_linear()(x, layer.base_layer.weight, layer.base_layer.bias, 2.0, *pair)
    target = x.double() @ exact.t() + layer.base_layer.bias.double()
    assert (fused - target).norm() <= 1.01 * (stock - target).norm()
    seen = torch.randn_like(fused)
    for ours, peft in zip(*(torch.autograd.grad(out, [x, *trained], seen) for out in (fused, stock))):
        assert (ours - peft).norm() < 0.01 * peft.norm()


@pytest.mark.torch
def test_in_bfloat16_the_fast_path_is_as_near_to_float32_as_stock_is(encoded):
    """Last hidden states of all tokens; bfloat16 rounds differently at every order of the same arithmetic."""
    import torch

    from util.inference.load_model import load_model

    batch = padding_free.flat_batch([encoded], shared_prefix_length(encoded), [1])
    one_by_one = {"position_ids": batch.positions[None], "attention_mask": row_mask(batch)}

    def fused(dtype):
        model = load_model(POCKET, dtype)
        bare = base_model_layers.Decoder(model, [])
        with torch.no_grad():
            return bare.hidden(batch, iter([]), 1.0).float()

    def stock():
        model = load_model(POCKET)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return model.get_decoder()(batch.ids[None], use_cache=False, **one_by_one)[0][0].float()

    truth = fused(torch.float32)
    assert 0 < (fused(torch.bfloat16) - truth).norm() < 1.5 * (stock() - truth).norm()


def row_mask(batch):
    """[1, 1, tokens, tokens]: which tokens each token of a batch of one student sees."""
    import torch

    bounds, tokens = batch.bounds_q.tolist(), len(batch.ids)
    sees = torch.zeros(tokens, tokens, dtype=torch.bool)
    for begin, end in pairwise(bounds):
        sees[begin:end, begin:end] = torch.ones(end - begin, end - begin, dtype=torch.bool).tril()
        if begin:
            sees[begin:end, : batch.prefix] = True
    return sees[None, None]


@pytest.mark.torch
def test_the_elementwise_operations_are_those_of_the_model():
    import torch
    from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

    gate, up = torch.randn(2, 7, 5, dtype=torch.float64)
    assert torch.allclose(base_model_layers.swiglu(torch.cat([gate, up], -1)), torch.nn.functional.silu(gate) * up)
    heads, cos, sin = torch.randn(9, 8, 6), *torch.randn(2, 9, 6)
    query, key, value = base_model_layers.split_and_rotate(heads, cos, sin, 4, None)
    wanted = apply_rotary_pos_emb(heads[:, :4], heads[:, 4:6], cos, sin, unsqueeze_dim=1)
    assert torch.allclose(query, wanted[0]) and torch.allclose(key, wanted[1]) and torch.equal(value, heads[:, 6:])


@pytest.mark.torch
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
@pytest.mark.parametrize("normed", [False, True])
def test_compiled_they_are_the_same_for_any_number_of_tokens(normed):
    import torch

    torch.manual_seed(0)
    norms = (*torch.randn(2, 6), 1e-6) if normed else None

    def alike(function, x, *more):
        x.requires_grad_()
        ours, plain = base_model_layers.compiled(function)(x, *more), function(x, *more)
        ours, plain = (out if isinstance(out, tuple) else (out,) for out in (ours, plain))
        seen = [torch.randn_like(out) for out in plain]
        pairs = [*zip(ours, plain), *zip(*(torch.autograd.grad(outs, x, seen) for outs in (ours, plain)))]
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in pairs)

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for tokens in (9, 16, 5):
        alike(base_model_layers.split_and_rotate, torch.randn(tokens, 8, 6), *torch.randn(2, tokens, 6), 4, norms)
        alike(base_model_layers.swiglu, torch.randn(tokens, 10))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.torch
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
def test_the_compiled_loss_is_the_same_for_any_number_of_tokens():
    import torch

    torch.manual_seed(0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for tokens in (9, 16, 5):
        logits, ids, weights = torch.randn(tokens, 300), torch.randint(0, 300, (tokens, 1)), torch.rand(tokens)
        plain = base_model_layers.losses_of_logits
        both = [
            function(logits.bfloat16(), ids, torch.ones(tokens, 1), weights)
            for function in (base_model_layers.compiled(plain), plain)
        ]
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*both))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.torch
def test_the_loss_is_cross_entropy_however_it_is_cut(monkeypatch):
    import torch

    torch.manual_seed(0)
    hidden, head = torch.randn(9, 6, requires_grad=True), torch.randn(11, 6)
    targets, weights = torch.randint(0, 11, (9,)), torch.rand(9)
    expected = torch.nn.functional.cross_entropy(hidden @ head.t(), targets, reduction="none") * weights
    (slope,) = torch.autograd.grad(expected.sum(), hidden)
    for tile in (1 << 20, 44, 1):
        monkeypatch.setattr(base_model_layers, "TILE", tile)
        losses = base_model_layers.token_losses()(hidden, head, targets[:, None], torch.ones(9, 1), weights)
        assert torch.allclose(losses, expected, atol=1e-6)
        assert torch.allclose(torch.autograd.grad(losses.sum(), hidden)[0], slope, atol=1e-6)


# --- batches and attention ---------------------------------------------------------------------------


@pytest.mark.torch
def test_rows_lie_end_to_end_behind_one_prefix():
    batch = padding_free.flat_batch([TOY], 2, [3])
    assert batch.ids.tolist() == [1, 2, 3, 4, 5, 9, 8]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 2, 3]
    assert (batch.places.tolist(), batch.known_ids.tolist()) == ([2, 3, 5], [[4], [5], [8]])
    assert batch.weights.tolist() == pytest.approx([1 / 3] * 3)
    assert batch.bounds_q.tolist() == [0, 2, 5, 7]
    assert batch.bounds_k.tolist() == [0, 2, 7, 11]


@pytest.mark.torch
def test_every_rows_keys_begin_with_a_copy_of_the_prefix():
    rows = [{"input_ids": ids, "labels": [padding_free.IGNORED] * 2 + ids[2:]} for ids in ([1, 2, 3, 4], [1, 2, 5])]
    batch = padding_free.flat_batch([rows], 2, [1])
    assert batch.key_sources.tolist() == [0, 1, 2, 3, 8, 9, 4, 5, 10]  # the example in flat_batch's docstring


@pytest.mark.torch
def test_each_student_has_a_prefix_of_its_own_and_as_many_tokens():
    batch = padding_free.flat_batch([TOY, TOY[1:]], 2, [3, 1])
    assert batch.ids.tolist() == [1, 2, 3, 4, 5, 9, 8, 1, 2, 9, 8, 0, 0, 0]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 2, 3, 0, 1, 2, 3, 0, 1, 2]
    assert batch.places.tolist() == [2, 3, 5, 9]
    assert batch.student_of.tolist() == [0, 0, 0, 1]
    assert batch.weights.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])
    assert batch.bounds_q.tolist() == [0, 2, 5, 7, 9, 11, 14]
    assert batch.bounds_k.tolist() == [0, 2, 7, 11, 13, 17, 20]


@pytest.mark.torch
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("rows_of", [[[0, 1, 0]], [[0, 1], [0]], [[1], [1, 0]]])
def test_every_token_sees_its_own_row_up_to_itself(rows_of, prefix, window):
    """Compared with attention written out for each row by itself."""
    import torch

    torch.manual_seed(0)
    batch = padding_free.flat_batch([[TOY[i] for i in rows] for rows in rows_of], prefix, [1] * len(rows_of))
    width = len(batch.ids) // len(rows_of)
    query, key, value = (torch.randn(len(batch.ids), heads, 8, dtype=torch.float64) for heads in (4, 2, 2))
    out = padding_free.flat_attention(query, key, value, batch, padding_free.padded_attention, 0.5, window)
    for student, rows in enumerate(rows_of):
        start = student * width + prefix
        for item in (TOY[i] for i in rows):
            own = range(start, start + len(item["input_ids"]) - prefix)
            places = [*range(student * width, student * width + prefix), *own]
            start = own.stop
            for head in range(4):
                k, v = key[places, head // 2], value[places, head // 2]
                for at, place in enumerate(places):
                    first = max(0, at + 1 - window) if window else 0
                    weights = (0.5 * k[first : at + 1] @ query[place, head]).softmax(0)
                    assert torch.allclose(out[place, head], weights @ v[first : at + 1])


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


def running_out_above(loop, limit, even_with_recompute=False):
    """Let the loop run out of GPU memory in the last part of any split with more rows than `limit`."""
    import torch

    run_pass, seen = loop.run_pass, []

    def scarce(rows_of, loss_tokens):
        size = len(rows_of[0])
        seen.append(size)
        if size > limit and sum(seen) % 12 == 0 and (even_with_recompute or not loop.decoder.recompute):
            seen.clear()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run_pass(rows_of, loss_tokens)

    loop.run_pass = scarce


@pytest.mark.torch
def test_out_of_memory_halves_the_rows_at_once_and_makes_the_same_update(stock, ours, capsys):
    loop = ours("pocket", 6, exact=False)
    loop.rows_at_once = 6
    running_out_above(loop, limit=3)
    assert_same_update(our_update(loop), stock("pocket"))
    assert loop.rows_at_once == 3
    assert "out of GPU memory with 6 rows at once: continuing with 3" in capsys.readouterr().err


@pytest.mark.torch
def test_recompute_comes_last_and_makes_the_same_update(stock, ours, capsys):
    loop = ours("qwen2", 4, exact=False)
    loop.rows_at_once = 4
    running_out_above(loop, limit=0)
    assert_same_update(our_update(loop), stock("qwen2"))
    report = loop.speed_report(seconds=1.0)
    assert (report["rows_at_once"], report["recompute"]) == (1, True)
    assert "continuing with gradient checkpointing" in capsys.readouterr().err


@pytest.mark.torch
def test_a_gpu_too_small_for_one_row_is_a_clear_line(ours):
    loop = ours("qwen2", 2, exact=False)
    loop.rows_at_once = 2
    running_out_above(loop, limit=0, even_with_recompute=True)
    with pytest.raises(
        UserError, match=r"out of GPU memory with one row of up to \d+ tokens, even with gradient checkpointing"
    ):
        loop.train(Progress(1))


# --- CUDA graphs -------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("family", ["pocket", "qwen3"])
@pytest.mark.parametrize("rows_at_once", [12, 5])
def test_batches_that_are_filled_up_make_the_same_update(stock, ours, monkeypatch, family, rows_at_once):
    loop = ours(family, rows_at_once)
    sizes = []

    def filled_up(rows_of, loss_tokens):
        (rows,) = rows_of.values()
        batch = padding_free.flat_batch([rows], loop.prefix, [loss_tokens[0]], few_sizes=True)
        sizes.append(len(batch.ids) - sum(len(row["input_ids"]) for row in rows) + loop.prefix * (len(rows) - 1))
        return loop.forward_backward(batch)

    monkeypatch.setattr(loop, "run_pass", filled_up)
    assert_same_update(our_update(loop), stock(family))
    assert all(sizes), "some tokens are filling"


@pytest.mark.torch
def test_a_recording_serves_every_batch_of_its_sizes(ours, monkeypatch):
    """A recorded pass reads the batch that it was recorded with; here it is run again instead of replayed."""
    plain, loop = ours("pocket", 2), ours("pocket", 2)
    loop.graphs = cuda_graphs.CudaGraphs(loop.forward_backward, 10_000)
    replayed = []

    def record(graphs, sizes, batch):
        losses = loop.decoder.losses(batch, loop.adapters.pieces(batch.indices, loop.dtype), loop.scale).detach()

        class Graph:
            def replay(self):
                losses.copy_(loop.forward_backward(batch))
                replayed.append(sizes)

        graphs.recorded[sizes] = Graph(), batch, losses

    monkeypatch.setattr(cuda_graphs.CudaGraphs, "record", record)
    expected = our_update(plain)
    assert_same_update(our_update(loop), expected)
    before = len(replayed)
    assert_same_update(our_update(loop), expected)
    assert len(replayed) - before == 6, "every pass of the second time"


@pytest.mark.torch
@pytest.mark.parametrize("error", ["OutOfMemoryError", "AcceleratorError"])
def test_where_a_pass_cannot_be_recorded_the_update_is_made_without(ours, capsys, error):
    import torch

    plain, loop = ours("pocket", 4), ours("pocket", 4)

    class Scarce(cuda_graphs.CudaGraphs):
        def record(self, sizes, batch):
            raise getattr(torch, error)("CUDA error: operation not permitted when stream is capturing")

    loop.graphs = Scarce(loop.forward_backward, 10_000)
    assert_same_update(our_update(loop), our_update(plain))
    assert loop.graphs.max_tokens == 0 and loop.rows_at_once == 4
    assert capsys.readouterr().err.count("no CUDA graphs in this training (CUDA error: operation not permitted") == 1


@pytest.mark.torch
def test_out_of_memory_drops_recorded_passes_before_anything_else(ours, capsys):
    import torch

    plain, loop = ours("pocket", 12), ours("pocket", 12)
    loop.graphs = cuda_graphs.CudaGraphs(loop.forward_backward, 0, {("sizes",): ()})
    run_pass, calls = loop.run_pass, []

    def scarce(rows_of, loss_tokens):
        calls.append(len(rows_of[0]))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run_pass(rows_of, loss_tokens)

    loop.run_pass = scarce
    assert_same_update(our_update(loop), our_update(plain))
    assert calls == [12, 12] and loop.graphs is None
    assert "out of GPU memory: continuing without CUDA graphs" in capsys.readouterr().err


def test_passes_that_keep_the_gpu_busy_or_fill_its_memory_are_not_recorded():
    assert cuda_graphs.max_tokens_to_record(6_500_000_000, 4_600_000, 140 << 30) == 3846  # 7B: 28 rows of numbers
    assert cuda_graphs.max_tokens_to_record(6_500_000_000, 4_600_000, 24 << 30) == 933


@pytest.mark.torch
def test_micro_batch_exact_never_changes_the_number(ours):
    import torch

    loop = ours("pocket", 4, exact=True)
    running_out_above(loop, limit=3)
    with pytest.raises(torch.OutOfMemoryError):
        loop.train(Progress(1))
    assert loop.facts["rows_at_once_why"] == "--micro-batch exact"
    assert loop.rows_at_once == 4


@pytest.mark.torch
def test_as_many_rows_at_once_as_fit_but_never_fewer_than_asked(ours, monkeypatch):
    assert ours("pocket", 4, exact=False).rows_at_once == 12
    monkeypatch.setattr(rows_at_once, "free_memory", lambda device: 0)
    at_once = ours("pocket", 4, exact=False)
    assert at_once.rows_at_once == 4
    assert at_once.facts["rows_at_once_why"].startswith("4 asked, room for 1 ")


@pytest.mark.torch
def test_the_report_counts_each_token_once(ours, encoded):
    loop = ours("pocket", 4)
    loop.train(Progress(1))
    tokens = sum(len(item["input_ids"]) for item in encoded)
    saved = loop.prefix * (12 - 3)
    loss_tokens = sum(label != IGNORED for item in encoded for label in item["labels"])
    layers = 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 320)
    expected = 4 * (layers * (tokens - saved) + 2261 * 128 * loss_tokens)
    assert loop.useful_flops() == expected
    assert math.isclose(loop.speed_report(2.0)["useful_tflops"], expected / 2 / 1e12, abs_tol=1e-4)
