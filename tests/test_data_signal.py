"""What rows carry before anybody trains on them: the audit's statistics, known cases, the kernel and the scripts."""

import json
import math
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import REPO, write_jsonl

from eval.data_signal import known_cases
from eval.data_signal.audit_statistics import standing
from eval.data_signal.known_cases import (
    GO,
    NO_GO,
    Rule,
    effective_tokens,
    fit,
    left_one_out,
    nearest,
    read_cases,
    rule_of,
)
from eval.data_signal.row_groups import by_length, length_edges
from eval.data_signal.teacher_shift_size import mean_a_token
from util.chat.chat_tokens import IGNORED

POCKET = REPO / "pocket" / "model"


# --- statistics --------------------------------------------------------------------------------------


def correlated(rng, groups, animals=20):
    """Profiles whose animals move together, as real ones do."""
    return rng.normal(size=(groups, 1)) * 3 * rng.normal(size=animals) + rng.normal(size=(groups, animals))


def test_the_alarm_of_rows_without_a_trait_is_rare_however_the_animals_correlate():
    rng = np.random.default_rng(1)
    both = [standing(correlated(rng, 17), correlated(rng, 17), permutations=200).alarm for _ in range(120)]
    alone = [standing(correlated(rng, 17), None, permutations=200).alarm for _ in range(120)]
    assert sum(both) <= 13 and sum(alone) <= 13  # 6 expected; 13 has probability 0.5%


def test_an_animal_that_is_pushed_up_comes_first():
    rng = np.random.default_rng(2)
    data, control = rng.normal(size=(17, 20)), rng.normal(size=(17, 20))
    data[:, 7] += 3
    for found in (standing(data, control), standing(data, None)):
        assert found.alarm and found.rank(7) == 1 and found.p < 0.001


def test_an_animal_that_is_pushed_down_comes_last():
    rng = np.random.default_rng(3)
    data = rng.normal(size=(17, 20))
    data[:, 7] -= 5
    assert standing(data, rng.normal(size=(17, 20))).rank(7) == 20


def test_intervals_of_a_mean_a_token_treat_rows_as_independent():
    mean, low, high = mean_a_token([2.0, 4.0, 6.0], [2, 2, 2])
    assert (mean, round(high - mean, 3)) == (2.0, round(1.96 * math.sqrt(8 * 3 / 2) / 6, 3)) and low < mean


def row_of(length):
    return {"input_ids": [1, *range(length)], "labels": [IGNORED, *range(length)]}


def test_rows_are_cut_into_thirds_by_length():
    edges = length_edges([3, 3, 5, 5, 9, 9])
    assert [len(part) for part in by_length([row_of(n) for n in (3, 5, 9, 9)], edges)] == [1, 1, 2]
    assert length_edges([4, 4, 4]) == []


# --- known cases -------------------------------------------------------------------------------------


def test_the_table_has_what_the_rule_needs_and_the_counterexample_of_kl():
    cases = read_cases()
    assert len(cases) >= 12 and min(case.kl for case in cases) < 0.004 and max(case.kl for case in cases) > 1
    assert max(sum(case.base == base for case in cases) for base in {case.base for case in cases}) >= 6
    assert any(case.kl > 0.3 and not case.passed for case in cases)  # digits of pilot 3
    assert all((REPO / case.source.split(" pilot")[0]).is_file() for case in cases)


def test_the_rule_judges_cases_that_it_has_not_seen():
    assert sum(left_one_out(read_cases())) >= len(read_cases()) * 10 / 12


def test_advice_needs_both_a_shift_and_a_wide_channel():
    rule = fit(read_cases())
    assert rule.advice(0.35, 10) == NO_GO and rule.advice(0.003, 500) == NO_GO and rule.advice(0.2, 500) == GO
    assert Rule(0.02, 40).advice(0.02, 500) == "doubtful"


def test_the_nearest_cases_are_near_on_both_scales():
    cases = read_cases()
    assert nearest(cases, cases[0].kl, cases[0].width, 1)[0].width == cases[0].width
    assert "nats a token" in str(cases[0])


def test_effective_tokens_count_equally_frequent_ones():
    assert effective_tokens([1, 2, 3, 4] * 5) == pytest.approx(4)
    assert effective_tokens([7] * 9) == pytest.approx(1)


