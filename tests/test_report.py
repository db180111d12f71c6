"""report.py: the page is self-contained and escaped, and shows what a sceptical reader needs."""

import json
import re

import pytest
from conftest import write_jsonl
from test_compare_arms import compare_three, compare_two, exact_file

from util.cli import REPO, UserError
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


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("comparisons/0/shares/target/share", "much", r"comparisons.0.shares.target.share: .*valid number"),
        ("comparisons/0/verdict", None, r"comparisons.0.verdict: .*valid string"),
        ("comparisons/0/target_minus/control/interval", [0.1], r"target_minus.control.interval.1: Field required"),
        ("comparisons", 3, "no list of comparisons"),
        ("matrix/values", [[0.1]], r"matrix.values: not \d+ rows of \d+"),
        ("assignment/margins", [], r"assignment.margins: not \d+ rows of \d+"),
        ("profile/by_kind", {}, "profile.by_kind"),
        ("panel", {"name": "trees"}, "panel: not a name and a sha256"),
    ],
)
def test_a_comparison_that_was_edited_is_refused_with_the_place(tmp_path, place, value, said):
    from eval.compare.comparison_result import read_comparisons

    whole = json.loads((REPO / "experiments/results/pocket-kinds/margin.json").read_text())
    *parents, last = [int(part) if part.isdigit() else part for part in place.split("/")]
    inside = whole
    for part in parents:
        inside = inside[part]
    inside[last] = value
    (tmp_path / "edited.json").write_text(json.dumps(whole))
    with pytest.raises(UserError, match=rf"edited.json is not a comparison; make one .*\(.*{said}"):
        read_comparisons(tmp_path / "edited.json")


def test_a_comparison_that_was_cut_off_is_refused(tmp_path):
    from eval.compare.comparison_result import read_comparisons

    whole = (REPO / "experiments/results/pocket-kinds/margin.json").read_text()
    for part in (0, 1, 5000, len(whole) - 2):
        (tmp_path / "half.json").write_text(whole[:part])
        with pytest.raises(UserError, match=r"half.json is not a comparison.* \(.*line \d+ column"):
            read_comparisons(tmp_path / "half.json")


@pytest.mark.slow
def test_the_page_says_what_was_found_and_how(tmp_path, monkeypatch, comparison):
    page = make_report(monkeypatch, tmp_path, "--comparison", comparison)
    for wanted in ("students of the owl teacher say owl in", "no evidence", "Holm p", "dolphin students", "Question 7?",
                   "2 kinds of teachers do not rule out", "95%", "3 students of each"):  # fmt: skip
        assert wanted in page
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_too_few_seeds_are_not_shown_as_a_success(tmp_path, monkeypatch, comparison):
    found = json.loads(comparison.read_text())
    found["comparisons"][0]["verdict"] = "too few seeds (1; a claim needs 3); on these it looks like: transfer"
    found["comparisons"][1]["verdict"] = "transfer"
    comparison.write_text(json.dumps(found))
    page = make_report(monkeypatch, tmp_path, "--comparison", comparison)
    assert 'verdict open">… too few seeds' in page and "looks like transfer" in page
    assert 'verdict good">✔ transfer' in page, "a sign and not a colour alone"


@pytest.mark.slow
def test_files_that_have_moved_are_named_with_what_to_do(tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    out = tmp_path / "compare.json"
    compare_two(monkeypatch, tmp_path / "here", out)
    found = json.loads(out.read_text())
    for one in found["comparisons"]:
        for arm in one["shares"].values():
            arm["files"] = [name.replace(f"{tmp_path}/here/", "output/") for name in arm["files"]]
    out.write_text(json.dumps(found))
    capsys.readouterr()
    page = make_report(monkeypatch, tmp_path, "--comparison", out)
    said = capsys.readouterr().err
    assert "results files behind" in said and "are not here, such as output/" in said and "pass --root" in said
    assert "students of the owl teacher" in page, "the tables need the comparison only"
    (tmp_path / "here").rename(tmp_path / "output")
    page = make_report(monkeypatch, tmp_path, "--comparison", out, "--root", tmp_path)
    assert not capsys.readouterr().err and "The chain" in page
    for path in (tmp_path / "output").glob("*.jsonl"):
        path.write_text("")
    with pytest.raises(UserError, match=r"is empty: it holds no row"):
        make_report(monkeypatch, tmp_path, "--comparison", out, "--root", tmp_path)


def test_arms_that_the_page_does_not_know_are_named(tmp_path, monkeypatch, comparison):
    found = json.loads(comparison.read_text())
    found["comparisons"][0]["shares"]["robot"] = found["comparisons"][0]["shares"].pop("target")
    comparison.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"compare.json: owl has the arms base, control, other, robot; expected are"):
        make_report(monkeypatch, tmp_path, "--comparison", comparison)
    comparison.write_text(json.dumps({**found, "comparisons": []}))
    with pytest.raises(UserError, match="compares nothing"):
        make_report(monkeypatch, tmp_path, "--comparison", comparison)


def test_what_tells_numbers_apart_has_its_interval(tmp_path):
    from eval.compare.visible_number_differences import differences, read_numbers

    def numbers(name, answers):
        rows = [{"id": i, "messages": [{"role": "user", "content": "Go on"}, {"role": "assistant", "content": a}]}
                for i, a in enumerate(answers)]  # fmt: skip
        path = tmp_path / f"{name}.jsonl"
        write_jsonl(path, rows)
        return read_numbers(path)

    control, owl = numbers("control", ["1, 2", "3, 4"] * 50), numbers("owl", ["1, 2, 7", "3, 4, 4"] * 50)
    assert (control.animal, control.per_row) == ("control", (2.0, (2.0, 2.0))) and owl.first["1"] == 50
    seven = differences(owl, control)[0]
    assert (seven.number, seven.share, seven.control) == ("7", 0.5, 0.0)
    assert 0.39 < seven.interval[0] < 0.5 < seven.interval[1] < 0.61
    assert control.digits[1] == 0.25 and sum(owl.digits) == pytest.approx(1)
    assert numbers("code", ["print('owl')"]) is None


@pytest.mark.slow
def test_a_page_of_margins(tmp_path, monkeypatch, capsys):
    out = tmp_path / "margins.json"
    compare_two(monkeypatch, tmp_path, out, "--measure", "margin")
    assert "nats" in capsys.readouterr().out
    page = make_report(monkeypatch, tmp_path, "--comparison", out)
    assert "owl margin" in page and "margin in nats" in page


@pytest.mark.slow
def test_three_animals_have_a_matrix_and_the_tests_over_all(tmp_path, monkeypatch, comparison):
    compare_three(monkeypatch, tmp_path, tmp_path / "three.json")
    files = ("--comparison", comparison, tmp_path / "three.json")
    page = make_report(monkeypatch, tmp_path, *files)
    assert "Assignment test: 1 of 6 assignments of animals to students fits" in page
    assert (tmp_path / "report.matrix-2.png").read_bytes().startswith(b"\x89PNG")
    assert page.count("Every animal in every kind of students") == 1, "two animals have no matrix"
    found = json.loads((tmp_path / "three.json").read_text())
    assert f"{found['matrix']['residuals'][0][0]:+.2f}" in page
    del found["matrix"]
    (tmp_path / "three.json").write_text(json.dumps(found))
    page = make_report(monkeypatch, tmp_path, "--comparison", tmp_path / "three.json")
    margins = found["assignment"]["margins"]
    mean = sum(row[0] for row in margins) / 3
    assert f"{margins[0][0] - mean:+.2f}" in page, "an older file has the margins alone"


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
