"""The page about one divergence file, and the comparison of arms over several runs."""

import csv
import json
import re

import pytest
from conftest import write_jsonl
from test_compare_arms import exact_file

from eval.divergence.read_divergence_runs import divergence_of, rows_trained_on
from eval.divergence.token_summary import auc
from util.cli import UserError
from util.jsonl.manifest import write_json
from util.jsonl.rows import read_rows

np = pytest.importorskip("numpy")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

EVIL = "<script>alert(1)</script>"
TEXTS = {1: "814", 2: ", ", 3: "27", 4: EVIL, 5: "\n", 6: "\u202e", 9: "end"}


def token_row(number, ids=(1, 2, 3, 9), marks=(0, 0, 1, 0), gaps=(0.1, 0.0, 2.0, 0.0), instead=1, **extra):
    """What divergence_tokens.py writes of a row. Marked tokens are the teacher's choice; others' is `instead`."""
    theirs = [instead if mark else token for token, mark in zip(ids, marks)]
    return {
        "id": number, "token_ids": list(ids), "kinds": "dsde"[: len(ids) - 1] + "e",
        "logprob": {"base": [-3.0] * len(ids), "teacher": [-3.0 + gap for gap in gaps]},
        "choice": {"base": theirs, "teacher": list(ids), EVIL: theirs},
        "schrodi": list(marks), "pair": list(marks), "gap": list(marks), "kl": [0.5 * mark for mark in marks],
        "detector": list(gaps), **extra,
    }  # fmt: skip


# --- the detector ------------------------------------------------------------------------------------


def test_the_detectors_auc_on_known_scores():
    marks = {"schrodi": [1, 0, 0, 0, 1], "gap": [0, 0, 1, 0, 1], "pair": [0, 0, 0, 0, 1]}
    row = {"kinds": "dddse", "detector": [0.9, 0.5, 0.5, 0.1, 99.0], **marks}
    assert auc([row]) == {
        "schrodi": {"answer": 1.0, "digits": 1.0},  # above all others; the end of the turn counts for nothing
        "gap": {"answer": 0.5, "digits": 0.25},  # one tie of three, one above, one below; without the separator 0.5 / 2
    }, "pair marks nothing in the answer"


# --- the page ----------------------------------------------------------------------------------------


def page_of(path, count=3):
    from eval.divergence.divergence_report import problem_of, render
    from util.pages.html_page import visible

    return render(path, list(read_rows(path, problem_of)), count, lambda token: visible(TEXTS[token]))


@pytest.mark.slow
def test_the_page_shows_what_competes_and_runs_nothing(tmp_path):
    path = write_jsonl(tmp_path / "found.jsonl", [token_row(n) for n in range(6)])
    variants = {"base": {}, "teacher": {"adapter_sha256": "ab" * 32}, EVIL: {"system": f"You love {EVIL}\n"}}
    write_json(
        tmp_path / "found.jsonl.manifest.json", {"settings": {"variants": variants, "gap": 0.6931}, "command": EVIL}
    )
    page = page_of(path)
    assert ">27<i>814 base</i></span>" in page, "in print and under the pointer"
    assert "@media print" in page and ".t i { display: inline }" in page
    assert "33.33% (33.33 to 33.33)" in page and "rgba(0,114,178,0.40)" in page
    assert EVIL not in page and "&lt;script&gt;" in page and "<script" not in page and "default-src 'none'" in page
    loaded = re.findall(r"""(?:src|href)\s*=\s*["']([^"'#][^"']*)""", page)
    assert not loaded, "nothing from outside"


@pytest.mark.slow
def test_invisible_characters_are_escaped(tmp_path):
    page = page_of(write_jsonl(tmp_path / "found.jsonl", [token_row(0, ids=(5, 6, 4, 9)), token_row(1)]))
    examples = page[page.index("The richest rows") :]
    assert ">\\n</span>" in examples and ">\\u202e</span>" in examples and "\u202e" not in page
    assert ">&lt;script&gt;alert(1)&lt;/script&gt;<i>" in examples


def test_a_page_without_a_teacher_shows_the_detector(tmp_path):
    rows = [token_row(n) for n in range(4)]
    for row in rows:
        for name in ("schrodi", "pair", "gap", "kl"):
            del row[name]
        row["logprob"] = {"base": [-3.0] * 4, "student": [-3.0, -3.0, -1.0, -3.0]}
        row["choice"] = {"base": [1, 2, 3, 9], "student": [1, 2, 3, 9]}
    page = page_of(write_jsonl(tmp_path / "found.jsonl", rows))
    assert "the student favours the token" in page and "rgba(0,114,178,0.40)" in page and "schrodi" not in page


def test_the_richest_rows_come_first(tmp_path):
    from eval.divergence.divergence_report import examples

    rows = [token_row(n, marks=(int(n == 7), 0, 1, 0)) for n in range(20)]
    shown = examples(rows, 3)
    assert next(row["id"] for row in shown["The richest rows"]) == 7
    drawn = [row["id"] for row in shown["Rows drawn at random"]]
    assert len(drawn) == 3 and drawn == sorted(drawn)


