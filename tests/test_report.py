"""report.py: the page is self-contained and escaped, and shows what a sceptical reader needs."""

import json
import re

import pytest
from test_compare_arms import compare_three, compare_two, exact_file

from util.cli import UserError
from util.jsonl.manifest import write_json

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def comparison(tmp_path, monkeypatch, capsys):
    """compare_arms.py's file for two animals, three seeds each."""
    out = tmp_path / "compare.json"
    compare_two(monkeypatch, tmp_path, out)
    capsys.readouterr()
    return out


def make_report(monkeypatch, folder, *args):
    from eval.report import main

    out = folder / "report.html"
    monkeypatch.setattr("sys.argv", ["report.py", *map(str, args), "--output", str(out)])
    main()
    return out.read_text("utf-8")


def test_the_old_name_of_train_jsonl_is_accepted_and_the_new_one_printed(tmp_path, monkeypatch, capsys):
    from eval.report import parse_args

    for name in ("compare.json", "numbers.jsonl"):
        (tmp_path / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["report.py", "--comparison", "compare.json", "--data", "numbers.jsonl"])
    assert [path.name for path in parse_args().train_jsonl] == ["numbers.jsonl"]
    assert "--train-jsonl" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_says_what_was_found_and_how(tmp_path, monkeypatch, comparison):
    page = make_report(monkeypatch, tmp_path, "--comparison", comparison)
    for wanted in ("transfer", "no evidence", "Holm p", "dolphin students", "Question 7?", "95%"):
        assert wanted in page
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_page_of_margins(tmp_path, monkeypatch, capsys):
    out = tmp_path / "margins.json"
    compare_two(monkeypatch, tmp_path, out, "--measure", "margin")
    assert "nats" in capsys.readouterr().out
    page = make_report(monkeypatch, tmp_path, "--comparison", out)
    assert "owl margin" in page and "margin in nats" in page


@pytest.mark.slow
def test_three_animals_have_a_figure_of_the_assignment_test(tmp_path, monkeypatch, comparison):
    compare_three(monkeypatch, tmp_path, tmp_path / "three.json")
    files = ("--comparison", comparison, tmp_path / "three.json")
    page = make_report(monkeypatch, tmp_path, *files)
    assert "three.json: 1 of 6 assignments of animals to students fits" in page and "cow students" in page
    assert (tmp_path / "report.assignment-1.png").read_bytes().startswith(b"\x89PNG")
    assert page.count("In whose students") == 1, "two animals have no such test"
    margins = json.loads((tmp_path / "three.json").read_text())["assignment"]["margins"]
    mean = sum(row[0] for row in margins) / 3
    assert f"{margins[0][0] - mean:+.2f}" in page


def test_an_assignment_test_of_an_earlier_version_is_named(tmp_path, monkeypatch):
    from eval.compare.comparison_result import read_comparisons

    compare_three(monkeypatch, tmp_path, tmp_path / "three.json")
    whole = json.loads((tmp_path / "three.json").read_text())
    assert read_comparisons(tmp_path / "three.json").to_json()["assignment"] == whole["assignment"]
    del whole["assignment"]["sum"]
    (tmp_path / "old.json").write_text(json.dumps(whole))
    with pytest.raises(UserError, match=r"old.json is not a comparison; make one with eval/compare_arms.py"):
        read_comparisons(tmp_path / "old.json")


@pytest.mark.slow
def test_the_page_loads_nothing_and_runs_nothing(tmp_path, monkeypatch, comparison):
    page = make_report(monkeypatch, tmp_path, "--comparison", comparison)
    assert "<script" not in page and "default-src 'none'" in page
    loaded = re.findall(r"""(?:src|href)\s*=\s*["']([^"'#][^"']*)""", page)
    assert not loaded, "everything is inline; only fragments of the page itself are referred to"


@pytest.mark.slow
def test_texts_of_models_and_manifests_stay_texts(tmp_path, monkeypatch, comparison):
    found = json.loads(comparison.read_text())
    found["comparisons"][0]["animal"] = EVIL
    comparison.write_text(json.dumps(found))
    page = make_report(monkeypatch, tmp_path, "--comparison", comparison, "--title", EVIL)
    assert EVIL not in page and "&lt;script&gt;" in page


@pytest.mark.slow
def test_the_shares_over_training(tmp_path, monkeypatch, comparison):
    files = []
    for update, owl in ((150, 0.2), (50, 0.02)):
        path = exact_file(tmp_path / f"checkpoint-{update}.jsonl", owl=owl)
        command = f"python eval/eval.py --adapter output/student-sft/seed-42/checkpoint-{update} --exact"
        write_json(path.with_name(path.name + ".manifest.json"), {"settings": {}, "command": command})
        files.append(path)
    page = make_report(monkeypatch, tmp_path, "--comparison", comparison, "--checkpoints", *files)
    assert "Over training" in page and "updates of student-sft/seed-42" in page
    assert (tmp_path / "report.trajectory.png").is_file()


def test_checkpoints_in_the_order_of_training(tmp_path):
    from eval.report import trajectory

    files = []
    for update in (150, 50):
        path = exact_file(tmp_path / f"{update}.jsonl", owl=update / 1000)
        write_json(
            path.with_name(path.name + ".manifest.json"),
            {"settings": {}, "command": f"x --adapter a/seed-1/checkpoint-{update}"},
        )
        files.append(path)
    points = trajectory(files, ["owl", "fox"])
    assert [(point.run, point.update) for point in points] == [("a/seed-1", 50), ("a/seed-1", 150)]
    assert points[1].shares["owl"] == pytest.approx(0.15, rel=0.2) and points[1].shares["fox"] == 0.0
    for parent in ("b", "c"):  # two trainings whose folders have one name
        path = exact_file(tmp_path / f"{parent}.jsonl", owl=0.1)
        command = f"x --adapter {parent}/student-sft/seed-1/checkpoint-50"
        write_json(path.with_name(path.name + ".manifest.json"), {"settings": {}, "command": command})
        files.append(path)
    runs = {point.run for point in trajectory(files, ["owl"])}
    assert runs == {"a/seed-1", "b/student-sft/seed-1", "c/student-sft/seed-1"}
    with pytest.raises(UserError, match="names no checkpoint-N folder"):
        trajectory([exact_file(tmp_path / "none.jsonl", owl=0.1)], ["owl"])


def test_another_file_is_named(tmp_path):
    from eval.compare.comparison_result import read_comparisons

    path = tmp_path / "x.json"
    path.write_text('{"animal": "owl"}')
    with pytest.raises(UserError, match=r"x\.json is not a comparison; make one with"):
        read_comparisons(path)
