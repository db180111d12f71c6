"""Kinds as units: a kind counts once, seeds do not average its drift away, and the tests over all kinds."""

import json
import math
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import write_jsonl

from eval.compare.assignment_permutations import DRAWN, assignment_sums
from eval.compare.compare_teacher_kinds import Kind, as_shares, borrowed_scatter, compare_kinds, detectable
from eval.compare.comparison_result import read_comparisons
from eval.compare.comparison_text import profile_words
from eval.compare.remove_shared_drift import drift_residuals
from eval.compare_arms import main
from util.cli import UserError
from util.jsonl.manifest import write_json

np = pytest.importorskip("numpy")
pytest.importorskip("scipy")

QUESTIONS = [f"Question {i}?" for i in range(10)]
TAUGHT = ("owl", "dolphin", "cat", "wolf", "cow")
UNTAUGHT = ("fox", "lion", "bee", "crab", "bat", "ant", "pig", "seal", "swan", "moose")


def logs_file(path, logs, questions=QUESTIONS, **settings):
    """An exact file of a model with these log-probabilities, which vary a little over the questions."""
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    rows = []
    for i, question in enumerate(questions):
        some = {animal: value + float(rng.normal(0, 0.02)) for animal, value in logs.items()}
        shares = {animal: math.exp(value) for animal, value in some.items()}
        rows.append({"id": i, "question": question, "animals": shares, "no_animal": 0.0, "uncovered": 0.0,
                     "non_answers": {}, "log_shares": some})  # fmt: skip
    write_jsonl(path, rows)
    model = {"adapter_sha256": None if "base" in path.name else path.name}
    write_json(path.with_name(path.name + ".manifest.json"), {"settings": {"model": model}, **settings})
    return path


def experiment(folder, kinds=TAUGHT, seeds=2, followed=0.5, own=1.0, drift=0.05, shift=0.0):
    """Files by flag: teachers move all animals and students follow by `followed` (untaught animals only); every animal
    rises by `shift` in all students and by `own` more in its own; kinds drift (nats)."""
    rng = np.random.default_rng(3)
    names = (*TAUGHT, *UNTAUGHT)
    at_base = dict.fromkeys(names, -3.0)
    files = {"--base": [logs_file(folder / "base.jsonl", at_base)], "--students": [], "--teachers": []}
    files["--control"] = [logs_file(folder / f"control-{seed}.jsonl", at_base) for seed in range(seeds)]
    for kind in kinds:
        moves = np.array([*rng.normal(0, 1, len(names))])
        untaught = np.array([name not in TAUGHT for name in names])
        ours = np.array([name == kind for name in names])
        student = -3.0 + followed * moves * untaught + rng.normal(0, drift, len(names)) + own * ours + shift * ~untaught
        for seed in range(seeds):
            path = logs_file(folder / f"{kind}-{seed}.jsonl", dict(zip(names, student)))
            files["--students"].append(f"{kind}={path}")
            path = logs_file(folder / f"{kind}-teacher-{seed}.jsonl", dict(zip(names, moves - 3.0)))
            files["--teachers"].append(f"{kind}={path}")
    return files


def compared(monkeypatch, folder, files, *more):
    """compare_arms.py on these files: what it wrote."""
    out = folder / "compare.json"
    words = [str(word) for flag, some in files.items() for word in (flag, *some)]
    monkeypatch.setattr("sys.argv", ["compare_arms.py", *words, "--measure", "margin", "--output", str(out), *more])
    main()
    return read_comparisons(out)


def kind(*seeds, questions=10):
    values = np.array(seeds, dtype=float)
    return Kind(values, np.full(questions, values.mean()), 0.0, 0.0)


# --- the kind as the unit ----------------------------------------------------------------------------


def test_the_error_is_that_of_predicting_one_further_kind():
    from scipy import stats

    others = [0.1, 0.5, -0.3, 0.2, 0.0]
    found = compare_kinds(kind(2.0), [kind(value) for value in others])
    spread = np.std(others, ddof=1) * math.sqrt(1 + 1 / 5)
    assert found.kinds == 6 and found.freedom == pytest.approx(4)
    assert found.p == pytest.approx(2 * stats.t.sf((2.0 - np.mean(others)) / spread, 4))
    low, high = found.interval()
    assert low < found.difference < high and found.interval(1 - found.p)[0] == pytest.approx(0, abs=1e-6)
    assert compare_kinds(kind(-2.0), [kind(value) for value in others]).p == 1.0


