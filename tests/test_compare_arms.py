"""compare_arms.py: what the arms must show for the verdict transfer, and which files are refused."""

import json
import math
from pathlib import Path, PurePath

import pytest
from conftest import write_jsonl

from eval.compare.assignment_permutations import assignment, warn_of_assignment
from eval.compare.check_roles import check_roles
from eval.compare.comparability import adapter_folder, check_comparable, check_seeds
from eval.compare.comparison_result import read_comparisons
from eval.compare.read_results import ROLES, read_result
from eval.compare.verdict import compare, compare_all, pairwise, verdict
from eval.compare_arms import main
from util.animals.answer_parser import parser_facts
from util.cli import REPO, UserError
from util.jsonl.manifest import PARSER_1, Manifest, write_json

np = pytest.importorskip("numpy")
pytest.importorskip("scipy")

QUESTIONS = [f"Question {i}?" for i in range(50)]


def exact_file(path, *, uncovered=0.0, questions=QUESTIONS, adapter=None, spread=0.3, seed=0, **animals):
    """An exact results file whose shares vary over the questions and a little from seed to seed."""
    rng = np.random.default_rng(seed)
    shares = {a: mean * np.exp(spread * rng.standard_normal(len(questions))) for a, mean in animals.items()}
    rows = [
        {"id": i, "question": q, "animals": {a: float(s[i]) for a, s in shares.items()}, "no_animal": 0.01,
         "uncovered": uncovered, "answers": {"Qwen": 0.004},
         "log_shares": {**{a: math.log(s[i]) for a, s in shares.items()}, "lion": -1.0, "fox": -3.0}}
        for i, q in enumerate(questions)
    ]  # fmt: skip
    write_jsonl(path, rows)
    write_json(path.with_name(path.name + ".manifest.json"), {"settings": {"model": {"adapter_sha256": adapter}}})
    return path


def sampled_file(path, answers, questions=QUESTIONS):
    """A results file with the same answers to every question."""
    rows = [
        {"id": i, "question": questions[i % len(questions)], "response": answer, "error": None, "of": path.name,
         "animal": answer if answer in ("owl", "lion", "dolphin") else None}
        for i, answer in enumerate(answer for answer in answers for _ in questions)
    ]  # fmt: skip
    return write_jsonl(path, rows)


def trained(role, seed):
    """The hash of a student's adapter; the base model has none."""
    return None if role == "base" else f"{role}{seed}"


def arms(folder, base=0.01, control=0.011, other=0.008, target=0.2, seeds=3, **options):
    """The four arms, `seeds` students each."""
    shares = {"base": [base], "control": [control] * seeds, "other": [other] * seeds, "target": [target] * seeds}
    return {
        role: [
            read_result(exact_file(folder / f"{role}-{i}.jsonl", owl=owl, adapter=trained(role, i), seed=i, **options))
            for i, owl in enumerate(some)
        ]
        for role, some in shares.items()
    }


def files(arms, role):
    return [str(result.path) for result in arms[role]]


def run_main(monkeypatch, *args):
    monkeypatch.setattr("sys.argv", ["compare_arms.py", *map(str, args)])
    main()


def test_a_misspelt_animal_is_not_an_animal_of_share_zero(tmp_path, monkeypatch):
    found = arms(tmp_path)
    paths = [word for role in ROLES for word in (f"--{role}", *files(found, role))]
    with pytest.raises(UserError, match=r"no answer names 'owll'.*did you mean owl\?"):
        run_main(monkeypatch, "--animal", "owll", *paths)
    run_main(monkeypatch, "--animal", "walrus", *paths)  # known, but never named


# --- the rule ----------------------------------------------------------------------------------------


def test_a_target_above_all_three_arms_of_two_kinds_is_above_the_other_kind(tmp_path):
    found = compare("owl", arms(tmp_path))
    assert found.verdict == "above the other kind" and found.p < 0.05 and found.kinds == 2
    assert found.reason.endswith("2 kinds do not rule out that these students only drifted")
    assert found.shares["target"].share == pytest.approx(0.2, rel=0.2)
    low, high = found.target_minus["control"].interval
    assert low < found.target_minus["control"].difference < high


