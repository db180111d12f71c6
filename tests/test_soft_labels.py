"""Soft labels: log-probabilities stored with generated rows, exact and aligned, and training on them."""

import importlib
import math
import sys

import pytest
from conftest import REPO, manifest_of, read_jsonl, write_jsonl

from generate.rows.number_text import with_answer
from util.cli import UserError
from util.inference.backend_interface import Request, Sampling

POCKET = str(REPO / "pocket" / "model")
ASKED = [{"role": "user", "content": "Continue this sequence: 5, 17, 230."}]


@pytest.mark.torch
@pytest.mark.parametrize("numbers_only", [False, True])
def test_what_is_stored_is_what_the_model_says_at_each_token(numbers_only):
    from util.inference.local_model import LocalModel

    with LocalModel(POCKET, batch_size=8) as backend:
        sampling = Sampling(24, numbers_only=numbers_only, store_logprobs=5)
        (result,) = backend.generate([Request((0, 1, 2), ASKED, seed=3)], sampling)
        for answer in result.answers:
            assert len(answer.top.ids) == len(answer.top.logprobs) == len(answer.token_ids)
            prompts = [result.prompt_ids + answer.token_ids[:place] for place in range(len(answer.token_ids))]
            exact = backend.next_token_logprobs(prompts, top=200)
            for ids, logprobs, known in zip(answer.top.ids, answer.top.logprobs, exact):
                assert logprobs == sorted(logprobs, reverse=True) and 1 <= len(ids) <= 5
                assert sum(map(math.exp, logprobs)) <= 1 + 1e-5
                if not numbers_only:  # otherwise they are of the law that was drawn from, which allows fewer tokens
                    assert logprobs == pytest.approx([known[token] for token in ids], abs=1e-4)
        plain = next(
            iter(backend.generate([Request((0, 1, 2), ASKED, seed=3)], Sampling(24, numbers_only=numbers_only)))
        )
        assert [a.token_ids for a in plain.answers] == [a.token_ids for a in result.answers]
        assert all(answer.top is None for answer in plain.answers)


def test_settings_are_those_of_older_versions_unless_log_probabilities_are_stored():
    assert "store_logprobs" not in Sampling(8).settings()
    assert Sampling(8, store_logprobs=5).settings()["store_logprobs"] == 5


def test_rows_whose_answer_changed_lose_what_was_stored_of_its_tokens():
    row = {"id": 0, "messages": [*ASKED, {"role": "assistant", "content": "1, 2"}], "token_ids": [1, 2],
           "top_ids": [[1], [2]], "top_logprobs": [[0.0], [0.0]], "finish_reason": "stop"}  # fmt: skip
    assert set(with_answer(row, "2, 1")) == {"id", "messages", "finish_reason"}