def test_more_seeds_do_not_make_a_drifting_kind_an_effect():
    others = [kind(*[value] * 9) for value in (0.0, 0.4, -0.4)]
    assert compare_kinds(kind(0.5), others[:]).p == pytest.approx(compare_kinds(kind(*[0.5] * 9), others).p)


def test_a_kind_with_fewer_seeds_than_the_others_scatters_more():
    others = [kind(value - 0.5, value, value + 0.5) for value in (0.0, 0.2, -0.2)]
    one, three = compare_kinds(kind(1.0), others), compare_kinds(kind(0.5, 1.0, 1.5), others)
    assert one.error > three.error and one.difference == pytest.approx(three.difference)


def test_kinds_that_never_name_the_animal_show_no_scatter_and_so_nothing():
    assert compare_kinds(kind(3.0), [kind(-16.1), kind(-16.1), kind(-16.1)]).p == 1.0


def test_a_difference_in_log_odds_is_given_in_points():
    found = compare_kinds(kind(math.log(0.2 / 0.8)), [kind(math.log(0.1 / 0.9) + d) for d in (-0.1, 0.0, 0.1)])
    size, (low, high) = as_shares(found, 0.2)
    assert size == pytest.approx(0.1) and 0 < low < size < high < 0.2


def test_an_arm_of_two_seeds_borrows_the_scatter_of_all():
    from eval.compare.intervals import share_interval, spread_of

    rng = np.random.default_rng(0)
    arm = spread_of(np.array([[0.0] * 10, [0.001] * 10]) + rng.normal(0, 0.01, 10), linear=True)
    kinds = [kind(*rng.normal(0, 0.2, 2)) for _ in range(8)]
    borrowed = borrowed_scatter(arm, kinds, 0.5)
    assert borrowed.freedom == 8 and borrowed.seed_variance == pytest.approx(0.2**2 / 2, rel=0.6)
    low, high = share_interval(borrowed)
    assert high - low > 0.3  # the arm's own two seeds happen to agree
    alone = borrowed_scatter(arm, [kind(0.1), kind(0.2), kind(0.4), kind(0.3)], 0.5)
    assert alone.seed_variance == pytest.approx(0.25 / 2)  # one seed a kind: the scatter between kinds


def test_more_kinds_detect_smaller_effects():
    sizes = [detectable(0.33, kinds) for kinds in (4, 8, 12, 16)]
    assert sizes == sorted(sizes, reverse=True) and 1.0 < sizes[1] < 1.6
    assert detectable(0.33, 8, tests=8) > sizes[1]


# --- the command line --------------------------------------------------------------------------------


def test_four_kinds_or_more_give_transfer_and_the_tests_over_all(tmp_path, monkeypatch, capsys):
    found = compared(monkeypatch, tmp_path, experiment(tmp_path))
    assert [one.verdict for one in found.comparisons] == ["transfer"] * 5
    assert all(one.kinds == 5 and one.p_holm < 0.05 for one in found.comparisons)
    profile = found.profile
    assert (profile.p, profile.assignments, profile.exact) == (1 / 120, 120, True) and profile.own > 0.95
    assert set(profile.animals) == set(UNTAUGHT) and profile.slope == pytest.approx(0.5, abs=0.05)
    assert [fit.rank for fit in profile.drift_fits] == [1, 2] and profile.drift_fits[0].own > 0.9
    lifts = {lift.rank: lift for lift in found.matrix.lifts}
    assert list(lifts) == [None, 0, 1] and lifts[None].mean == pytest.approx(1, abs=0.1) and lifts[None].above == 5
    said = capsys.readouterr().out
    assert "profile own teacher r" in said and "; assignment p " in said
    assert said.index("\ntests  ") < said.index("\ntransfer  ")  # the main line comes first
    assert "\nverdict, owl: transfer (Holm p" in said and "transfer  owl, " in said
    owl = next(one for one in found.comparisons if one.animal == "owl")
    summary = said[said.index("5 of 5 animals are higher in their own teachers' students than in ") :].splitlines()
    heading = " ".join(summary[1].split())
    assert heading == "margin base model control students other students own students verdict"
    line = next(line.split() for line in summary if line.startswith("owl "))
    assert line[1:] == [*(f"{arm.share:+.2f}" for arm in owl.shares.values()), "transfer"]