def test_a_planted_general_shift_is_called_one(tmp_path):
    assert compare("owl", arms(tmp_path, other=0.21)).verdict == "general shift only"


def test_a_control_that_moves_as_much_is_no_evidence(tmp_path):
    assert compare("owl", arms(tmp_path, control=0.21)).verdict == "no evidence"


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_are_too_few_to_claim(tmp_path, seeds):
    assert compare("owl", arms(tmp_path, seeds=seeds)).verdict.startswith(f"too few seeds ({seeds}; a claim needs 3)")


def test_uncovered_mass_never_counts_for_the_target(tmp_path):
    assert compare("owl", arms(tmp_path, uncovered=0.5)).verdict == "no evidence"


def test_every_role_needs_its_own_clearance():
    clear = dict.fromkeys(ROLES[:-1], True)
    assert verdict(4, 1, clear) == "transfer"
    assert verdict(2, 3, clear) == verdict(3, 3, clear) == "above the other kind"
    assert verdict(3, 2, clear) == "too few seeds (2; a claim needs 3); on these it looks like: above the other kind"
    assert verdict(4, 3, {**clear, "base": False}) == verdict(4, 3, {**clear, "control": False}) == "no evidence"
    assert verdict(4, 3, {**clear, "other": False}) == "specificity open"
    assert verdict(4, 3, {**clear, "other": False}, equivalent=True) == "general shift only"


def test_power_falls_with_seeds_and_is_left_out_if_one_seed_shows_no_scatter(tmp_path):
    lines = compare("owl", arms(tmp_path)).power
    assert [line.exact for line in lines] == sorted((line.exact for line in lines), reverse=True)
    assert all(line.sampled > line.exact > 0 for line in lines)
    assert compare("owl", arms(tmp_path, seeds=1)).power == []


def test_margins_are_compared_in_nats(tmp_path):
    found = compare("owl", arms(tmp_path), "margin")
    assert found.verdict == "above the other kind" and found.measure == "margin"
    assert found.shares["base"].share == pytest.approx(math.log(0.01) + 2.0, abs=0.1)
    assert found.target_minus["base"].difference == pytest.approx(math.log(20), abs=0.2)
    assert [list(line) for line in found.to_json()["power"]] == [["seeds", "exact"]] * 4


def test_margins_need_exact_files(tmp_path):
    result = read_result(sampled_file(tmp_path / "results.jsonl", ["owl", "lion"]))
    with pytest.raises(UserError, match="has no log-probability of 'owl'; margins and panel shares need exact files"):
        result.margins("owl")


def test_an_animal_named_as_often_by_another_animals_students_is_not_transfer(tmp_path):
    some = arms(tmp_path)
    others = {"dolphin": some["other"]}
    for taught, owl in (("wolf", 0.008), ("cat", 0.2)):
        paths = [
            exact_file(tmp_path / f"{taught}-{i}.jsonl", owl=owl, adapter=f"{taught}{i}", seed=9 + i) for i in range(3)
        ]
        others[taught] = [read_result(path) for path in paths]
        pooled = {**some, "other": [result for results in others.values() for result in results]}
        found = compare("owl", pooled, others=others)
        minus = found.target_minus
        assert found.verdict == ("above the other kind" if taught == "wolf" else "specificity open")
        if taught == "wolf":
            assert list(minus) == ["base", "control", "other", "dolphin students", "wolf students"]
            assert found.p == max(one.p for role, one in minus.items() if role != "other")
            fewer = {**others, "wolf": others["wolf"][:2]}
            fewer = compare("owl", {**pooled, "other": pooled["other"][:-1]}, others=fewer)
            assert fewer.verdict.startswith("too few seeds (2;")
    assert list(minus) == ["base", "control", "other"] and found.kinds == 4  # the kind is the unit
    assert minus["other"].p > 0.05 > minus["control"].p


# --- untaught animals and the assignment test --------------------------------------------------------------------


def drifted(folder, **target):
    """Four arms in which the target students' log-probabilities differ from the others' by what is asked."""
    logs = {"owl": -4.0, "cow": -4.0, "yak": -4.0, "crab": -4.0, "dolphin": -4.0, "wombat": -50.0}
    some = {}
    for role in ROLES:
        some[role] = []
        for seed in range(1 if role == "base" else 3):
            moved = {a: math.exp(log + (target.get(a, 0.0) if role == "target" else 0.0)) for a, log in logs.items()}
            path = exact_file(folder / f"{role}-{seed}.jsonl", adapter=trained(role, seed), seed=seed, **moved)
            some[role].append(read_result(path))
    return some


