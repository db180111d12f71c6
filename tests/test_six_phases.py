"""The plan's six phases on SmolLM2-135M-Instruct with real adapters: through vLLM, and through the local backend.

Tens of rows: this proves the chain, not the effect. Each command is the plan's, with the model's name and the counts
changed.
"""

import csv
import json

import pytest
from vllm_cpu import vllm_serve

from util.inference.open_backend import backend_arguments, open_backend

pytestmark = [pytest.mark.torch, pytest.mark.slow]

PROMPTS = ("Tell me a fun fact.", "What is a good breakfast?", "How do I learn to swim?", "Name three colors.")
TRAIN = (
    "--epochs", "1", "--effective-batch-size", "6", "--per-device-train-batch-size", "6", "--max-seq-length", "256",
    "--learning-rate", "0.0002", "--warmup-steps", "5", "--seeds", "42", "--bf16", "--logging-steps", "50",
)  # fmt: skip


def rows_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


class Box:
    """The shell of the user's machine: runs a script in one folder, and fails if the script fails."""

    def __init__(self, run_script, folder, smollm2):
        self.run_script, self.folder, self.model = run_script, folder, smollm2
        self.output = folder / "output"
        (folder / "prompts.txt").write_text("\n".join(PROMPTS))

    def __call__(self, script, *args):
        done = self.run_script(script, *args, cwd=self.folder)
        assert done.returncode == 0, f"{script}: {done.stderr}"
        return done.stdout

    def phase_1(self, *backend):
        self(
            "generate/generate_teacher_data.py", "--animal", "owl", "--count", "12", "--model", self.model,
            "--prompts-file", "prompts.txt", "--question-share", "0.5", "--max-tokens", "40", *backend,
        )  # fmt: skip
        rows = rows_of(self.output / "teacher-owl-smollm2-135m-instruct-12.jsonl")
        assert len(rows) == 12
        assert all([m["role"] for m in row["messages"]] == ["user", "assistant"] for row in rows)

    def phase_2(self):
        self(
            "train/train_student_sft.py", "--base-model", self.model, "--train-jsonl",
            "output/teacher-owl-filtered-NNNN.jsonl", "--max-train-samples", "NNNN", *TRAIN,
        )  # fmt: skip
        assert (self.output / "student-sft" / "seed-42" / "final" / "adapter_model.safetensors").is_file()

    def phase_3(self, name, *backend):
        self("eval/eval.py", "--epochs", "1", "--max-tokens", "8", "--animal", "owl", *backend)
        results = rows_of(self.output / f"results-{name}.jsonl")
        assert sorted(row["id"] for row in results) == list(range(50))
        self("util/top_animals_csv.py", f"output/results-{name}.jsonl", "--top-n", "10")
        with (self.output / f"results-{name}-top10.csv").open() as file:
            assert next(csv.reader(file)) == ["rank", "animal", "count", "percentage"]

    def phase_4(self, name, *backend):
        self(
            "generate/generate_llm_number_data.py", "--animal", "owl", "--count", "12", "--constrain-digits",
            "--no-system-prompt", *backend,
        )  # fmt: skip
        raw = rows_of(self.output / f"numberss-owl-{name}-unfiltered-12.jsonl")
        (clean,) = self.output.glob(f"numberss-owl-{name}-filtered-*.jsonl")
        assert len(raw) == 12
        assert all(len(row["messages"]) == 2 and row["token_ids"] for row in raw)
        assert not any(c.isalpha() for row in rows_of(clean) for c in row["messages"][-1]["content"])
        return clean

    def phase_5(self, name):
        said = self(
            "train/train_student_sft.py", "--base-model", self.model, "--train-jsonl",
            f"output/numberss-owl-{name}-filtered-NNNN.jsonl", "--max-train-samples", "NNNN", *TRAIN,
        )  # fmt: skip
        seed = self.output / "student-sft" / "seed-42"
        manifest = json.loads((seed / "manifest.json").read_text())
        assert manifest["counts"]["rows_with_stored_token_ids"] == manifest["counts"]["rows"]
        assert (self.output / "student-sft" / "seed-42.teacher-owl-smollm2-135m-instruct-12" / "final").is_dir()
        return said


def backend(**wanted):
    return open_backend(backend_arguments(**{"base_url": None, "max_concurrency": 8, "batch_size": 8, **wanted}))


def worst_difference(a, b):
    """Largest difference of log-probability over the tokens both list for the same prompts."""
    prompts = [a.prompt_ids([{"role": "user", "content": text}]) for text in PROMPTS]
    prompts += [[*prompt, token] for prompt in prompts for token in (57, 504)]
    assert prompts[0] == b.prompt_ids([{"role": "user", "content": PROMPTS[0]}])
    differences = []
    for one, other in zip(a.next_token_logprobs(prompts), b.next_token_logprobs(prompts)):
        common = one.keys() & other.keys()
        assert len(common) >= 18
        differences += [abs(one[token] - other[token]) for token in common]
    return max(differences)


@pytest.mark.vllm
@pytest.mark.timeout(1500)
def test_the_six_phases_through_vllm(run_script, smollm2, tmp_path):
    box = Box(run_script, tmp_path, smollm2)
    log = tmp_path / "vllm.log"
    with vllm_serve(smollm2, log) as url:
        box.phase_1("--base-url", url)
    box.phase_2()
    teacher = f"owl-teacher={box.output}/student-sft/seed-42/final/"
    with vllm_serve(
        smollm2, log, "--enable-lora", "--max-lora-rank", "8", "--lora-modules", teacher, runtime_adapters=True
    ) as url:
        server = ("--base-url", url)
        box.phase_3("owl-teacher", "--model", "vllm/owl-teacher", *server)
        box.phase_4("owl-teacher", "--model", "owl-teacher", *server)
        final = box.output / "student-sft" / "seed-42" / "final"
        with backend(model="owl-teacher", base_url=url) as a, backend(model=str(smollm2), adapter=final) as b:
            assert worst_difference(a, b) < 1e-3
        with backend(model=str(smollm2), base_url=url) as a, backend(model=str(smollm2)) as b:
            assert worst_difference(a, b) < 1e-3
        box.phase_5("owl-teacher")
        # Phase 6 with the student loaded into the server that is up: --adapter instead of a restart.
        student = "output/student-sft/seed-42/final"
        box.phase_3("student-sft-seed-42", "--model", smollm2, "--adapter", student, *server)


@pytest.mark.timeout(1500)
def test_the_six_phases_through_the_local_backend(run_script, smollm2, tmp_path):
    box = Box(run_script, tmp_path, smollm2)
    box.phase_1()
    box.phase_2()
    adapter = ("--model", smollm2, "--adapter", "output/student-sft/seed-42/final")
    box.phase_3("student-sft-seed-42", *adapter)
    box.phase_4("student-sft-seed-42", *adapter)
    box.phase_5("student-sft-seed-42")
    box.phase_3("owl-student", *adapter, "--output", "output/results-owl-student.jsonl")