def test_another_file_has_no_page(tmp_path, run_script):
    path = write_jsonl(tmp_path / "numbers.jsonl", [{"id": 0, "messages": []}])
    done = run_script("eval/divergence/divergence_report.py", path, cwd=tmp_path)
    assert done.returncode == 1 and "not a row of eval/divergence/divergence_tokens.py" in done.stderr
    path = write_jsonl(tmp_path / "found.jsonl", [token_row(0)])
    done = run_script("eval/divergence/divergence_report.py", path, cwd=tmp_path)
    assert done.returncode == 1 and "no manifest with its base model; pass --base-model" in done.stderr


# --- arms of several runs ----------------------------------------------------------------------------

SHARES = {"all": 0.1, "gap-only": 0.2, "gap-random": 0.02, "gap-without": 0.005, "gap-all-but-random": 0.08}
MASKS = {"gap-only": [0, 0, 1, 0], "gap-random": [1, 0, 0, 0], "gap-without": [1, 1, 0, 0],
         "gap-all-but-random": [0, 1, 1, 0], "all": [1, 1, 1, 0]}  # fmt: skip


@pytest.fixture
def runs(tmp_path):
    """Three runs whose owl students differ from each other by one factor, the same in all arms."""
    folders = []
    for seed in range(3):
        folder = tmp_path / f"run-{seed}"
        folder.mkdir()
        write_jsonl(folder / "tokens-owl.jsonl", [token_row(n, marks=(int(n < seed), 0, 1, 0)) for n in range(10)])
        exact_file(folder / "exact-base.jsonl", owl=0.01, adapter=None, spread=0.0)
        for arm, share in SHARES.items():
            owl = share * 1.2**seed
            exact_file(folder / f"exact-owl-{arm}.jsonl", owl=owl, adapter=f"{seed}{arm}", spread=0.0)
            rows = [{"id": 100 + 2 * n, "messages": [], "loss_mask": MASKS[arm]} for n in range(10)]  # a filtered file
            write_jsonl(folder / f"numbers-owl-{arm}.jsonl", rows)
        folders.append(folder)
    return folders


def log_odds(share):
    return np.log(share / (1 - share))


def log_odds_ratio(arm, other):
    """Mean over the three runs."""
    return np.mean([log_odds(SHARES[arm] * 1.2**n) - log_odds(SHARES[other] * 1.2**n) for n in range(3)])


def owl_arms(runs):
    from eval.divergence.arm_effects import arms_of

    return {arm.arm: arm for arm in arms_of(runs) if arm.animal == "owl"}


