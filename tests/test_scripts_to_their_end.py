"""Scripts of bench/ and experiments/pilots/ that no other test runs, with the least work, to their end.

A rented GPU lost jobs to scripts that stopped at their first file name. What they measure is not tested here.
"""

import json

import pytest
from conftest import REPO

POCKET = REPO / "pocket" / "model"
PILOTS = "experiments/pilots"
BENCH = {
    "bf16_rounding.py": ("--model", POCKET, "--seed-count", 1, "--updates", 2, "--effective-batch-size", 4),
    "divergence_speed.py": ("--model", POCKET, "--count", 20),
    "verdict_calibration.py": ("--experiments", 5),
    "moderated_coverage.py": ("--experiments", 5),
    "power_by_design.py": ("--experiments", 2),
    "exact_against_sampled_shares.py": ("--answers", 200, "--seed-count", 2),
    "parts_without_gpu.py": ("--filter-rows", 100, "--ranking-rows", 100, "--client-rows", 20, "--in-flight"),
}  # fmt: skip
NOT_TRIED = {
    "bench/break_run.py": "takes minutes", "bench/hostile_adapters_and_secrets.py": "takes minutes",
    "bench/untaught_false_positives.py": "takes a minute", "bench/kill_loop.py": "takes half a minute",
    "bench/unsloth_training.py": "needs a GPU and Unsloth",
    "bench/vllm_throughput.py": "needs a vLLM server", f"{PILOTS}/vllm_rows.py": "needs a vLLM server",
    f"{PILOTS}/pocket_width.py": "reads an hour's work of experiments/pocket_width.sh",
}  # fmt: skip


def test_no_script_is_forgotten():
    tests = "".join(path.read_text("utf-8") for path in (REPO / "tests").glob("test_*.py"))
    for folder in ("bench", PILOTS):
        for path in (REPO / folder).glob("*.py"):
            if "__main__" in path.read_text("utf-8") and f"{folder}/{path.name}" not in NOT_TRIED:
                assert f'"{path.name}"' in tests or f'/{path.name}"' in tests, f"no test runs {path}"


def finish(done):
    """A script that reached its end; 1 says that a figure of so little work is out of bounds."""
    assert "Traceback" not in done.stderr and "error:" not in done.stderr, done.stderr
    assert done.returncode in (0, 1)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("script", BENCH)
def test_a_bench_script_reaches_its_end(script, run_script, tmp_path):
    pytest.importorskip("scipy")
    output = [] if script == "moderated_coverage.py" else ["--output", tmp_path / "made.json"]
    finish(run_script(f"bench/{script}", *BENCH[script], *output, cwd=tmp_path))
    assert not output or json.loads((tmp_path / "made.json").read_text())


@pytest.mark.slow
@pytest.mark.torch
def test_the_pilots_reach_their_end(run_script, tmp_path):
    """From prompts to measures, as trees_or_sixteen_animals.sh calls them; then tables of committed files."""
    pytest.importorskip("scipy")
    out, files = tmp_path / "out", []
    for flag, path in {
        "questions": "eval/questions.txt", "paraphrases": "eval/questions-paraphrased.txt",
        "forms": "eval/questions-forms.txt", "open": "generate/prompts/open-prompts.txt",
        "number-prompt": "generate/prompts/number-prompt.txt",
    }.items():  # fmt: skip
        lines = (REPO / path).read_text("utf-8").splitlines()
        (tmp_path / flag).write_text("\n".join(lines[:2]), "utf-8")
        files += [f"--{flag}", flag]

    def run(script, *flags):
        finish(run_script(f"{PILOTS}/{script}", *flags, cwd=tmp_path))

    run("make_prompts.py", *files, "--output", "prompts.json")
    model = ("--model", POCKET, "--prompts", "prompts.json", "--output", out)
    run("choose_layer.py", *model, "--kinds", "owl", "cat", "--layers", 1, "--strengths", 1, "--rows", 8)
    layer, _ = (out / "choice.txt").read_text().split()
    run("plan_jobs.py", "--output", "other-jobs", "--animals", "owl", "cat")
    run("plan_confirm.py", "--small", "--output", "jobs", "--animals", "owl", "cat", "--others", "--seeds", 1,
        "--read-seeds", 101, 102, 103)  # fmt: skip
    jobs = [f"jobs/{name}.json" for name in ("base", "teach-1")]
    run("teachers_in_weights.py", *model, "--layer", layer, "--batch", 256, "--jobs", *jobs)
    run("measure_adapters.py", "--model", POCKET, "--output", out, "--parts", 3, "--part", 1)
    assert len(list((out / "adapters").glob("*"))) == 2 and len(list((out / "exact").glob("*.jsonl"))) == 1
    rows = (out / "rows" / "owl-steered.text.json").read_text()
    names = [f"{kind}-{seed}.text.json" for kind in ("owl", "cat", "base") for seed in (1, 101, 102, 103)]
    for name in names:
        (tmp_path / name).write_text(rows)
    run("pack_rows.py", *names, "--output", "rows.jsonl.xz")
    run("inspect_rows.py", "rows.jsonl.xz", "--animals", "owl", "cat", "--output", "rows.csv")
    run("unpack_rows.py", "rows.jsonl.xz", "--model", POCKET, "--output", out)
    arms = ("letterless", "letterless-control", "fewer", "shuffled", "shuffled-control", "unguessed")
    jobs = [f"jobs/{arm}-text.json" for arm in arms]
    run("teachers_in_weights.py", *model, "--layer", layer, "--jobs", *jobs)
    made = {path.stem for path in (out / "measures").glob("student-*-1.text.*.json")}
    # a judge that has read the same rows of two kinds takes the first kind, so of owl's rows none is left
    whose = ("owl-1.text.shuffled", "cat-1.text.shuffled", "base-1.text.shuffled", "cat-1.text.unguessed")
    assert made >= {f"student-{name}" for name in whose}
    assert "student-owl-1.text.unguessed" not in made

    results = REPO / "experiments" / "results" / "qwen2.5-1.5b"
    run("confirm_tests.py", results)
    run("sceptic_tests.py", results)
    run("pilot_tables.py", REPO / PILOTS / "2026-11-29-teachers")
    run("plot_confirm.py", results, "--output", "eight.png")
    assert (tmp_path / "eight.png").stat().st_size > 9_000