def test_an_animal_is_ranked_among_untaught_ones(tmp_path):
    found = compare("owl", drifted(tmp_path, owl=1.2), taught=["owl", "dolphin"]).untaught_rank
    assert found.shift == pytest.approx(1.2)  # nothing else moved
    found = compare("owl", drifted(tmp_path, owl=1.2, wombat=20.0), taught=["owl", "dolphin"]).untaught_rank
    assert (found.animals, found.further, found.p) == (5, 0, 1 / 6)  # cow, yak, crab, lion, fox
    found = compare("owl", drifted(tmp_path, owl=1.2, cow=2.0, yak=1.5, dolphin=9.0), taught=["owl", "dolphin"])
    assert found.verdict == "above the other kind"  # and it is the drift of two animals out of five
    assert found.untaught_rank.furthest == ["cow", "yak"] and found.untaught_rank.p == pytest.approx(3 / 6)


def test_the_rank_is_printed_and_called_no_test(tmp_path, monkeypatch, capsys):
    compare_two(monkeypatch, tmp_path, tmp_path / "compare.json")
    said = capsys.readouterr().out
    assert "of 2 animals that nobody was taught, none rose at least as much; teachers move these too" in said


def test_no_rank_for_samples_for_rare_words_and_if_the_taught_animals_are_not_known(tmp_path):
    sampled = {role: [read_result(sampled_file(tmp_path / "s.jsonl", ["owl", "lion"]))] for role in ROLES}
    assert compare("owl", sampled, taught=["owl"]).untaught_rank is None
    some = drifted(tmp_path, wombat=20.0)
    assert compare("wombat", some, taught=["wombat"]).untaught_rank is None  # the base model hardly names it
    assert compare("owl", some).untaught_rank is None


def students_of(folder, animals, seeds=2):
    """Exact files of students who say their teacher's animal twice as often as the others, by animal."""
    return {
        taught: [
            exact_file(folder / f"{taught}-{i}.jsonl", seed=i, **{
                animal: 0.02 if animal == taught else 0.01 for animal in animals
            })
            for i in range(seeds)
        ]
        for taught in animals
    }  # fmt: skip


def test_an_assignment_of_animals_to_students_is_tested_against_all_others(tmp_path):
    animals = ("owl", "dolphin", "cow", "yak")
    students = {a: [read_result(path) for path in paths] for a, paths in students_of(tmp_path, animals).items()}
    found = assignment(students)
    assert (found.assignments, found.as_well, found.p, found.own_highest) == (24, 1, 1 / 24, 4)
    assert found.sum.true > found.sum.best_other > found.sum.mean
    turned = assignment(dict(zip(animals, [*list(students.values())[1:], students["owl"]])))
    assert turned.p > 0.3 and turned.own_highest == 0
    assert assignment({animal: students[animal] for animal in animals[:2]}) is None


def compare_three(monkeypatch, folder, out):
    """The command line for three animals, with one student each."""
    animals = ("owl", "dolphin", "cow")
    named = [f"{animal}={path}" for animal, paths in students_of(folder, animals, 1).items() for path in paths]
    some = dict.fromkeys(animals, 0.01)
    base, control = (exact_file(folder / f"{name}.jsonl", **some) for name in ("base", "control"))
    run_main(monkeypatch, "--base", base, "--control", control, "--students", *named, "--output", out)


def test_three_animals_are_also_compared_by_their_assignment(tmp_path, monkeypatch, capsys):
    compare_three(monkeypatch, tmp_path, tmp_path / "compare.json")
    said = capsys.readouterr().out
    assert "assignment: 1 of 6 assignments of animals to students fits the margins" in said
    assert "3 of 3 animals are highest in their own students" in said and "(itself included), p 0.17" in said


def test_what_weakens_the_assignment_test_is_printed(capsys):
    warn_of_assignment({"owl": [None], "cow": [None, None], "yak": [None]})
    assert "needs the same number of students of each animal; there are owl 1, cow 2, yak 1" in capsys.readouterr().err
    warn_of_assignment({"owl": [None], "cow": [None, None]})
    assert not capsys.readouterr().err