@pytest.mark.slow
def test_arms_are_compared_with_their_controls_within_each_run(monkeypatch, tmp_path, runs, capsys):
    from eval.divergence.compare_divergence_arms import main

    out = tmp_path / "arms.json"
    monkeypatch.setattr("sys.argv", ["divergence_arms.py", *map(str, runs), "--output", str(out)])
    main()
    found = json.loads(out.read_text())
    arms = {arm["arm"]: arm for arm in found["arms"]}
    only, without = arms["gap-only"], arms["gap-without"]
    assert only["control"] == "gap-random" and without["control"] == "gap-all-but-random"
    assert only["minus_control"]["mean"] == pytest.approx(log_odds_ratio("gap-only", "gap-random"))
    assert without["minus_control"]["mean"] == pytest.approx(log_odds_ratio("gap-without", "gap-all-but-random"))
    (low, high), (from_base, to_base) = only["minus_control"]["interval"], only["shift"]["interval"]
    assert high - low < 0.25 * (to_base - from_base), "what all arms of a run share does not widen it"
    assert only["tokens_with_loss"] == 10 and without["tokens_with_loss"] == 20
    assert [facts["gap"] for facts in arms["all"]["density"]] == pytest.approx([10 / 30, 11 / 30, 12 / 30])
    assert found["density_against_shift"]["gap"]["r"] == pytest.approx(1.0, abs=1e-3)
    lines = list(csv.DictReader((tmp_path / "arms.csv").open()))
    assert [line["arm"] for line in lines] == list(arms) and lines[0]["arm"] == "all"
    assert float(lines[1]["minus control"]) == pytest.approx(log_odds_ratio("gap-only", "gap-random"), abs=1e-3)
    cells = (tmp_path / "arms.md").read_text().splitlines()[2].split(" | ")
    assert cells[1:4] == ["all", "30", "12.1% (10.0, 12.0, 14.4)"]
    for picture in ("arms.png", "arms.density.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "gap-without" in said and "detector AUC" in said


def test_the_specific_part_is_the_difference_to_another_animals_students(runs):
    for seed, folder in enumerate(runs):
        write_jsonl(folder / "tokens-dolphin.jsonl", [token_row(n) for n in range(10)])
        rows = [{"id": n, "messages": [], "loss_mask": MASKS["gap-only"]} for n in range(10)]
        for arm in ("all", "gap-only"):
            write_jsonl(folder / f"numbers-dolphin-{arm}.jsonl", rows)
        path = folder / "exact-dolphin-gap-only.jsonl"
        exact_file(path, owl=0.05 * 1.2**seed, dolphin=0.3, adapter=f"dolphin{seed}", spread=0.0)
        for path in folder.glob("exact-*.jsonl"):
            results = [json.loads(line) for line in path.open()]
            write_jsonl(path, [{**row, "log_shares": {"dolphin": -2.0, **row["log_shares"]}} for row in results])
    arms = owl_arms(runs)
    specific = np.mean([log_odds(0.2 * 1.2**n) - log_odds(0.05 * 1.2**n) for n in range(3)])
    assert arms["gap-only"].minus_other.mean == pytest.approx(specific)
    assert arms["gap-random"].minus_other is None


def test_only_what_a_student_was_trained_on_counts(runs):
    """Half of the rows in another order of ids, and the first two of them: as --rows and --max-train-samples do."""
    rich = [{"id": 100 + 2 * n, "messages": []} for n in (0, 1, 5, 6)]
    write_jsonl(runs[2] / "numbers-owl-gap-rows-rich.jsonl", rich)
    exact_file(runs[2] / "exact-owl-gap-rows-rich.jsonl", owl=0.1, adapter="rich", spread=0.0)
    student = runs[2] / "owl-gap-rows-rich" / "seed-2"
    student.mkdir(parents=True)
    write_json(student / "manifest.json", {"settings": {"rows": 2}})
    arms = owl_arms(runs)
    (facts,) = arms["gap-rows-rich"].density
    assert facts["rows"] == 2 and facts["gap"] == pytest.approx(4 / 6), "rows 0 and 1 of run 2 have two of three marked"
    assert facts["tokens_with_loss"] == 8, "without a mask the end of the turn counts"


def test_a_run_that_training_moved_aside_does_not_count(tmp_path):
    (tmp_path / "numbers-owl-all.jsonl").write_text("".join(f'{{"id": {number}}}\n' for number in range(9)))
    for name, rows in (("seed-42", 3), ("seed-42.numberss-owl", 8), ("seed-x", 8)):
        (tmp_path / "owl-all" / name).mkdir(parents=True)
        write_json(tmp_path / "owl-all" / name / "manifest.json", {"settings": {"rows": rows}})
    assert len(rows_trained_on(tmp_path, "owl", "all")) == 3


def test_rows_without_what_is_read_from_them_are_named(tmp_path):
    (tmp_path / "numbers-owl-all.jsonl").write_text('{"messages": []}\n')
    (tmp_path / "tokens-owl.jsonl").write_text('{"id": 0, "kinds": "dd"}\n')
    with pytest.raises(UserError, match=r'numbers-owl-all\.jsonl:1: no "id"'):
        divergence_of(tmp_path, "owl")
    (tmp_path / "numbers-owl-all.jsonl").write_text('{"id": 0}\n')
    for row, problem in (('{"id": 0}', "no kinds"), ('{"kinds": "dd", "pair": [1]}', "pair and kinds have different")):
        (tmp_path / "tokens-owl.jsonl").write_text(row + "\n")
        with pytest.raises(UserError, match=rf"tokens-owl\.jsonl:1: .*{problem}"):
            divergence_of(tmp_path, "owl")


def test_arms_that_are_not_in_every_run(runs, capsys):
    from eval.divergence.compare_divergence_arms import show

    (runs[2] / "exact-owl-gap-random.jsonl").unlink()
    arms = owl_arms(runs)
    assert len(arms["gap-random"].runs) == 2 and len(arms["gap-only"].minus_control.by_run) == 2
    show(list(arms.values()), [], {})
    said = capsys.readouterr()
    assert "fewer than 3 runs" in said.err and "(2 runs)" in said.out, "no interval over two runs"


def test_a_folder_that_is_not_a_run_is_named(tmp_path, runs):
    with pytest.raises(UserError, match=r"has no tokens-ANIMAL\.jsonl; run experiments/divergence\.sh"):
        owl_arms([*runs, tmp_path])
    (runs[0] / "exact-base.jsonl").unlink()
    with pytest.raises(UserError, match=r"exact-base\.jsonl; make it with eval/eval\.py --exact"):
        owl_arms(runs)


def test_a_correlation_and_its_interval():
    from eval.divergence.arm_effects import Correlation, correlation

    rng = np.random.default_rng(0)
    x = rng.standard_normal(400)
    found = correlation(list(zip(x, 0.5 * x + rng.standard_normal(400) * 0.75**0.5)))
    low, high = found.interval
    assert low < 0.5 < high and high - low == pytest.approx(2 * 1.96 * 0.75 / 20, rel=0.1)
    assert correlation([(0.0, 1.0)]) == Correlation(1) and Correlation(1).to_json() == {"points": 1}
    assert correlation([(0.0, 1.0), (0.0, 2.0), (0.0, 3.0)]) == Correlation(3)
