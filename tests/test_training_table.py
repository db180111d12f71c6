"""bench/training_table.py puts several runs of bench/training_speed.py into one file and one picture."""

import json

from conftest import REPO


def write_run(path, model, *results, cap=None):
    facts = {"device": "a card", "torch": "2", "gpu_memory_gib": cap, "rows_an_update": 16, "tokens_a_row": 100.0}
    about = {
        "command": f"python bench/training_speed.py --model 'shapes/{model}'",
        "git": {"commit": "abc", "dirty": False},
    }
    lines = [
        {
            "way": way,
            "students": students,
            "rows_at_once": 16,
            "student_updates_per_second": rate,
            "tokens_per_second": round(1600 * rate),
        }
        for way, students, rate in results
    ]
    path.write_text(json.dumps({**about, **facts, "results": lines}))


def test_the_lines_of_all_runs_are_in_one_file_and_one_picture(run_script, tmp_path):
    write_run(tmp_path / "a.json", "smollm2", ("loop", 1, 30.0), ("students", 8, 40.0))
    write_run(tmp_path / "b-1.5b.json", "large one", ("loop", 1, 2.5), cap=40.0)
    out, picture = tmp_path / "all.json", tmp_path / "all.png"
    done = run_script(
        "bench/training_table.py", "a.json", "b-1.5b.json", "--output", out, "--figure", picture, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    lines = json.loads(out.read_text())["results"]
    assert [(one["model"], one["run"], one["students"], one["tokens_per_second"]) for one in lines] == [
        ("smollm2", "a", 1, 48000), ("smollm2", "a", 8, 64000), ("large one", "b-1.5b", 1, 4000),
    ]  # fmt: skip
    assert lines[2]["gpu_memory_gib"] == 40 and lines[0]["commit"] == "abc"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "64000" in done.stdout and "large one" in done.stdout


def test_a_run_that_is_read_again_replaces_its_lines(run_script, tmp_path):
    write_run(tmp_path / "a.json", "smollm2", ("loop", 1, 30.0))
    write_run(tmp_path / "b.json", "smollm2", ("loop", 1, 20.0))
    out = tmp_path / "all.json"
    assert run_script("bench/training_table.py", "a.json", "b.json", "--output", out, cwd=tmp_path).returncode == 0
    write_run(tmp_path / "b.json", "smollm2", ("loop", 1, 25.0))
    assert run_script("bench/training_table.py", out, "b.json", "--output", out, cwd=tmp_path).returncode == 0
    rates = [(one["run"], one["student_updates_per_second"]) for one in json.loads(out.read_text())["results"]]
    assert rates == [("a", 30.0), ("b", 25.0)]


def test_the_manifest_of_a_training_gives_its_speed(run_script, tmp_path):
    """Two updates of 60 rows with 100 tokens, half a second each in the median, three seconds with the first pass."""
    manifest = {
        "command": "python train/train_student_sft.py", "git": {"commit": "abc"}, "packages": {"torch": "2"},
        "settings": {}, "speed": {"seconds_an_update": 0.5, "rows_at_once": 30},
        "arguments": {"base_model": "/x/qwen7b", "effective_batch_size": 60, "gpu_memory_gib": 40.0},
        "counts": {"tokens": 12000, "updates": 2, "seconds": 3.0, "device": "a card", "peak_memory_gib": 29.0,
                   "train_loss": 1.0},
    }  # fmt: skip
    (tmp_path / "e-40.manifest.json").write_text(json.dumps(manifest))
    done = run_script("bench/training_table.py", "e-40.manifest.json", "--output", tmp_path / "all.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [line] = json.loads((tmp_path / "all.json").read_text())["results"]
    assert (line["run"], line["model"], line["tokens_per_second"], line["tokens_a_row"]) == (
        "e-40",
        "qwen7b",
        12000,
        100,
    )
    assert (line["whole_seconds"], line["rows_at_once"], line["gpu_memory_gib"]) == (3.0, 30, 40.0)


def test_the_documents_table_has_the_figures_of_the_file():
    """The tokens a second of every line are in docs/performance.md, but for the runs without CUDA graphs."""
    text = (REPO / "docs" / "performance.md").read_text("utf-8")
    lines = json.loads((REPO / "docs" / "training-speed.json").read_text("utf-8"))["results"]
    named = [one for one in lines if one["rows_an_update"] == 60 or one["run"].startswith(("b-", "c-", "e-"))]
    assert len(named) == 32
    assert not [one for one in named if f"{one['tokens_per_second']:,}" not in text]