def test_a_server_is_not_asked_for_them(fake_server, run_script, tmp_path):
    done = run_script(
        "generate/generate_llm_number_data.py", "--animal", "owl", "--count", 8, "--no-system-prompt", "--model",
        "owl-teacher", "--base-url", fake_server().url, "--store-logprobs", 5, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1 and "--store-logprobs needs the model in this process" in done.stderr


# --- training ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def soft_rows(tmp_path_factory, run_script):
    """Number rows of the pocket model with the ten most probable tokens at each token, filtered."""
    folder = tmp_path_factory.mktemp("soft")
    done = run_script(
        "generate/generate_llm_number_data.py", "--animal", "control", "--count", 60, "--no-system-prompt", "--model",
        POCKET, "--store-logprobs", 10, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "output").glob("numberss-control-*-filtered-*.jsonl")
    return path


@pytest.mark.torch
def test_the_loss_is_the_divergence_with_the_rest_as_one_outcome_and_its_gradient():
    import torch

    from train.base_model_layers import token_losses
    from train.padding_free import as_tensors, known_at

    torch.manual_seed(0)
    hidden, head = torch.randn(5, 8, requires_grad=True), torch.randn(40, 8)
    soft = [([3, 7], [-0.5, -1.2]), ([], []), ([9], [-0.01]), ([0, 1, 2], [-1.0, -2.0, -3.0]), ([39, 5], [-3.0, -4.0])]
    weights = torch.rand(5)
    rows = [
        {"labels": [label], "soft_ids": [known], "soft_logprobs": [stored]}
        for label, (known, stored) in zip([3, 20, 9, 1, 39], soft)
    ]
    ids, probabilities = as_tensors([known_at(row, 0) for row in rows])
    logprobs = (hidden @ head.t()).log_softmax(-1)
    expected = []
    for place, (known, stored) in enumerate(soft):
        known, teacher = known or [20], torch.tensor(stored or [0.0]).exp()
        student = logprobs[place, known].exp()
        rest, own_rest = 1 - teacher.sum(), 1 - student.sum()
        other = rest * (rest.log() - own_rest.log()) if known != [20] else 0.0
        expected.append(((teacher * (teacher.log() - student.log())).sum() + other) * weights[place])
    expected = torch.stack(expected)
    (wanted,) = torch.autograd.grad(expected.sum(), hidden, retain_graph=True)
    losses = token_losses()(hidden, head, ids, probabilities, weights)
    (found,) = torch.autograd.grad(losses.sum(), hidden)
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert (losses[1] / weights[1]).item() == pytest.approx(-logprobs[1, 20].item(), rel=1e-5), "nothing known: as hard"


@pytest.mark.torch
def test_a_row_keeps_its_distributions_at_its_tokens_up_to_the_end_of_its_turn(soft_rows):
    from util.chat.chat_tokens import encode
    from util.inference.load_model import load_tokenizer

    rows = read_jsonl(soft_rows)[:3]
    encoded = encode(rows, load_tokenizer(POCKET), 256, soft=True)
    for row, found in zip(rows, encoded.rows):
        start = next(i for i, label in enumerate(found["labels"]) if label >= 0)
        assert len(found["soft_ids"]) == len(found["labels"]) == len(found["input_ids"])
        assert found["soft_ids"][start : start + len(row["top_ids"])] == row["top_ids"]
        assert found["soft_logprobs"][start : start + len(row["top_ids"])] == row["top_logprobs"]
        assert not any(found["soft_ids"][:start]) and found["input_ids"][start] == row["token_ids"][0]
    cut = encode(rows, load_tokenizer(POCKET), start + 2, soft=True).rows[-1]
    assert len(cut["soft_ids"]) == len(cut["labels"]) == start + 2


@pytest.mark.torch
def test_an_answer_with_a_special_token_inside_is_left_out(soft_rows):
    from train.training_rows import report_encoding
    from util.chat.chat_tokens import encode
    from util.inference.load_model import load_tokenizer

    first, *rest = read_jsonl(soft_rows)[:4]
    tokenizer = load_tokenizer(POCKET)
    for name in ("token_ids", "top_ids", "top_logprobs"):
        first[name].insert(1, {"token_ids": tokenizer.pad_token_id, "top_ids": [1], "top_logprobs": [0.0]}[name])
    found = encode([first, *rest], tokenizer, 256, soft=True)
    assert (len(found.rows), found.exact, found.not_their_text, found.dropped) == (3, 3, 1, 0)
    with pytest.raises(UserError, match="soft labels need the teacher's tokenizer"):
        report_encoding(encode([first], tokenizer, 256, soft=True), [first], 256)


def train(monkeypatch, folder, path, *flags):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    arguments = [
        "train/train_student_sft.py", "--base-model", POCKET, "--train-jsonl", path, "--epochs", 1, *flags,
        "--effective-batch-size", 20, "--per-device-train-batch-size", 20, "--save-strategy", "no",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    return importlib.import_module("train.train_student_sft").main()


@pytest.mark.torch
def test_the_base_model_has_nothing_to_learn_from_its_own_soft_labels(soft_rows, monkeypatch, tmp_path):
    """Hard labels of the same rows keep a loss of more than a nat a token: the noise of sampling."""
    losses = {}
    for name, flags in (("soft", ("--soft-labels",)), ("hard", ())):
        assert not train(monkeypatch, tmp_path, soft_rows, *flags, "--output-dir", tmp_path / name)
        manifest = manifest_of(tmp_path / name / "seed-42")
        losses[name] = manifest["counts"]["train_loss"]
        assert manifest["settings"].get("soft_labels", False) is (name == "soft")
    assert 0 <= losses["soft"] < 0.02 < 1 < losses["hard"]


@pytest.mark.torch
def test_rows_without_them_and_trainers_without_a_loss_for_them_are_refused(soft_rows, monkeypatch, tmp_path):
    path = tmp_path / "numbers-plain.jsonl"
    rows = [{key: value for key, value in row.items() if key != "top_ids"} for row in read_jsonl(soft_rows)]
    write_jsonl(path, rows)
    with pytest.raises(UserError, match="row 1: soft labels need the log-probabilities of its tokens"):
        train(monkeypatch, tmp_path, path, "--soft-labels", "--allow-uncertified")
    with pytest.raises(UserError, match="--soft-labels need the suite's loop"):
        train(monkeypatch, tmp_path, soft_rows, "--soft-labels", "--lora-dropout", 0.1)