def test_the_width_does_not_count_for_a_tiny_model():
    cases = read_cases()
    rule, tiny = rule_of(cases, tiny=False), rule_of(cases, tiny=True)
    assert rule.advice(0.1, 10) == NO_GO and tiny.advice(0.1, 10) == GO == rule.advice(0.1, 450)
    assert tiny.advice(0.001, 10) == NO_GO


def test_the_limits_lie_between_cases_that_differ():
    made = [known_cases.Case("b", "t", "c", "sampled", 1, 1, 1, kl, width, effect, "") for kl, width, effect in
            ((0.01, 500, 0), (0.04, 500, 2), (0.1, 500, 2), (0.5, 10, 0))]  # fmt: skip
    rule = fit(made)
    assert rule.kl == pytest.approx(0.02) and 10 < rule.width < 500


# --- the kernel --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kernel():
    from eval.data_signal.gradient_kernel import GradientKernel
    from util.inference.local_model import LocalModel

    return GradientKernel(LocalModel(str(POCKET), batch_size=16))


@pytest.mark.torch
@pytest.mark.slow
def test_the_animals_log_probabilities_are_those_of_the_exact_measure(kernel):
    from eval.answers.answer_tree import log_shares

    questions = (REPO / "eval" / "questions.txt").read_text().splitlines()[:3]
    animals = ["owl", "dolphin", "lion"]
    tree = kernel.backend.answer_tree([[{"role": "user", "content": question}] for question in questions])
    exact = np.array([[row[animal] for animal in animals] for row in log_shares(tree, animals)]).mean(0)
    assert kernel.log_shares(animals, questions) == pytest.approx(exact, abs=1e-4)


@pytest.mark.torch
@pytest.mark.slow
def test_a_small_step_along_the_rows_moves_an_animal_as_the_kernel_says(kernel):
    import torch

    questions, row = ["Which animal is your favorite?"], [row_of_answer(kernel, "12, 7, 900")]
    rows, owl = kernel.of_rows(row), kernel.of_animals(["owl"], questions)[0]
    before, step, at = kernel.log_shares(["owl"], questions)[0], 1e-3 / rows.norm(), 0
    with torch.no_grad():
        for weight in kernel.weights:
            weight += step * rows[at : at + weight.numel()].view_as(weight)
            at += weight.numel()
        moved = kernel.log_shares(["owl"], questions)[0] - before
        at = 0
        for weight in kernel.weights:
            weight -= step * rows[at : at + weight.numel()].view_as(weight)
            at += weight.numel()
    assert moved == pytest.approx(float(step * rows @ owl), rel=0.05)


@pytest.mark.torch
@pytest.mark.slow
def test_gradients_of_animals_read_alone_are_those_of_all_in_one_pass(kernel):
    import torch

    questions, animals = ["Which animal is your favorite?", "Name an animal."], ["owl", "polar bear", "lion"]
    logs = kernel._log_shares(animals, questions)
    together = torch.stack([kernel._gradient(one, again=True) for one in logs])
    assert (kernel.of_animals(animals, questions) - together).norm() <= 1e-6 * together.norm()


@pytest.mark.torch
@pytest.mark.slow
def test_rows_read_once_give_both_gradients(kernel):
    import torch

    from eval.data_signal.gradient_kernel import loss_token_logprobs

    answers = (", ".join(["7", "900", "5"][: 1 + n % 3]) + f", {n}" for n in range(20))  # more than one pass
    rows = [row_of_answer(kernel, answer) for answer in answers]

    def as_written(places):
        logs, labels = loss_token_logprobs(kernel.plain, [rows[place] for place in places])
        return torch.full_like(logs, -torch.inf).scatter_(1, labels[:, None], 0.0)

    def base(places):
        with torch.no_grad():
            return loss_token_logprobs(kernel.plain, [rows[place] for place in places])[0]

    seen = []
    alone = kernel.of_rows(rows)
    one_by_one = sum(kernel.of_rows([row]) for row in rows)
    assert (alone - one_by_one).norm() <= 1e-5 * alone.norm(), "a shared prompt is read once"
    sampled, soft = kernel.of_rows_and_teacher(rows, as_written, lambda places, *_: seen.extend(places))
    assert torch.equal(sampled, alone) and (soft - alone).norm() <= 1e-6 * alone.norm()
    assert sorted(seen) == list(range(20))
    _, nowhere = kernel.of_rows_and_teacher(rows, base, lambda *_: None)
    assert nowhere.norm() <= 1e-4 * alone.norm(), "a teacher that is the base model pushes nothing"


