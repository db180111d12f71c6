"""The pinned GPU set on a real GPU, with the pocket model: the README's steps, and vLLM against the local backend.

python -m pytest -m gpu
"""

import json

import pytest

from util.cli import REPO

pytestmark = [pytest.mark.gpu, pytest.mark.torch, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]

POCKET = REPO / "pocket" / "model"
OFFLINE = {"HF_HUB_OFFLINE": "1"}
SERVE = ("--max-model-len", "512")


@pytest.fixture(scope="module")
def steps(run_script, tmp_path_factory):
    """The output of the README's steps 1 to 6 on the pocket model."""
    folder = tmp_path_factory.mktemp("readme")
    small = ("--rows", "120", "--numbers", "240", "--epochs", "2")
    done = run_script("bench/readme_phases.py", "--model", POCKET, "--output-dir", folder, *small, *SERVE, cwd=folder,
                      env=OFFLINE)  # fmt: skip
    assert done.returncode == 0, done.stderr
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
