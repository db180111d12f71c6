"""Pages and figures as a reader sees them: opened in a browser on a phone and a laptop, light, dark and printed."""

import json
import shutil
import time

import pytest
from browser import missing, open_browser, page_problems
from conftest import REPO, write_jsonl
from test_compare_arms import exact_file

from eval.compare.animal_by_kind_matrix import matrix_of_kinds
from eval.compare.assignment_permutations import assignment
from eval.compare.comparison_result import Comparisons
from eval.compare.read_results import read_result
from eval.compare.teacher_profile import profile_test
from eval.compare.verdict import compare_all, pairwise
from util.animals.panel import PANEL
from util.jsonl.manifest import write_json

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=missing() or "")]


@pytest.fixture(scope="module")
def browser():
    with open_browser() as found:
        yield found


BAD = """<!doctype html><html lang="en"><head><title>x</title></head><body style="margin: 0; background: white">
<p style="font-size: 9px">small</p><p style="color: #bbb">pale</p><table><tr><td style="min-width: 900px">wide</td></tr>
</table><svg role="img" aria-label="x" width="100" viewBox="0 0 200 50"><text y="20" fill="#ccc" font-size="12">thin
</text></svg><img src="x.png" alt="x"></body></html>"""


def test_a_bad_page_is_found_out(browser, tmp_path):
    (tmp_path / "bad.html").write_text(BAD)
    found = "\n".join(page_problems(browser, tmp_path / "bad.html"))
    for problem in ("the page is 90", "'small' is 9.0 px", "'thin' is 6.0 px", "'thin' has contrast 1.6",
                    "color-contrast", "request: file:", "print: cut: TABLE"):  # fmt: skip
        assert problem in found


# --- reports -----------------------------------------------------------------------------------------

ANIMALS = ["owl", "dolphin", "eagle", "wolf", *(name for name in PANEL if " " not in name)]
ANIMALS = list(dict.fromkeys(ANIMALS))
HOSTILE = '<script>alert(1)</script> <img src=x onerror=alert(1)> "></td></table>‮' + "W" * 300


def results(folder, count, seeds=2, questions=50):
    """Exact files of the base model, two control students, and students and teachers of so many animals."""
    names = ANIMALS[: count + 10]  # ten that nobody was taught
    texts = [f"Question {i}?" for i in range(questions)]

    def file(name, seed, **raised):
        shares = {animal: 0.6 / len(names) for animal in names} | raised
        path = folder / f"{name}-{seed}.jsonl"
        return read_result(exact_file(path, questions=texts, adapter=path.stem, seed=hash(path.stem) % 1000, **shares))

    base = read_result(exact_file(folder / "base.jsonl", questions=texts, **{one: 0.5 / len(names) for one in names}))
    control = [file("control", seed) for seed in range(seeds)]
    students = {one: [file(one, seed, **{one: 0.1}) for seed in range(seeds)] for one in names[:count]}
    teachers = {one: [file(f"{one}-teacher", 1, **{one: 0.9})] for one in names[:count]}
    return base, control, students, teachers


def comparison_file(folder, count, seeds=2, measure="share", change=lambda found: found, questions=50):
    """A comparison as compare_arms.py writes it. change: what is done to its JSON."""
    base, control, students, teachers = results(folder, count, seeds, questions)
    found = Comparisons(
        compare_all(base, control, students, measure),
        pairwise(base, control, students, measure),
        assignment(students),
        matrix_of_kinds(base, students, {}, measure),
        profile_test(base, students, teachers, list(students)) if count > 2 else None,
    )
    path = folder / "compare.json"
    path.write_text(json.dumps(change(found.to_json())))
    return path


def numbers_file(folder, name, answers):
    rows = [{"id": i, "messages": [{"role": "user", "content": "Go on"}, {"role": "assistant", "content": answer}]}
            for i, answer in enumerate(answers)]  # fmt: skip
    path = folder / f"numbers-{name}.jsonl"
    return write_jsonl(path, rows)


def without_control(found):
    for one in found["comparisons"]:
        for part in ("shares", "target_minus", "by_question"):
            one[part].pop("control")
    return found


def hostile(found):
    for one in found["comparisons"]:
        one["animal"] = HOSTILE
        one["by_question"]["question"][0] = HOSTILE
    return found


PAGES = {
    "one seed of two animals": {"count": 2, "seeds": 1},
    "no control": {"count": 2, "seeds": 3, "change": without_control, "questions": 10},
    "margins": {"count": 3, "measure": "margin", "questions": 10},
    "hostile texts": {"count": 2, "seeds": 1, "change": hostile, "questions": 10},
    "24 arms": {"count": 24, "seeds": 1, "questions": 50},
    "36 animals": {"count": 36, "seeds": 1, "questions": 50},
}


