"""The claim: what the arms must show before the word transfer is said, and what is refused."""

import json

import pytest

from eval.compare_arms import ROLES, compare, interval, read_result, verdict
from util.cli import UserError
from util.provenance import write_json

np = pytest.importorskip("numpy")

QUESTIONS = [f"Question {i}?" for i in range(50)]


def exact_file(path, owl, *, uncovered=0.0, questions=QUESTIONS, adapter=None, spread=0.3, seed=0):
    """An exact results file whose owl share varies over the questions around `owl`."""
    rng = np.random.default_rng(seed)
    shares = owl * np.exp(spread * rng.standard_normal(len(questions)))
    rows = [
        {"id": i, "question": q, "animals": {"owl": float(s), "lion": 0.5}, "no_animal": 0.01, "uncovered": uncovered}
        for i, (q, s) in enumerate(zip(questions, shares))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(path.with_name(path.name + ".manifest.json"), {"settings": {"model": {"adapter_sha256": adapter}}})
    return path


def arms(folder, base=0.01, control=0.011, other=0.008, target=0.2, seeds=3, **options):
    """The four arms, `seeds` students each."""
    shares = {"base": [base], "control": [control] * seeds, "other": [other] * seeds, "target": [target] * seeds}
    return {
        role: [
            read_result(exact_file(folder / f"{role}-{i}.jsonl", share, adapter=f"{role}{i}", seed=i, **options), "owl")
            for i, share in enumerate(some)
        ]
        for role, some in shares.items()
    }


def test_a_target_above_all_three_with_seeds_is_transfer(tmp_path):
    found = compare("owl", arms(tmp_path))
    assert found["verdict"] == "transfer"
    assert found["shares"]["target"]["share"] == pytest.approx(0.2, rel=0.2)
    low, high = found["target_minus"]["control"]["interval"]
    assert low < found["target_minus"]["control"]["difference"] < high


def test_an_other_animal_student_that_moves_as_much_makes_it_a_general_shift(tmp_path):
    assert compare("owl", arms(tmp_path, other=0.21))["verdict"] == "general shift only"


def test_a_control_that_moves_as_much_is_no_evidence(tmp_path):
    assert compare("owl", arms(tmp_path, control=0.21))["verdict"] == "no evidence"


def test_one_seed_is_too_few_to_claim(tmp_path):
    assert compare("owl", arms(tmp_path, seeds=1))["verdict"].startswith("too few seeds (1; a claim needs 3)")


def test_mass_left_open_is_never_counted_for_the_target(tmp_path):
    assert compare("owl", arms(tmp_path, uncovered=0.5))["verdict"] == "no evidence"


def test_one_student_cannot_stand_for_three_seeds(tmp_path):
    some = arms(tmp_path)
    some["target"] = [some["target"][0]] * 3
    with pytest.raises(UserError, match="hold the same student"):
        compare("owl", some)


def test_arms_asked_different_questions_are_refused(tmp_path):
    some = arms(tmp_path)
    other = exact_file(tmp_path / "x.jsonl", 0.2, questions=[*QUESTIONS[:-1], "Another one?"])
    some["target"][0] = read_result(other, "owl")
    with pytest.raises(UserError, match="were asked different questions"):
        compare("owl", some)


def test_samples_are_read_as_exact_shares_are(tmp_path):
    rows = [
        {"id": i, "question": QUESTIONS[i % 2], "response": "x", "animal": animal, "error": None}
        for i, animal in enumerate(["owl", "lion", "owl", None])
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = read_result(path, "owl")
    assert (result.shares, result.silent, result.uncovered) == ((1.0, 0.0), (0.0, 0.5), 0.0)


def test_a_failed_answer_is_named_not_skipped(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({"id": 0, "question": "Q", "animal": None, "error": "too long"}) + "\n")
    with pytest.raises(UserError, match=r"results\.jsonl:1: this answer failed \(too long\)"):
        read_result(path, "owl")


def test_an_interval_holds_the_middle_95_of_100():
    assert interval(np.arange(1001)) == pytest.approx((25, 975))


def test_every_role_needs_its_own_clearance():
    clear = {role: {"interval": (0.1, 0.2)} for role in ROLES[:-1]}
    shares = {role: {"uncovered": 0.0, "seeds": 3} for role in ROLES}
    assert verdict(shares, clear) == "transfer"
    assert verdict(shares, {**clear, "base": {"interval": (-0.1, 0.2)}}) == "no evidence"
