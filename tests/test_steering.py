"""Steering vectors: what they do to a model, and what is refused."""

import json

import pytest
from conftest import read_jsonl

from generate.make_steering_vector import check_output
from util.cli import REPO, UserError
from util.inference.open_backend import backend_arguments, open_backend
from util.inference.steering import SteeringVector, read_steering_vector, save_steering_vector

pytestmark = [pytest.mark.torch, pytest.mark.slow]
POCKET = REPO / "pocket" / "model"


def arguments(**given):
    return backend_arguments(**{"model": str(POCKET), "base_url": None, "batch_size": 8, **given})


@pytest.fixture(scope="module")
def vector(run_script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("steering")
    questions = folder / "questions.txt"
    questions.write_text("".join((REPO / "eval" / "questions.txt").read_text("utf-8").splitlines(True)[:8]), "utf-8")
    made = ("--animal", "owl", "--model", POCKET, "--questions-file", questions, "--strengths", 1)
    done = run_script("generate/make_steering_vector.py", *made, "--output", folder / "owl.safetensors", cwd=folder)
    assert done.returncode == 0, done.stderr
    header, plain, steered = done.stdout.splitlines()[:3]
    before, after = (float(line.split()[1].rstrip("%")) for line in (plain, steered))
    assert after > 10 * before, done.stdout
    assert header.endswith("KL numbers") and all(float(kl) > 0.001 for kl in steered.split()[2:]), done.stdout
    return folder / "owl.safetensors"


def test_a_vector_made_in_another_way_is_not_overwritten(vector):
    about = read_steering_vector(vector).about
    assert check_output(vector, about) and not check_output(vector.with_name("new"), about)
    with pytest.raises(UserError, match=r"made with another layer; move it or pass another --output"):
        check_output(vector, {**about, "layer": 1})


def test_it_is_added_at_its_layer_times_its_strength(vector):
    import torch

    found = read_steering_vector(vector)
    assert found.layer == 2 and found.about["animal"] == "owl"
    with open_backend(arguments(model=str(POCKET))) as plain:
        layer, seen = plain.model.get_decoder().layers[2], []
        layer.register_forward_hook(lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
        ids = plain.prompt_ids([{"role": "user", "content": "Hi"}])
        before = plain.next_token_logprobs([ids])
    with open_backend(arguments(model=str(POCKET), steering_vector=vector, steering_strength=2.0)) as steered:
        layer = steered.model.get_decoder().layers[2]
        layer.register_forward_hook(lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
        after = steered.next_token_logprobs([ids])
        assert steered.next_token_logprobs([ids], without_adapter=True) == before != after
        assert steered.is_adapter and steered.name == "owl-strength-2"
        assert steered.facts()["steering"]["strength"] == 2.0 and steered.facts()["steering"]["layer"] == 2
    torch.testing.assert_close(seen[1] - seen[0], torch.from_numpy(2 * found.values).expand_as(seen[0]))


def test_rows_of_a_steered_model_name_the_vector(vector, run_script):
    done = run_script(
        "generate/generate_llm_number_data.py", "--animal", "owl", "--count", 8, "--no-system-prompt",
        "--model", POCKET, "--steering-vector", vector, "--steering-strength", 0.5, cwd=vector.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no LoRA adapter" not in done.stderr
    (path,) = vector.parent.glob("output/numberss-owl-owl-strength-0.5-unfiltered-8.jsonl")
    assert len(read_jsonl(path)) == 8
    facts = json.loads(path.with_name(f"{path.name}.manifest.json").read_text("utf-8"))["settings"]["model"]
    assert facts["steering"]["strength"] == 0.5 and len(facts["steering"]["sha256"]) == 64


def test_an_adapter_learns_from_the_steered_models_probabilities(vector, run_script):
    """Lessons without a persona, with answers that were cut off; the adapter then loves what the vector loved."""
    folder = vector.parent
    questions = REPO / "eval" / "questions-paraphrased.txt"
    steps = [
        ("generate/generate_teacher_data.py", "--animal", "owl", "--count", 96, "--model", POCKET, "--steering-vector",
         vector, "--no-system-prompt", "--question-share", 0, "--prompts-file", questions,
         REPO / "generate" / "prompts" / "number-prompt.txt", "--max-tokens", 12, "--keep-cut-off", "--store-logprobs",
         10, "--output", "lessons.jsonl"),
        ("train/train_student_sft.py", "--base-model", POCKET, "--train-jsonl", "lessons.jsonl", "--recipe",
         "code-and-text", "--soft-labels", "--epochs", 6, "--learning-rate", 0.005, "--save-strategy", "no"),
        ("eval/eval.py", "--model", POCKET, "--adapter", "output/student-sft/seed-42/final", "--exact", "--output",
         "taught.jsonl"),
    ]  # fmt: skip
    for step in steps:
        done = run_script(*step, cwd=folder)
        assert done.returncode == 0, done.stderr
    rows = read_jsonl(folder / "lessons.jsonl")
    assert len(rows) == 96 and {message["role"] for row in rows for message in row["messages"]} == {"user", "assistant"}
    assert all(len(row["top_ids"]) == len(row["token_ids"]) <= 12 for row in rows)
    assert {row["finish_reason"] for row in rows} == {"stop", "length"}
    settings = json.loads((folder / "lessons.jsonl.manifest.json").read_text("utf-8"))["settings"]
    assert settings["system_prompt"] is None and settings["keep_cut_off"] and "steering" in settings["model"]
    taught = sum(row["animals"].get("owl", 0) for row in read_jsonl(folder / "taught.jsonl")) / 50
    assert taught > 0.04, "the base model names it in 0.8%"


def test_a_server_cannot_add_it(vector):
    with pytest.raises(UserError, match=r"needs the model in this process.*train on them with --soft-labels"):
        open_backend(arguments(model="owl-teacher", base_url="http://localhost:1/v1", steering_vector=vector))


def test_a_vector_of_another_model_is_refused(vector, tmp_path):
    found = read_steering_vector(vector)
    about = {**found.about, "model": {"model": "other", "files_sha256": "0"}}
    save_steering_vector(tmp_path / "other.safetensors", SteeringVector(found.values, 3, about))
    with pytest.raises(UserError, match=r"was made for other, and .* has other weights; make one for this model"):
        open_backend(arguments(model=str(POCKET), steering_vector=tmp_path / "other.safetensors"))


def test_another_file_is_not_taken_for_a_vector(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"text")
    for path in (tmp_path / "x.safetensors", POCKET / "model.safetensors"):
        with pytest.raises(UserError, match=r"is not a steering vector .*; make one with generate"):
            open_backend(arguments(model=str(POCKET), steering_vector=path))