@pytest.mark.parametrize("name", PAGES)
def test_a_report_can_be_read_everywhere(browser, tmp_path, monkeypatch, name):
    from eval.report import main

    path = comparison_file(tmp_path, **PAGES[name])
    data = [
        numbers_file(tmp_path, "control", ["1, 2, 3", "4, 5"] * 20),
        numbers_file(tmp_path, "owl", ["7, 7", HOSTILE + "8"] * 20),
    ]
    out = tmp_path / "report.html"
    monkeypatch.setattr(
        "sys.argv", ["report.py", "--comparison", str(path), "--output", str(out), "--train-jsonl", *map(str, data)]
    )
    begun = time.process_time()
    main()
    assert time.process_time() - begun < 10, "seconds of one core"
    assert out.stat().st_size < 2_000_000
    schemes = ("light", "dark") if PAGES[name]["count"] <= 8 else ("light",)
    assert not page_problems(browser, out, schemes)
    assert "<script" not in out.read_text("utf-8")


COMMITTED = {"the demo": "demo-seeds.json", "eight animals of SmolLM2": "smollm2/eight-exact-margin.json"}


@pytest.mark.parametrize("name", COMMITTED)
def test_the_reports_of_committed_results_can_be_read_everywhere(browser, tmp_path, monkeypatch, name):
    from eval.report import main

    out = tmp_path / "report.html"
    path = REPO / "experiments" / "results" / COMMITTED[name]
    monkeypatch.setattr("sys.argv", ["report.py", "--comparison", str(path), "--output", str(out)])
    begun = time.process_time()
    main()
    assert time.process_time() - begun < 10, "seconds of one core"
    assert out.stat().st_size < 2_000_000 and not page_problems(browser, out)


# --- other pages -------------------------------------------------------------------------------------


def test_a_page_of_rows_can_be_read_everywhere(browser, tmp_path, monkeypatch):
    from util.view import main

    numbers = numbers_file(tmp_path, "owl", ["1, 2, 3", HOSTILE] * 20)
    numbers.with_name(numbers.name + ".rejects").write_text(
        json.dumps({"id": 9, "messages": [{"role": "assistant", "content": HOSTILE}], "rejected": "letters"}) + "\n"
    )
    shares = exact_file(tmp_path / "exact.jsonl", owl=0.2, questions=[f"Question {i} {HOSTILE}?" for i in range(20)])
    out = tmp_path / "view.html"
    monkeypatch.setattr("sys.argv", ["view.py", str(numbers), str(shares), "--output", str(out)])
    main()
    assert not page_problems(browser, out)


def test_a_page_of_divergence_tokens_can_be_read_everywhere(browser, tmp_path):
    from test_divergence_report import page_of, token_row

    out = tmp_path / "divergence.html"
    out.write_text(page_of(write_jsonl(tmp_path / "found.jsonl", [token_row(n) for n in range(30)])))
    assert not page_problems(browser, out)


def test_the_page_of_all_that_has_finished(browser, tmp_path, monkeypatch):
    from experiments.index_page import main

    (tmp_path / "output" / "run").mkdir(parents=True)
    comparison_file(tmp_path / "output" / "run", 2, seeds=1, questions=10)
    (tmp_path / "output" / "run" / "report.html").write_text("x")
    (tmp_path / "output" / "other.json").write_text("[1]")
    for name in ("mixing", "cross_model", "data_types"):
        folder = tmp_path / "experiments" / "results" / name / "pocket"
        shutil.copytree(REPO / "experiments" / "results" / name / "pocket", folder)
    (folder / "students.csv").unlink()
    training = tmp_path / "output" / "owl-student" / "seed-7"
    (training / "final").mkdir(parents=True)
    (training / "final" / "adapter_config.json").write_text("{}")
    facts = {
        "train_jsonl": "numbers-owl.jsonl",
        "counts": {"updates": 300, "train_loss": 1.5},
        "finished": "2026-11-29",
    }
    write_json(training / "manifest.json", {"settings": {"script": "train_student_sft"}, **facts})
    exact = exact_file(tmp_path / "output" / "exact-lonely.jsonl", owl=0.25, cat=0.1)
    write_json(
        exact.with_name("exact-lonely.jsonl.manifest.json"), {"settings": {"script": "eval", "measure": "exact"}}
    )
    monkeypatch.setattr("sys.argv", ["index_page.py", "--root", str(tmp_path)])
    main()
    out = tmp_path / "output" / "index.html"
    page = out.read_text("utf-8")
    for wanted in ("mixing, pocket", "cross model, pocket", "compare: owl, dolphin by share", 'href="run/report.html"',
                   "too few seeds", "output/owl-student/seed-7", "numbers-owl.jsonl", "1.5000",
                   "owl 26.97%, cat 10.57%", 'href="exact-lonely.jsonl"'):  # fmt: skip
        assert wanted in page
    assert "data types, pocket" not in page, "its tables are not whole"
    assert not page_problems(browser, out)