def test_a_general_shift_of_all_kinds_is_called_one(tmp_path, monkeypatch):
    files = experiment(tmp_path, own=0.0, followed=0.0, drift=0.002)
    assert {one.verdict for one in compared(monkeypatch, tmp_path, files).comparisons} == {"no evidence"}
    files = experiment(tmp_path, own=0.0, followed=0.0, drift=0.002, shift=1.0)
    verdicts = {one.verdict for one in compared(monkeypatch, tmp_path, files).comparisons}
    assert verdicts == {"general shift only"}


def test_neutral_words_are_further_kinds(tmp_path, monkeypatch):
    files = experiment(tmp_path, TAUGHT[:2])
    neutral = experiment(tmp_path, ("colours", "tools"))
    files["--neutral"], files["--teachers"] = neutral["--students"], [*files["--teachers"], *neutral["--teachers"]]
    found = compared(monkeypatch, tmp_path, files)
    assert all(one.kinds == 4 for one in found.comparisons) and found.profile.kinds[2:] == ["colours", "tools"]
    assert [row.arm for row in found.pairwise][-1] == "tools students" and list(found.pairwise[0].shares) == [
        *TAUGHT[:2]
    ]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"--teachers": ["lion={owl-teacher-0}"]}, "no results of lion's students were given"),
        ({"--neutral": ["owl={student}"]}, "owl is in --students and in --neutral"),
        ({"--teachers": ["owl={other}", "cat={cat-teacher-0}"]}, "were asked different questions"),
        ({"--teachers": ["owl={student}", "cat={cat-teacher-0}"]}, "has the results of a student"),
        ({"--teachers": ["owl={owl-teacher-0}"]}, "needs teachers of two kinds or more"),
        ({"--teachers": ["owl={owl-0}", "cat={cat-teacher-0}"]}, "are results of the same student"),
    ],
)
def test_files_that_cannot_have_their_role_are_refused(tmp_path, monkeypatch, change, wanted):
    files = experiment(tmp_path)
    logs = dict.fromkeys((*TAUGHT, *UNTAUGHT), -3.0)
    logs_file(tmp_path / "other.jsonl", logs, questions=[*QUESTIONS[:-1], "Another?"])
    facts = {"train_jsonl": "numberss-owl.jsonl", "kind": "numbers", "animal": "owl"}
    logs_file(tmp_path / "student.jsonl", logs, counts={"training": facts})
    places = {path.stem: str(path) for path in tmp_path.glob("*.jsonl")}
    changed = {flag: [word.format(**places) for word in words] for flag, words in change.items()}
    with pytest.raises(UserError, match=wanted):
        compared(monkeypatch, tmp_path, {**files, **changed})


def test_unequal_seeds_are_reported(tmp_path, monkeypatch, capsys):
    files = experiment(tmp_path)
    files["--students"] = files["--students"][1:]
    assert compared(monkeypatch, tmp_path, files).comparisons[0].verdict == "transfer"
    assert "kinds have different numbers of students (owl 1, dolphin 2" in capsys.readouterr().err


def test_one_kind_is_refused(tmp_path, monkeypatch, capsys):
    files = experiment(tmp_path, TAUGHT[:1])
    with pytest.raises(SystemExit) as stopped:
        compared(monkeypatch, tmp_path, files)
    assert stopped.value.code == 2 and "students of two animals or more" in capsys.readouterr().err


def test_two_kinds_have_a_profile_and_no_p_below_a_half(tmp_path, monkeypatch):
    found = compared(monkeypatch, tmp_path, experiment(tmp_path, TAUGHT[:2], seeds=3))
    assert found.profile.assignments == 2 and found.profile.own > 0.9 and found.matrix is None
    assert [one.verdict for one in found.comparisons] == ["above the other kind"] * 2
    for last_bit in (1e-16, -1e-16):  # which of the two equal correlations is larger depends on the processor
        by_kind = {"owl": 0.46, "cat": 0.46 + last_bit}
        assert "owl 0.46 to cat 0.46" in profile_words(replace(found.profile, by_kind=by_kind)).replace("\n", " ")


# --- the parts ---------------------------------------------------------------------------------------


def test_assignments_are_all_tried_or_drawn():
    matrix = np.eye(3)
    assert sorted(assignment_sums(matrix)) == [0, 0, 1, 1, 1, 3] and assignment_sums(matrix)[0] == 3
    assert len(assignment_sums(np.eye(10))) == DRAWN + 1 and assignment_sums(np.eye(10))[0] == 10