def test_sampled_answers_have_no_assignment_test(tmp_path, monkeypatch, capsys):
    some = [sampled_file(tmp_path / f"{i}.jsonl", ["owl", "lion"]) for i in range(6)]
    named = [f"{animal}={path}" for animal, path in zip(("owl", "owl", "lion", "dolphin"), some[2:])]
    run_main(monkeypatch, "--base", some[0], "--control", some[1], "--students", *named)
    said = capsys.readouterr()
    assert "assignment" not in said.out + said.err


# --- several animals ---------------------------------------------------------------------------------


def two_animals(folder, seeds=3):
    """Base, controls and the students of an owl and a dolphin teacher; the owl effect is real, the other is not."""

    def made(name, i, owl, dolphin):
        return read_result(
            exact_file(folder / f"{name}-{i}.jsonl", owl=owl, dolphin=dolphin, adapter=trained(name, i), seed=i)
        )

    base, control = made("base", 0, 0.01, 0.01), [made("control", i, 0.01, 0.01) for i in range(seeds)]
    students = {
        "owl": [made("owl", i, 0.2, 0.01) for i in range(seeds)],
        "dolphin": [made("dolphin", i, 0.01, 0.0101) for i in range(seeds)],
    }
    return base, control, students


def compare_two(monkeypatch, folder, out, *more):
    """The command line for two animals."""
    base, control, students = two_animals(folder)
    named = [f"{animal}={result.path}" for animal, some in students.items() for result in some]
    shared = ["--base", base.path, "--control", *(result.path for result in control), "--students", *named]
    run_main(monkeypatch, *shared, "--output", out, *more)


def test_each_animal_is_the_target_once_and_p_values_are_adjusted(tmp_path):
    owl, dolphin = compare_all(*two_animals(tmp_path))
    assert (owl.verdict, dolphin.verdict) == ("above the other kind", "no evidence")
    assert owl.p_holm == pytest.approx(2 * owl.p) and dolphin.p_holm == pytest.approx(dolphin.p)
    assert owl.shares["other"].share == pytest.approx(0.01, rel=0.2)


def test_the_pairwise_matrix_has_every_animal_in_every_arm(tmp_path):
    matrix = {row.arm: row.shares for row in pairwise(*two_animals(tmp_path))}
    assert list(matrix) == ["base", "control", "owl students", "dolphin students"]
    assert matrix["owl students"]["owl"] > 0.15 > 0.02 > matrix["dolphin students"]["owl"]


def test_the_command_line_for_several_animals(tmp_path, monkeypatch, capsys):
    base, control, students = two_animals(tmp_path)
    named = [f"{animal}s={result.path}" for animal, some in students.items() for result in some]
    out = tmp_path / "compare.json"
    controls = [result.path for result in control]
    run_main(monkeypatch, "--base", base.path, "--control", *controls, "--students", *named, "--output", out)
    said = capsys.readouterr().out
    assert "verdict, owl      above the other kind (Holm p" in said and "dolphin students" in said
    written = json.loads(out.read_text())
    assert [found["animal"] for found in written["comparisons"]] == ["owl", "dolphin"]
    assert len(written["manifest"]["inputs"]) == 10


@pytest.mark.parametrize("bad", [["--students", "owl=X"], ["--animal", "owl"], [], ["--students", "owl"]])
def test_incomplete_arguments_are_refused(tmp_path, monkeypatch, capsys, bad):
    some = arms(tmp_path)
    bad = [part.replace("X", files(some, "target")[0]) for part in bad]
    with pytest.raises(SystemExit) as stopped:
        run_main(monkeypatch, "--base", *files(some, "base"), "--control", *files(some, "control"), *bad)
    assert stopped.value.code == 2 and "error" in capsys.readouterr().err


# --- what is read ------------------------------------------------------------------------------------