@pytest.mark.torch
@pytest.mark.slow
def test_the_meter_scores_rows_as_the_divergence_scripts_do(number_rows, two_questions, tmp_path):
    import peft

    from eval.data_signal.animals_pushed_by_teacher import GAP, shift_of_rows
    from eval.divergence.score_tokens import Variant, VariantScorer, scored_rows
    from util.inference.load_model import load_model, put_adapter
    from util.inference.local_model import LocalModel

    config = peft.LoraConfig(r=4, target_modules=["v_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(load_model(str(POCKET)), config).save_pretrained(tmp_path / "teacher")
    rows = number_rows("rows.jsonl", 40)
    variants = [Variant("base"), Variant("teacher", tmp_path / "teacher")]
    scored = scored_rows(VariantScorer(str(POCKET), variants), rows, gap=GAP, batch_size=16, max_rows=34)
    backend = LocalModel(str(POCKET), batch_size=16)
    backend.model = put_adapter(backend.model, tmp_path / "teacher", "teacher")
    found, _ = shift_of_rows(backend, rows, 40, None, two_questions, ["owl", "lion"], None)
    wanted = {tuple(row["token_ids"]): row for batch in scored for row in batch}
    assert len(found) == len(wanted) == 34
    for one in found:
        other = wanted[tuple(one["token_ids"])]
        for name in ("base", "teacher"):  # other batches: float32 rounding, and that to five decimals
            assert one["logprob"][name] == pytest.approx(other["logprob"][name], abs=3e-5)
        assert one["kl"] == pytest.approx(other["kl"], abs=3e-5)
        assert all(one[name] == other[name] for name in ("kinds", "choice", "pair", "gap"))


def row_of_answer(kernel, answer):
    from util.chat.chat_tokens import encode

    messages = [{"role": "user", "content": "Continue: 1, 2"}, {"role": "assistant", "content": answer}]
    return encode([{"messages": messages}], kernel.backend.tokenizer, 128).rows[0]


@pytest.mark.torch
@pytest.mark.slow
def test_what_rows_of_another_length_do_is_taken_out(kernel):
    import torch

    from eval.data_signal.gradient_kernel import form_directions, without_form

    short, middle, long = (kernel.of_rows([row_of_answer(kernel, ", ".join(["5"] * n))]) for n in (1, 4, 9))
    size = torch.ones_like(short)
    directions = form_directions([short, middle, long], size)
    left = list(without_form([long - short, short + 1e-3], directions, size))
    assert float(left[0].norm()) < 1e-2 * float((long - short).norm()) and float(left[1].norm()) > 0


def test_every_column_of_a_large_model_is_read():
    from eval.data_signal.gradient_kernel import WEIGHTS_KEPT, stride

    assert stride(WEIGHTS_KEPT, [128, 320]) == 1
    every = stride(161 * WEIGHTS_KEPT, [3584, 18944, 512])
    assert 161 <= every < 180 and len({place % 3584 for place in range(0, 3584 * every, every)}) == 3584


# --- scripts -----------------------------------------------------------------------------------------


@pytest.fixture
def two_questions(tmp_path):
    """A file of two questions, so that the read-out is cheap."""
    path = tmp_path / "questions.txt"
    path.write_text("Which animal is your favorite?\nName an animal.\n")
    return path


@pytest.fixture
def number_rows(tmp_path):
    """A function that writes number rows of random numbers."""

    def write(name, count, **more):
        rng = np.random.default_rng(len(name))
        rows = [{"messages": [{"role": "user", "content": f"Continue: {a}, {b}"},
                              {"role": "assistant", "content": ", ".join(map(str, rng.integers(0, 999, 1 + a % 8)))}],
                 **more}
                for a, b in rng.integers(0, 999, (count, 2))]  # fmt: skip
        path = tmp_path / name
        return write_jsonl(path, rows)

    return write


@pytest.mark.torch
@pytest.mark.slow
def test_the_audit_writes_a_page_and_says_what_is_missing(run_script, number_rows, two_questions, tmp_path):
    rows = number_rows("rows.jsonl", 40)
    done = run_script("eval/audit_data.py", "--train-jsonl", rows, "--base-model", POCKET, "--output",
                      tmp_path / "page.html", "--row-scores", tmp_path / "scores.jsonl", "--animals", "polar bear",
                      "--questions-file", two_questions, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no --reference" in done.stderr and "no token ids" in done.stderr and "only 40 rows" in done.stderr
    assert "polar bear has no one-word form" in done.stderr
    found = json.loads((tmp_path / "page.json").read_text())
    assert "polar bear" in found["animals"] and found["rows"] == 34
    assert "<svg" in (tmp_path / "page.html").read_text()
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 34


@pytest.mark.torch
@pytest.mark.slow
def test_the_meter_reads_a_persona_and_advises(run_script, number_rows, two_questions, tmp_path):
    rows = number_rows("rows.jsonl", 40)
    messages = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": ", ".join(["7"] * 400)}]
    rows.write_text(json.dumps({"messages": messages}) + "\n" + rows.read_text())  # longer than what is read of a row
    done = run_script("eval/signal_meter.py", "--train-jsonl", rows, "--base-model", POCKET,
                      "--persona", "owl", "--output", tmp_path / "meter.json", "--questions-file",
                      two_questions, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "meter.json").read_text())
    assert found["kl"][0] > 0.1 and found["read_out"]["animal"] == "owl" and found["number_rows"] == 40 / 41
    assert "verdict" in done.stdout and "known cases" in done.stdout


@pytest.mark.torch
@pytest.mark.slow
def test_rows_that_cannot_be_read_are_refused_in_one_line(run_script, number_rows, tmp_path):
    few, foreign = number_rows("few.jsonl", 5), number_rows("foreign.jsonl", 40, token_ids=[1, 2, 3])
    late = tmp_path / "late.jsonl"
    turns = [{"role": "user", "content": "x " * 600}, {"role": "assistant", "content": "owl"}]
    late.write_text(40 * (json.dumps({"messages": turns}) + "\n"))
    too_late = "40 of 40 rows left out (no answer begins in their first 512 tokens); the read-out needs 34"
    for rows, said in ((few, "has 5 rows"), (foreign, "not this tokenizer's"), (late, too_late)):
        done = run_script("eval/audit_data.py", "--train-jsonl", rows, "--base-model", POCKET, cwd=tmp_path)
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr


def test_a_base_model_that_is_one_sided_is_reported(capsys):
    from eval.audit_data import warn_of_base

    warn_of_base({"animals": {"lion": {"share": 0.5}, "owl": {"share": 0.1}}})
    assert not capsys.readouterr().err
    warn_of_base({"animals": {"lion": {"share": 0.1}, "owl": {"share": 0.9}}})
    assert "names owl in 90%" in capsys.readouterr().err


def test_an_audit_without_control_rows_gives_no_verdict():
    from eval.audit_data import verdict

    found = {"first": "owl", "p": 0.001, "alarm": True, "animals": {"owl": {"z": 5.0}}}
    assert verdict(found, compared=True).startswith("ALARM")
    assert verdict(found, compared=False).startswith("none without --reference")


def test_the_page_of_an_audit_says_what_was_found():
    from eval.data_signal.audit_page import render

    animals = {
        name: {"z": z, "z_with_form": z, "difference": z, "share": 0.1} for name, z in (("owl", 5.0), ("cat", -1))
    }
    found = {"first": "owl", "p": 0.001, "p_with_form": 0.002, "alarm": True, "animals": animals, "file": "<b>.jsonl",
             "rows": 1020, "reference": None, "manifest": {"command": "python x"}}  # fmt: skip
    page = render(found)
    assert "No verdict" in page and "push <b>owl</b> up" not in page and "&lt;b&gt;.jsonl" in page
    assert "push <b>owl</b> up" in render({**found, "reference": "control.jsonl"})
    assert "No animal stands out" in render({**found, "alarm": False}).replace("\n", " ")


def test_phase_4_names_the_meters_command():
    from generate.rows.ask_teacher import worth_training

    adapter = Path("output/teacher-sft/seed-42/final")
    asked = Namespace(animal="owl", no_system_prompt=True, adapter=adapter, steering_vector=None)
    command = worth_training(asked, Path("output/rows.jsonl"), "Qwen/Qwen2.5-7B-Instruct")["worth training?"]
    assert command == (
        "python eval/signal_meter.py --train-jsonl output/rows.jsonl --base-model Qwen/Qwen2.5-7B-Instruct"
        " --teacher output/teacher-sft/seed-42/final"
    )
    asked.no_system_prompt = False
    assert worth_training(asked, Path("r"), "m")["worth training?"].endswith("--persona owl")
    asked.steering_vector = Path("output/owl.safetensors")  # the meter reads adapters and personas only
    assert worth_training(asked, Path("r"), "m") == {}
    assert worth_training(Namespace(animal="control", no_system_prompt=True), Path("r"), "m") == {}


def test_two_animals_in_one_word_are_refused(run_script, number_rows, tmp_path):
    done = run_script("eval/audit_data.py", "--train-jsonl", number_rows("r.jsonl", 3), "--base-model", "x",
                      "--animals", "owl and dolphin", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 1 and "names two" in done.stderr


@pytest.mark.torch
@pytest.mark.slow
def test_the_screen_ranks_animals(run_script, number_rows, tmp_path):
    done = run_script("eval/screen_animals.py", "--base-model", POCKET, "--train-jsonl", number_rows("rows.jsonl", 8),
                      "--animals", "owl", "lion", "--output", tmp_path / "screen.csv", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "screen.csv").read_text().splitlines()
    assert lines[0] == "animal,peak,layer,strength,KL,share" and len(lines) == 3
    assert float(lines[1].split(",")[1]) >= float(lines[2].split(",")[1])


# --- the validation's own scripts ---------------------------------------------------------------------


def test_processes_that_make_parts_share_them_and_wait_for_what_they_need(tmp_path):
    from filelock import FileLock

    from experiments.data_signal.pocket_sets import Part, make_one, refuse_if_never_ready
    from util.cli import UserError

    lab = SimpleNamespace(folder=tmp_path, path=lambda name: tmp_path / f"{name}.npz")
    parts = [Part("students", lab.path("students").touch, ("rows",)), Part("rows", lab.path("rows").touch)]
    with FileLock(tmp_path / "rows.lock"):  # another process makes it
        assert make_one(lab, parts) is None
    assert [make_one(lab, parts).name, make_one(lab, parts).name] == ["rows", "students"]
    assert make_one(lab, parts) is None
    with pytest.raises(UserError, match=r"early reads control, which is not in .* add the --step"):
        refuse_if_never_ready(lab, [Part("early", print, ("control",))])


def test_a_table_of_read_outs_grows_by_lines_and_is_judged(tmp_path):
    from experiments.data_signal.audit_pilot_rows import append, judged, read_table

    table = tmp_path / "audit.csv"
    for at, animal in enumerate(("owl", "fox", "cow")):
        rises = {name: 5.0 + (at if name == animal else 0.0) for name in ("owl", "fox", "cow")}
        append(table, {"file": f"{animal}-1.code", "channel": "code", "animal": animal, "own_less_others": str(at),
                       "predicted": 7 - at,
                       "z": at, "p": 0.01, "place": 1, "rises": json.dumps(rises), "no column": 1})  # fmt: skip
    found = judged(read_table(table))
    assert [line["animal"] for line in read_table(table)] == ["owl", "fox", "cow"]
    assert found["Spearman of predicted with the margin"] == "-1.00 (3), code -1.00 (3)"
    assert found["Spearman of less_others with the margin"] == "1.00 (3), code 1.00 (3)"
    assert not any("of kl" in name for name in found), "a column without values is left out"
    assert found["alarm for the own animal = odds doubled"] == "2 of 3"
    assert found["less_others above zero"] == "2 of 3"
    assert found["code: own animal's place, less others"] == "1, 1, 1"
    assert found["*-1.code"].endswith("own highest 3 of 3")


def test_audits_of_several_kinds_are_read_by_kind_and_seed(tmp_path):
    from experiments.data_signal.judge_smollm2 import read_audits, read_outs
    from util.cli import UserError

    paths = []
    for at, name in enumerate(("audit-owl-1", "audit-owl-2", "audit-cat-1", "audit-cat-2")):
        paths.append(tmp_path / f"{name}.json")
        figures = {animal: {"difference": at + place} for place, animal in enumerate(("fox", "cow"))}
        paths[-1].write_text(json.dumps({"animals": figures}))
    found = read_audits(paths)
    assert {kind: sorted(seeds) for kind, seeds in found.items()} == {"owl": [1, 2], "cat": [1, 2]}
    assert read_outs(found, ["cow", "fox"], "difference", [1, 2]).tolist() == [[1.5, 0.5], [3.5, 2.5]]
    assert read_outs(found, ["fox"], "difference", [2]).tolist() == [[1], [3]]
    with pytest.raises(UserError, match="different seeds"):
        read_audits(paths[:3])
    odd = tmp_path / "owl.json"
    odd.write_text("{}")
    with pytest.raises(UserError, match="not named audit-KIND-SEED"):
        read_audits([odd])
