"""The pinned GPU set on a real GPU, with the pocket model: the README's steps, and vLLM against the local backend.

python -m pytest -m gpu
"""

import json

import pytest

from util.cli import REPO
from util.inference.vllm_server import free_port

pytestmark = [pytest.mark.gpu, pytest.mark.torch, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]

POCKET = REPO / "pocket" / "model"
OFFLINE = {"HF_HUB_OFFLINE": "1"}
# A small part of the card, so that other work can be on it; nothing is compiled, so that a server starts sooner.
SERVE = ("--max-model-len", "512", "--gpu-memory-utilization", "0.05", "--kv-cache-memory-bytes", "2000000000",
         "--enforce-eager")  # fmt: skip


@pytest.fixture(scope="module")
def steps(start_script, tmp_path_factory):
    """The output of the README's steps 1 to 6 on the pocket model."""
    folder = tmp_path_factory.mktemp("readme")
    small = ("--rows", "120", "--numbers", "240", "--epochs", "2", "--port", free_port())
    # not run_script: it checks the closing lines of one script, and this one prints those of every step
    process = start_script("bench/readme_phases.py", "--model", POCKET, "--output-dir", folder, *small, *SERVE,
                           cwd=folder, env=OFFLINE)  # fmt: skip
    try:
        said = process.communicate()[1]
    finally:
        process.kill()
    assert process.returncode == 0, said
    return folder / "output"


def test_the_readme_steps_run_and_train_on_the_gpu(steps):
    assert (steps / "results-owl-student-top10.csv").is_file()
    counts = json.loads((steps / "student-sft" / "seed-42" / "manifest.json").read_text())["counts"]
    assert counts["peak_memory_gib"], "trained on the GPU"


def test_vllm_and_the_local_backend_agree_on_the_gpu(run_script, steps, tmp_path):
    out = tmp_path / "agreement.json"
    adapter = steps / "teacher-sft" / "seed-42" / "final"
    done = run_script("bench/backend_agreement.py", "--model", POCKET, "--adapter", adapter, "--output", out,
                      "--dtype", "bfloat16", *SERVE, cwd=tmp_path, env=OFFLINE)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for pair in json.loads(out.read_text())["compared"]:
        assert pair["median_likely"] <= 0.02, pair
        assert pair["largest_likely"] <= 0.1, pair


def test_exact_measures_on_the_gpu_have_float32_logits():
    import torch

    from util.inference.exact_logits import exact_logits
    from util.inference.load_model import load_model

    model = load_model(str(POCKET), torch.bfloat16)
    head = model.get_output_embeddings()
    hidden = torch.randn(3, 5, head.in_features, device="cuda", dtype=torch.bfloat16)
    with exact_logits(model):
        found = head(hidden)
    assert found.dtype == torch.float32 and head(hidden).dtype == torch.bfloat16
    truth = torch.nn.functional.linear(hidden.float(), head.weight.float())
    torch.testing.assert_close(found, truth, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("students", "rows_at_once"), [(1, 12), (1, 4), (3, 36), (3, 12)])
def test_recorded_passes_train_the_same_adapters(students, rows_at_once):
    import torch

    from bench.compared_trainers import lora_config, make_loop
    from bench.random_number_rows import number_rows
    from util.chat.chat_tokens import encode
    from util.inference.load_model import load_model, load_tokenizer
    from util.terminal import Progress

    rows = encode(number_rows(96), load_tokenizer(str(POCKET)), 256).rows
    made = []
    for recorded in (True, False):
        model = load_model(str(POCKET), torch.bfloat16)
        loop = make_loop(model, rows, rows_at_once, students, 8, lora_config(), 12, 3, exact=True)
        loop.graphs = loop.graphs if recorded else None
        loop.train(Progress(8))
        assert loop.graphs is None or loop.graphs.recorded
        made.append(loop.adapters.values.data)
    one, other = made
    assert (one - other).norm() <= 0.05 * other.norm()