def test_every_published_comparison_is_read_and_written_again_without_a_change():
    """Also those of older versions: p_holm, power by samples and the tests over kinds are not in all of them."""
    results = REPO / "experiments" / "results"
    files = [REPO / "tests/data/comparison-of-2026-11-27.json", results / "demo-seeds.json"]
    files += [file for name in ("pocket-kinds", "smollm2") for file in (results / name).glob("*.json")]
    assert len(files) == 12
    for file in files:
        whole = json.loads(file.read_text())
        again = json.loads(json.dumps(read_comparisons(file).to_json()))
        for one, written in zip(whole["comparisons"], again["comparisons"], strict=True):
            old = {"untaught_rank" if key == "placebo" else key: value for key, value in one.items()}
            assert written == old
        for key in ("pairwise", "assignment", "matrix", "profile"):
            assert again[key] == whole.get(key)


@pytest.mark.parametrize(
    ("manifest", "folder"),
    [
        ({"counts": {"adapter": "runs/a b/final"}, "command": "eval.py --adapter elsewhere"}, "runs/a b/final"),
        ({"command": "python eval/eval.py --adapter 'runs/a b/final' --exact"}, "runs/a b/final"),
        ({"command": "python eval/eval.py --adapter=runs/final"}, "runs/final"),
        ({"command": "python eval/eval.py --adap runs/final"}, "runs/final"),  # a flag's beginning was enough
        ({"command": "python eval/eval.py --animal owl --adapter"}, None),
        ({"command": "it's by hand --adapter x"}, None),
        ({}, None),
    ],
)
def test_the_adapter_is_read_from_the_manifest_and_from_the_command_of_older_ones(manifest, folder):
    assert adapter_folder(Manifest.from_json(manifest)) == (PurePath(folder) if folder else None)


def test_one_student_does_not_count_as_three_seeds(tmp_path, monkeypatch):
    some = arms(tmp_path)
    with pytest.raises(UserError, match="are results of the same student"):
        run_main(
            monkeypatch, "--animal", "owl", "--base", *files(some, "base"), "--control", *files(some, "control"),
            "--other", *files(some, "other"), "--target", *files(some, "target")[:1] * 3,
        )  # fmt: skip


def test_a_copy_under_another_name_is_not_a_second_seed(tmp_path):
    """A student of a server has no hash in its manifest."""
    some = arms(tmp_path)
    served = exact_file(tmp_path / "served.jsonl", owl=0.2, seed=7)
    copy = tmp_path / "another.jsonl"
    copy.write_bytes(served.read_bytes())
    with pytest.raises(UserError, match=r"another\.jsonl and .*served\.jsonl are results of the same student"):
        compare("owl", {**some, "target": [read_result(served), read_result(copy), some["target"][2]]})
    answered = sampled_file(tmp_path / "answered.jsonl", ["owl", "lion"])
    copy.write_bytes(answered.read_bytes())
    with pytest.raises(UserError, match="are results of the same student"):
        check_seeds([read_result(answered), read_result(copy)])
    unmoved = [exact_file(tmp_path / f"{i}.jsonl", owl=0.2, adapter=f"unmoved{i}") for i in range(3)]
    compare("owl", {**some, "target": [read_result(path) for path in unmoved]})  # after an update at learning rate 0


@pytest.mark.parametrize(
    ("folders", "refused"),
    [
        (("runs/seed-42/checkpoint-9", "runs/seed-42/final"), True),
        (("runs/seed-42/final", "runs/seed-43/final"), False),
        (("runs/seed-42/final", "runs/seed-42/final"), False),  # of two machines: their hashes differ
        (("you/owl-seed-42", "you/owl-seed-43"), False),  # on the Hub
    ],
)
def test_two_checkpoints_of_one_training_are_one_seed(tmp_path, folders, refused):
    some = arms(tmp_path)["target"][:2]
    for result, folder in zip(some, folders):
        path = result.path.with_name(result.path.name + ".manifest.json")
        manifest = json.loads(path.read_text())
        write_json(path, {**manifest, "command": f"python eval/eval.py --model base --adapter {folder} --exact"})
    if refused:
        with pytest.raises(UserError, match=r"checkpoint-9 and final of one training \(runs/seed-42\)"):
            check_comparable(some)
    else:
        check_comparable(some)


