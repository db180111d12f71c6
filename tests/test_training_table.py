"""bench/training_table.py puts several runs of bench/train.py into one file and one picture."""

import json

from conftest import REPO


def write_run(path, model, *results, cap=None):
    facts = {"device": "a card", "torch": "2", "gpu_memory_gib": cap, "rows_an_update": 16, "tokens_a_row": 100.0}
    about = {"command": f"python bench/train.py --model 'shapes/{model}'", "git": {"commit": "abc", "dirty": False}}
    lines = [
        {"way": way, "students": students, "student_updates_per_second": rate, "tokens_per_second": round(1600 * rate)}
        for way, students, rate in results
    ]
    path.write_text(json.dumps({**about, **facts, "results": lines}))


def test_the_lines_of_all_runs_are_in_one_file_and_one_picture(run_script, tmp_path):
    write_run(tmp_path / "a.json", "small", ("loop", 1, 30.0), ("students", 8, 40.0))
    write_run(tmp_path / "b.json", "large one", ("loop", 1, 2.5), cap=40.0)
    out, picture = tmp_path / "all.json", tmp_path / "all.png"
    done = run_script("bench/training_table.py", tmp_path / "a.json", tmp_path / "b.json", "--output", out, "--figure",
                      picture, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = json.loads(out.read_text())["results"]
    assert [(one["model"], one["run"], one["students"], one["tokens_per_second"]) for one in lines] == [
        ("small", "a", 1, 48000), ("small", "a", 8, 64000), ("large one", "b", 1, 4000),
    ]  # fmt: skip
    assert lines[2]["gpu_memory_gib"] == 40 and lines[0]["commit"] == "abc"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "64000" in done.stdout and "large one" in done.stdout


def test_the_documents_table_has_the_figures_of_the_file():
    """The tokens a second of every line are in docs/performance.md, but for the runs without CUDA graphs."""
    text = (REPO / "docs" / "performance.md").read_text("utf-8")
    lines = json.loads((REPO / "docs" / "training-speed.json").read_text("utf-8"))["results"]
    named = [one for one in lines if one["rows_an_update"] == 60 or one["run"].startswith(("b-", "c-"))]
    assert len(named) == 20
    assert not [one for one in named if f"{one['tokens_per_second']:,}" not in text]