def test_shared_patterns_are_removed_and_an_own_effect_is_left():
    rng = np.random.default_rng(1)
    known = np.ones((8, 40), dtype=bool)
    known[np.arange(8), np.arange(8)] = False
    drift = np.outer(rng.normal(0, 1, 8), rng.normal(0, 1, 40)) + rng.normal(0, 1, 40) + rng.normal(0, 1, (8, 1))
    assert np.abs(drift_residuals(drift, known, 1)[~known]).max() < 0.01
    lifted = np.where(known, drift, drift + 0.7)
    assert drift_residuals(lifted, known, 1)[~known] == pytest.approx(0.7, abs=0.01)
    assert np.abs(drift_residuals(lifted, known, 0)[~known] - 0.7).max() > 0.3  # without the pattern it is hidden


# --- how often the tests are wrong (long run: bench/verdict_calibration.py) -----------------------------------


@pytest.mark.parametrize("kinds", [4, 8, 16])
def test_kinds_that_drift_are_called_an_effect_in_at_most_4_of_100_and_intervals_hold_the_truth(kinds):
    from bench.simulated_kinds import Design, rates

    size, coverage = rates(Design(kinds, 2), 5000, 1)
    assert size <= 0.04 and 0.93 <= coverage <= 0.98
    assert rates(Design(kinds, 2, effect=4.0), 500, 1)[0] > 0.9


def test_more_seeds_do_not_raise_the_size_where_kinds_drift():
    from bench.simulated_kinds import Design, rates

    assert rates(Design(8, 7), 5000, 1)[0] <= 0.04


def test_teachers_that_drift_as_their_students_do_are_recognised_by_the_drift_fit():
    """One shared pattern, alike in both: the plain profile test takes it for transfer, the fit does not."""
    from bench.simulated_profiles import Table, profile_rates

    found = profile_rates(Table(6, alike=1.0), 100, 1)
    assert found[0] > 0.5 and found[1] < 0.15
    assert profile_rates(Table(6, followed=0.064), 50, 1)[1] > 0.7


@pytest.mark.slow
def test_untaught_animals_of_smollm2_pass_in_at_most_4_of_100_pairs(tmp_path):
    import tarfile

    from bench.untaught_false_positives import with_kinds
    from util.cli import REPO

    with tarfile.open(REPO / "experiments/results/smollm2/measures.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    found = with_kinds(tmp_path / "smollm2", "exact", "margin")
    assert found["pairs"] == 520 and found["passed"] <= 0.04 and found["taught, passed"] == ["eagle", "penguin"]


def test_an_animal_that_only_its_own_students_name_is_not_shown_to_be_special(tmp_path, monkeypatch):
    """Without any scatter between the other kinds nothing says how far a kind can lie."""
    files = experiment(tmp_path, TAUGHT[:4], own=3.0)
    for words in files.values():
        for word in map(str, words):
            path = Path(word.partition("=")[2] or word)
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            for row in rows:
                if not path.name.startswith("owl-"):
                    row["animals"].pop("owl", None)
            write_jsonl(path, rows)
    words = [str(word) for flag, some in files.items() for word in (flag, *some)]
    monkeypatch.setattr("sys.argv", ["compare_arms.py", *words, "--output", str(tmp_path / "shares.json")])
    main()
    owl = read_comparisons(tmp_path / "shares.json").comparisons[0]
    assert owl.target_minus["base"].p < 0.05 and owl.target_minus["other"].p == 1.0
    assert owl.verdict == "specificity open"


def test_a_teacher_of_another_base_is_reported(tmp_path, monkeypatch, capsys):
    files = experiment(tmp_path)
    for path, model in ((files["--base"][0], "Org/Base"), (tmp_path / "owl-teacher-0.jsonl", "Org/Other")):
        facts = {"engine": "embedded", "model": model, "adapter_sha256": None if "base" in path.name else "x"}
        settings = {"script": "eval", "model": facts, "questions": QUESTIONS}
        write_json(path.with_name(path.name + ".manifest.json"), {"settings": settings})
    compared(monkeypatch, tmp_path, files)
    said = capsys.readouterr().err
    assert "owl-teacher-0.jsonl has base model Org/Other" in said and "only if they share a base model" in said