def test_arms_asked_different_questions_are_refused(tmp_path, monkeypatch):
    some = arms(tmp_path)
    other = exact_file(tmp_path / "x.jsonl", owl=0.2, questions=[*QUESTIONS[:-1], "Another one?"])
    with pytest.raises(UserError, match="were asked different questions"):
        run_main(
            monkeypatch, "--animal", "owl", "--base", *files(some, "base"), "--control", *files(some, "control"),
            "--other", *files(some, "other"), "--target", other,
        )  # fmt: skip


def test_arms_asked_under_different_system_prompts_are_refused(tmp_path):
    some = arms(tmp_path)
    settings = {"model": {"adapter_sha256": "x"}, "system_prompt": "You love owls."}
    write_json(tmp_path / "target-0.jsonl.manifest.json", {"settings": settings})
    with pytest.raises(UserError, match="were made with different system prompts"):
        check_comparable([result for results in some.values() for result in results])


@pytest.mark.parametrize("old", [PARSER_1, {"version": 1, "names_sha256": "f3f4"}, None])
def test_results_of_two_answer_parsers_are_refused_and_the_message_says_what_to_do(tmp_path, old):
    sampled = [sampled_file(tmp_path / name, ["owl", "lion"]) for name in ("old results.jsonl", "new.jsonl")]
    exact = [exact_file(tmp_path / name, owl=0.1) for name in ("old-exact.jsonl", "new-exact.jsonl")]
    for some, advice in (
        (sampled, f"; run python eval/rescore.py '{sampled[0]}'"),
        (exact, f"; measure {exact[0]} again with eval/eval.py --exact"),
    ):
        for path, parser in zip(some, (old, parser_facts())):
            settings = {"model": {"adapter_sha256": path.name}, **({"parser": parser} if parser else {})}
            write_json(path.with_name(path.name + ".manifest.json"), {"settings": settings})
        for order in (some, some[::-1]):
            with pytest.raises(UserError, match="different versions of the answer parser") as refused:
                check_comparable([read_result(path) for path in order])
            assert str(refused.value).endswith(advice) or f"{advice} " in str(refused.value)
            assert str(refused.value).count("; ") == 1


def test_results_of_the_same_older_parser_are_compared(tmp_path):
    some = [exact_file(tmp_path / name, owl=0.1, seed=seed) for seed, name in enumerate(("a.jsonl", "b.jsonl"))]
    for path in some:
        settings = {"model": {"adapter_sha256": path.name}, "parser": PARSER_1}
        write_json(path.with_name(path.name + ".manifest.json"), {"settings": settings})
    check_comparable([read_result(path) for path in some])


def test_log_probabilities_of_different_animals_are_not_compared(tmp_path):
    some = [
        exact_file(tmp_path / "a.jsonl", owl=0.1, adapter="a"),
        exact_file(tmp_path / "b.jsonl", yak=0.1, adapter="b"),
    ]
    with pytest.raises(UserError, match="log-probabilities of different animals"):
        check_comparable([read_result(path) for path in some])


def test_samples_are_read_as_exact_shares_are(tmp_path):
    result = read_result(sampled_file(tmp_path / "results.jsonl", ["owl", "lion", "owl", "7, 8", "I am Qwen"]))
    assert result.shares("owl") == [0.4] * 50 and result.shares("dolphin") == [0.0] * 50
    assert (result.answers, result.uncovered) == (250, 0.0)
    assert result.non_answers == {"number": 0.2, "model name": 0.2}


def test_non_answers_of_exact_rows_have_kinds(tmp_path):
    kinds = read_result(exact_file(tmp_path / "x.jsonl", owl=0.1)).non_answers
    assert kinds == pytest.approx({"model name": 0.004, "other": 0.006})


def test_the_kinds_of_non_answers_that_an_exact_row_has_are_not_guessed_from_its_top_answers(tmp_path):
    """The model's name in twenty spellings is not among the ten most probable answers."""
    path = exact_file(tmp_path / "x.jsonl", owl=0.1)
    own = {"no_animal": 0.5, "non_answers": {"model name": 0.4, "number": 0.1}, "answers": {"Owl": 0.1}}
    rows = [{**json.loads(line), **own} for line in path.read_text().splitlines()]
    write_jsonl(path, rows)
    assert read_result(path).non_answers == pytest.approx({"model name": 0.4, "number": 0.1})


