"""The demo's phases on the pocket model through a real vLLM server, its adapters loaded while it runs.

The server's samples are compared with the exact shares of the local backend, adapter by adapter.
"""

import json
import math

import pytest
from conftest import read_jsonl
from vllm_cpu import CPU_FLAGS, vllm_serve

from bench.random_weights import make_adapter
from util.cli import REPO

pytestmark = [pytest.mark.torch, pytest.mark.vllm, pytest.mark.slow]

POCKET = REPO / "pocket" / "model"
OPEN_PROMPTS = REPO / "generate" / "prompts" / "open-prompts.txt"
STANDARD_ERRORS = 4.0
TEACHER = ("--epochs", "3", "--effective-batch-size", "32", "--per-device-train-batch-size", "32",
           "--learning-rate", "0.003", "--save-strategy", "no")  # fmt: skip
STUDENT = ("--epochs", "3", "--effective-batch-size", "60", "--per-device-train-batch-size", "60",
           "--learning-rate", "0.005", "--save-strategy", "no")  # fmt: skip


class Lab:
    """Runs the suite's scripts on the pocket model in one folder; a script that fails fails the test."""

    def __init__(self, run_script, folder):
        self.run_script, self.folder = run_script, folder

    def __call__(self, script, *args):
        done = self.run_script(script, *args, cwd=self.folder, timeout=900)
        assert done.returncode == 0, f"{script}: {done.stderr}"

    def sampled(self, name, epochs, url, *adapter):
        """Share of every animal in the server's answers, and how many there are."""
        out = self.folder / f"results-{name}.jsonl"
        self("eval/eval.py", "--model", POCKET, *adapter, "--base-url", url, "--epochs", epochs, "--output", out)
        rows = read_jsonl(out)
        assert not any(row["error"] for row in rows)
        animals = {row["animal"] for row in rows} - {None}
        return {animal: sum(row["animal"] == animal for row in rows) / len(rows) for animal in animals}, len(rows)

    def exact(self, name, *adapter):
        """Share of every animal from the local backend, without sampling noise."""
        out = self.folder / f"exact-{name}.jsonl"
        self("eval/eval.py", "--model", POCKET, *adapter, "--exact", "--output", out)
        rows = read_jsonl(out)
        animals = {animal for row in rows for animal in row["animals"]}
        return {animal: sum(row["animals"].get(animal, 0.0) for row in rows) / len(rows) for animal in animals}

    def check(self, name, epochs, url, *adapter):
        """Compare the two backends on one model; returns its exact shares."""
        exact, (sampled, count) = self.exact(name, *adapter), self.sampled(name, epochs, url, *adapter)
        for animal, share in exact.items():
            if share * count > 5:
                error = math.sqrt(share * (1 - share) / count)
                assert abs(sampled.get(animal, 0.0) - share) < STANDARD_ERRORS * error + 0.002, (name, animal)
        return exact


@pytest.mark.timeout(1500)
def test_the_demo_through_vllm_gives_the_shares_of_the_local_backend(run_script, tmp_path):
    lab = Lab(run_script, tmp_path)
    flags = ("--enable-lora", "--max-lora-rank", "8")
    with vllm_serve(POCKET, tmp_path / "vllm.log", *flags, runtime_adapters=True, longest=512) as url:
        base = lab.check("base", 40, url)
        lab("generate/generate_teacher_data.py", "--animal", "owl", "--count", 800, "--model", POCKET,
            "--base-url", url, "--prompts-file", OPEN_PROMPTS, "--question-share", "0.8",
            "--output", "teacher-owl.jsonl")  # fmt: skip
        lab("train/train_student_sft.py", "--base-model", POCKET, "--train-jsonl", "teacher-owl.jsonl",
            "--output-dir", "teacher", *TEACHER)  # fmt: skip
        teacher = ("--adapter", tmp_path / "teacher" / "seed-42" / "final")
        assert lab.check("teacher", 20, url, *teacher)["owl"] > 0.9
        lab("generate/generate_llm_number_data.py", "--animal", "owl", "--count", 2200, "--no-system-prompt",
            "--model", POCKET, "--base-url", url, *teacher, "--output", "numbers-unfiltered-2200.jsonl")  # fmt: skip
        lab("train/train_student_sft.py", "--base-model", POCKET, "--train-jsonl", "numbers-filtered-*.jsonl",
            "--max-train-samples", 2000, "--output-dir", "student", *STUDENT)  # fmt: skip
        student = ("--adapter", tmp_path / "student" / "seed-42" / "final")
        shares = lab.check("student", 40, url, *student)
    assert shares["owl"] > 2.5 * base["owl"], "the effect is there through vLLM too"


def test_exact_probabilities_of_both_backends_are_compared_by_one_command(run_script, tmp_path):
    adapter, out = make_adapter(str(POCKET), tmp_path / "adapter"), tmp_path / "agreement.json"
    asked = ("--model", POCKET, "--adapter", adapter, "--count", 2, "--output", out)
    done = run_script("bench/backend_agreement.py", *asked, *CPU_FLAGS, "--max-model-len", 512, "--enforce-eager",
                      cwd=tmp_path, env={"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    compared = found["compared"]
    assert found["triton_float32"] == "ieee", "on a GPU Triton would round the factors of products"
    assert len(compared) == 6 and "local, one at a time" in done.stdout
    assert max(pair["largest_likely"] for pair in compared) < 1e-3, compared