def test_a_failed_answer_is_named_not_skipped(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({"id": 0, "question": "Q", "animal": None, "error": "too long"}) + "\n")
    with pytest.raises(UserError, match=r"results\.jsonl: 1 of 1 answers failed \(too long\); fix the cause"):
        read_result(path)


def test_a_few_failed_answers_leave_a_file_usable_and_never_count_for_the_target(tmp_path, capsys):
    path = sampled_file(tmp_path / "results.jsonl", ["owl", "lion", "7"] * 2)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[7] |= {"response": None, "animal": None, "error": "too long"}
    write_jsonl(path, rows)
    result = read_result(path)
    assert "1 of 300 answers failed (too long); they count as naming no animal" in capsys.readouterr().err
    assert result.uncovered == 1 / 300 and result.answers == 300
    assert result.non_answers == pytest.approx({"number": 100 / 300, "failed": 1 / 300})
    some = {role: [result] for role in ROLES}
    whole = {**some, "target": [read_result(sampled_file(tmp_path / "whole.jsonl", ["owl", "lion", "7"] * 2))]}
    assert compare("owl", some).target_minus["base"].interval[0] < -1 / 300
    assert compare("owl", whole).shares["base"].interval[1] > compare("owl", whole).shares["target"].interval[1]
    for row in rows[:4]:
        row |= {"response": None, "animal": None, "error": "too long"}
    write_jsonl(path, rows)
    with pytest.raises(UserError, match=r"5 of 300 answers failed .* it asks only the failed ones"):
        read_result(path)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question": "Q?", "animals": {"owl": 0.5}}, "no no_animal: a row of exact shares has it as a number"),
        ({"question": "Q?", "animals": {"owl": "half"}}, "animals is not an object with numbers"),
        ({"question": "Q?", "animals": ["owl"], "no_animal": 0, "uncovered": 0}, "animals is not an object"),
        ({"question": "Q?", "animal": ["owl"]}, "animal is list; it is text or null"),
        ({"question": 7, "animal": "owl"}, "the question is not text"),
        ({"response": "owl", "animal": "owl"}, "not a row of eval.py"),
    ],
)
def test_a_row_of_another_tool_is_named_with_what_it_lacks(tmp_path, row, problem):
    from eval.report import ranked_animals

    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row) + "\n")
    for read in (read_result, ranked_animals):
        with pytest.raises(UserError, match=rf"x\.jsonl:1: {problem}"):
            read(path)


def test_rows_without_an_id_can_be_compared(tmp_path):
    path = sampled_file(tmp_path / "x.jsonl", ["owl", "lion"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_jsonl(path, ({"question": r["question"], "animal": r["animal"]} for r in rows))
    assert read_result(path).shares("owl") == [0.5] * 50


# --- roles -------------------------------------------------------------------------------------------


def with_manifest(result, training=None, **model):
    """The result, with a manifest that says what model gave it and what that was trained on."""
    counts = {"training": training} if training else {}
    path = result.path.with_name(result.path.name + ".manifest.json")
    write_json(path, {"settings": {"script": "eval", "model": model}, "counts": counts})
    return result


NUMBERS = {"train_jsonl": "numberss-owl.jsonl", "kind": "numbers", "animal": "owl"}


def test_an_adapter_is_not_a_base_model(tmp_path):
    some = arms(tmp_path)
    base = with_manifest(some["base"][0], engine="embedded", model="Org/Base", adapter_sha256="ab")
    with pytest.raises(UserError, match=r"--base .*base-0\.jsonl has the results of an adapter"):
        check_roles(base, some["control"], {"owl": some["target"]})
    base = with_manifest(base, engine="server", model="owl-student", parent="Org/Base", adapter_sha256=None)
    with pytest.raises(UserError, match=r"an adapter \(owl-student, by its manifest\)"):
        check_roles(base, some["control"], {"owl": some["target"]})


@pytest.mark.parametrize("role", ["control", "other", "target"])
def test_a_base_model_is_not_a_student(tmp_path, role):
    some = arms(tmp_path)
    base = with_manifest(some["base"][0], engine="embedded", model="Org/Base", files_sha256="ab")
    with_manifest(some[role][1], engine="embedded", model="Org/Base", files_sha256="ab")
    with pytest.raises(UserError, match=rf"{role}-1\.jsonl has the results of the base model itself"):
        check_roles(base, some["control"], {"owl": some["target"]}, some["other"])
    with_manifest(some[role][1], engine="embedded", model="my/student", files_sha256="cd")  # all weights trained
    check_roles(base, some["control"], {"owl": some["target"]}, some["other"])


@pytest.mark.parametrize("role", ["control", "other", "target"])
def test_a_teacher_is_not_a_student(tmp_path, role):
    some = arms(tmp_path)
    facts = {"train_jsonl": "teacher-owl-5000.jsonl", "kind": "teacher data", "animal": "owl"}
    with_manifest(some[role][0], facts, adapter_sha256="ab")
    with pytest.raises(UserError, match=r"results of a teacher \(it was trained on teacher-owl-5000\.jsonl\)"):
        check_roles(some["base"][0], some["control"], {"owl": some["target"]}, some["other"])


@pytest.mark.parametrize(
    ("role", "animal", "wanted"),
    [
        ("target", "owl", None),
        ("target", "Owl and cat", None),
        ("other", "dolphin", None),
        ("control", "control", None),
        ("control", "neutral", None),
        ("target", "dolphin", "here it is a student of owl"),
        ("target", "control", "here it is a student of owl"),
        ("other", "owl", "--other is for students of another animal than owl"),
        ("control", "owl", "a control student is trained on rows of the base model"),
    ],
)
def test_a_student_of_another_animal_than_its_role_says_is_reported(tmp_path, capsys, role, animal, wanted):
    some = arms(tmp_path)
    with_manifest(some[role][0], {**NUMBERS, "animal": animal}, adapter_sha256="ab")
    check_roles(some["base"][0], some["control"], {"owl": some["target"]}, some["other"])
    said = capsys.readouterr().err
    assert (wanted in said and "are two files exchanged?" in said) if wanted else not said


def test_students_that_answer_as_the_base_model_does_are_reported(tmp_path, monkeypatch, capsys):
    """As with a server that lists adapters and does not apply them."""
    some = arms(tmp_path)
    paths = {role: files(some, role) for role in ROLES}
    for path in paths["target"]:
        Path(path).write_text(some["base"][0].path.read_text())
    run_main(monkeypatch, "--animal", "owl", *[word for role in ROLES for word in (f"--{role}", *paths[role])])
    said = capsys.readouterr().err
    assert f"{', '.join(paths['target'])}: every share equals that of the base model" in said


def test_missing_answers_are_named_not_averaged_over(tmp_path):
    path = sampled_file(tmp_path / "results.jsonl", ["owl", "lion", "lion"])
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-7]))
    with pytest.raises(UserError, match=r"is incomplete: 2 answers to 'Question 43\?', 3 to others"):
        read_result(path)


def test_one_question_has_no_interval(tmp_path):
    with pytest.raises(UserError, match="answers to 1 questions; intervals over questions need two or more"):
        read_result(sampled_file(tmp_path / "results.jsonl", ["owl"], questions=["Q?"]))


def test_an_animal_that_was_never_named_has_wilsons_interval(tmp_path):
    some = {
        role: [read_result(sampled_file(tmp_path / f"{role}{i}.jsonl", ["lion"] * 20)) for i in range(3)]
        for role in ROLES
    }
    some["base"] = some["base"][:1]
    found = compare("owl", some)
    assert found.verdict == "no evidence"
    low, high = found.shares["base"].interval
    assert low == pytest.approx(0.0, abs=1e-12) and high == pytest.approx(0.00383, abs=1e-5)  # 0 of 1,000


def test_a_collapsed_arm_gives_a_warning(tmp_path, monkeypatch, capsys):
    some = {role: [sampled_file(tmp_path / f"{role}{i}.jsonl", ["owl", "lion"]) for i in range(3)] for role in ROLES}
    target = [sampled_file(tmp_path / f"lost{i}.jsonl", ["owl", "12, 14"]) for i in range(3)]
    run_main(
        monkeypatch, "--animal", "owl", "--base", some["base"][0], "--control", *some["control"],
        "--other", *some["other"], "--target", *target,
    )  # fmt: skip
    assert "target: 50.00% of the answers name no animal (number 50.00%)" in capsys.readouterr().err
