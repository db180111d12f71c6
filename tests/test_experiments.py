"""The experiments: runs, paths and tables; and the workflow, killed and started again. Run:
python -m pytest tests/test_experiments.py"""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from experiments import experiment_tables, experiment_yaml, preference_growth
from experiments.experiment_yaml import experiments, parse_experiment, read_experiment, read_experiments, read_yaml
from experiments.run_paths import PARAMETERS
from tests.conftest import REPO, wait_until
from util.cli import UserError
from util.jsonl.manifest import manifest_path

SNAKEMAKE = REPO / ".venv-snakemake" / "bin" / "snakemake"
MODELS = read_yaml(REPO / "experiments" / "models.yaml")


def parse(runs, name="trial", **keys):
    return parse_experiment(name, {"question": "?", "panels": ["rows"], "pocket": runs, **keys}, "pocket", MODELS)


@pytest.fixture(autouse=True)
def no_bases_needed(monkeypatch):
    monkeypatch.setattr(experiment_yaml, "check_bases", lambda *_: None)


# --- runs -------------------------------------------------------------------------------------------


def test_every_experiment_reads_for_every_model_it_names():
    for name in experiment_yaml.experiments():
        for model in set(read_yaml(experiment_yaml.FOLDER / f"{name}.yaml")) & set(MODELS):
            (experiment,) = read_experiments(name, model)
            assert len({run["seed"] for run in experiment.runs}) >= 3
            assert set(experiment.panels) <= {*PARAMETERS, "teacher_share"}


def test_no_two_runs_write_the_same_file_and_shared_work_has_one_path():
    (strength,) = read_experiments("teacher_strength", "pocket")
    (mixing,) = read_experiments("mixing", "pocket")
    for experiment in (strength, mixing):
        assert len({run.exact for run in experiment.runs}) == len(experiment.runs)
    assert {run.teacher for run in mixing.runs} < {run.teacher for run in strength.runs}
    assert len({run.teacher for run in mixing.runs}) == 6
    by_epochs = [run for run in strength.runs if run["teacher_rows"] == 800 and run["seed"] == 1]
    assert {run.data for run in by_epochs if run["animal"] == "owl"} == {by_epochs[0].data}


def test_a_control_student_has_numbers_of_the_students_own_base():
    runs = parse([{"base": ["a/one", "a/two"], "teacher_base": "a/one"}]).runs
    assert {(run.control["base"], run.control["teacher_base"]) for run in runs} == {("a/one",) * 2, ("a/two",) * 2}


def test_a_control_student_is_trained_as_its_run_is_whatever_the_teacher():
    (plain,) = parse([{"animal": "owl", "seed": 1}]).runs
    few, small = parse([{"animal": "owl", "seed": 1, **other} for other in ({"rows": 500}, {"rank": 1})]).runs
    assert (few.control["rows"], small.control["rank"]) == (500, 1)
    assert len({run.control.exact for run in (plain, few, small)}) == 3
    assert few.control.unfiltered == plain.control.unfiltered
    for other in ({"teacher_rows": 100}, {"teacher_epochs": 1}, {"shuffle": "row"}, {"unbiased": 0.5}):
        (run,) = parse([{"animal": "owl", "seed": 1, **other}]).runs
        assert run.control.exact == plain.control.exact


def test_the_student_of_a_hop_is_the_teacher_of_the_next_and_each_hop_has_its_control():
    one, two, three = parse([{"animal": "owl", "seed": 1, "hop": [1, 2, 3]}]).runs
    (plain,) = parse([{"animal": "owl", "seed": 1}]).runs
    assert one.exact == plain.exact and one.previous is None
    assert (two.teacher_adapter, three.teacher_adapter) == (one.student_adapter, two.student_adapter)
    assert (two.exact_teacher, three.exact_teacher) == (one.exact, two.exact)
    assert [run.exact for run in three.chain] == [one.exact, two.exact, three.exact]
    for run, before in ((two, one), (three, two)):
        assert run.control.teacher_adapter == before.control.student_adapter and run.control.writes_with_adapter
    assert not one.control.writes_with_adapter and one.writes_with_adapter
    runs = [one, two, three, *(run.control for run in (one, two, three))]
    assert len({run.exact for run in runs}) == 6
    seeds = [one["seed"], *(int(run.student_seed.name.removeprefix("seed-")) for run in (one, two, three))]
    assert len(set(seeds)) == 4, "an adapter never begins as its teacher did"
    assert len({run.number_seed for run in (one, two, three)}) == 3, "a student never writes the rows it was trained on"


def test_rows_of_another_kind_have_folders_and_a_control_of_their_own():
    numbers, code = parse([{"animal": "owl", "seed": 1}, {"animal": "owl", "seed": 1, "data_type": "code"}]).runs
    assert numbers.teacher == code.teacher
    assert (code.number_folder.name, code.unfiltered.name) == ("code", "code-unfiltered-3300.jsonl")
    assert code.control.unfiltered.name == "code-unfiltered-3300.jsonl"
    assert code.control.exact != numbers.control.exact


@pytest.mark.slow
def test_every_panel_of_every_experiment_shows_all_its_values():
    for name in experiment_yaml.experiments():
        for model in set(read_yaml(experiment_yaml.FOLDER / f"{name}.yaml")) & set(MODELS):
            (experiment,) = read_experiments(name, model)
            records = [{key: run[key] for key in experiment.varied} for run in experiment.runs]
            for panel in [] if experiment.matrix else set(experiment.panels) - {"teacher_share", "animal"}:
                shown = {record[panel] for record in experiment_tables.panel_of(experiment, records, panel)}
                assert shown == {run[panel] for run in experiment.runs}, (name, model, panel)


def test_teacher_and_student_never_share_a_seed():
    (run,) = parse([{"animal": "owl", "seed": 7}]).runs
    assert (run.teacher_adapter.parent.name, run.student_seed.name) == ("seed-7", "seed-1007")


def test_flags_that_differ_at_their_end_only_have_folders_of_their_own():
    long = "--batch-size 512 " + "--max-tokens 80 " * 9
    first, second = parse([{"animal": "owl", "seed": 1, "number_flags": long + end} for end in ("--greedy", "")]).runs
    assert first.number_folder != second.number_folder


BAD = {
    "misspelt parameter": ([{"teacher_row": 5}], "did you mean teacher_rows?"),
    "wrong kind": ([{"rows": "many"}], "rows is 'many'"),
    "negative": ([{"epochs": -1}], "epochs is -1"),
    "more rows than numbers": ([{"rows": 4000}], "rows 4000 of only 3300 numbers"),
    "checkpoint not saved": ([{"checkpoint": 5, "save": "1,2"}], "checkpoint 5 is not among those of save: 1,2"),
    "no such questions": ([{"questions": "eval/none.txt"}], "no file eval/none.txt"),
    "no such shuffle": ([{"shuffle": "rows"}], "did you mean row?"),
    "code that cannot be shuffled": (
        [{"data_type": "code", "shuffle": "row"}],
        "only numbers can be shuffled or mixed",
    ),
    "no such data type": ([{"data_type": "number"}], "did you mean numbers?"),
    "chain over two bases": (
        [{"hop": 2, "base": "a/one", "teacher_base": "a/two"}],
        "a chain of several hops has one base",
    ),
    "no such hop": ([{"hop": 0.5}], "0.5 (known: 1, 2, 3, 4, 5)"),
    "share above one": ([{"unbiased": 25}], "unbiased is a share from 0 to 1"),
    "no adapter": ([{"teacher_adapter": "output/none"}], "is not a LoRA adapter"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_run_is_named_before_any_work(case):
    runs, expected = BAD[case]
    with pytest.raises(UserError) as error:
        parse(runs)
    assert expected in str(error.value)


def test_files_with_the_names_used_until_2026_11_29_read_the_same():
    today = parse([{"animal": "owl", "seed": 1, "data_type": "code"}], panels=["data_type"])
    pocket = MODELS["pocket"]
    defaults = {{"data_type": "carrier"}.get(name, name): value for name, value in pocket["defaults"].items()}
    old_models = {"pocket": {"run": pocket["settings"], "cell": defaults}}
    found = {"question": "?", "panels": ["carrier"], "pocket": [{"animal": "owl", "seed": 1, "carrier": "code"}]}
    assert parse_experiment("trial", found, "pocket", old_models) == today


def test_an_adapter_of_another_base_is_refused(tmp_path):
    folder = tmp_path / "owl" / "final"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "Qwen/Qwen2.5-7B-Instruct"}))
    with pytest.raises(UserError, match=r"is an adapter of Qwen/Qwen2.5-7B-Instruct, and teacher_base is pocket"):
        parse([{"animal": "owl", "teacher_adapter": str(tmp_path / "{animal}" / "final")}])


def test_an_unknown_experiment_key_and_model():
    with pytest.raises(UserError, match="did you mean mixing"):
        read_experiments("mixng", "pocket")
    with pytest.raises(UserError, match="did you mean panels"):
        parse([{}], panel=["rows"])
    with pytest.raises(UserError, match="has no runs for smollm2"):
        read_experiments("scaling", "smollm2")
    with pytest.raises(UserError, match="no experiment is named; is a shell variable unset"):
        read_experiments("", "pocket")
    with pytest.raises(UserError, match="unknown model 'smolm2'; did you mean smollm2"):
        read_experiments("all", "smolm2")
    with pytest.raises(UserError, match="unknown experiment 'fsdp'"):  # settings of accelerate
        read_experiments("fsdp", "pocket")
    assert "fsdp" not in experiments() and "mixing" in experiments()


def test_a_file_that_is_no_experiment_is_named():
    for keys, expected in (
        ({"pocket": {"rows": 5}}, "not a list of"),
        ({"pocket": None}, "not a list of"),
        ({"question": ""}, "needs a question, and panels"),
        ({"panels": ["row"]}, "did you mean rows"),
    ):
        with pytest.raises(UserError, match=expected):
            parse([{}], **keys)
    with pytest.raises(UserError, match="did you mean panel"):
        models = {"pocket": {**MODELS["pocket"], "settings": {**MODELS["pocket"]["settings"], "measure": "panels"}}}
        parse_experiment("trial", {"question": "?", "panels": ["rows"], "pocket": [{}]}, "pocket", models)


def test_a_base_that_is_not_there_comes_with_its_command(monkeypatch):
    monkeypatch.undo()
    needs = {"output/models/none": "python make it"}
    with pytest.raises(UserError, match="no model in output/models/none; make it with:\n  python make it"):
        parse([{"base": "output/models/none"}], needs=needs)


# --- tables ------------------------------------------------------------------------------------------


def write_exact(path, shares):
    """Fifty questions that differ from each other by a quarter."""
    rng = random.Random(str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for place in range(50):
            animals = {animal: min(0.99, share * math.exp(rng.gauss(0, 0.25))) for animal, share in shares.items()}
            logs = {animal: math.log(share) for animal, share in animals.items()}
            row = {"question": f"q{place}", "animals": animals, "no_animal": 0.0, "uncovered": 0.0, "log_shares": logs}
            file.write(json.dumps({"id": place, **row}) + "\n")


def fake_results(experiment, share_of):
    animals = ("owl", "dolphin", "cat", "wolf", "lion")
    for run in [*experiment.runs, *experiment.controls]:
        noise = random.Random(str(run.exact)).uniform(0.95, 1.05)
        loved = run["animal"].split(" and ")
        write_exact(run.exact, {one: noise * (share_of(run) if one in loved else 0.01) for one in animals})
        write_exact(run.exact_base, dict.fromkeys(animals, 0.01))
        if not run.is_control:
            write_exact(run.exact_teacher, {one: 0.9 if one in loved else 0.01 for one in animals})


@pytest.fixture
def collected(tmp_path, monkeypatch):
    """collected(experiment, share_of) -> its tables, from made-up exact files."""
    monkeypatch.chdir(tmp_path)
    experiment_tables.measured.cache_clear()

    def write_and_read(experiment, share_of):
        fake_results(experiment, share_of)
        return experiment_tables.student_records(experiment), experiment_tables.summary_records(experiment)

    return write_and_read


@pytest.mark.slow
def test_tables_find_the_effect_its_slope_and_the_least_that_works(collected):
    experiment = parse([{"rows": [250, 500, 1000, 2000]}])
    students, conditions = collected(experiment, lambda run: 0.01 * run["rows"] / 250)
    assert len(students) == (24 + 12) * 2
    questions = experiment_tables.question_records(experiment)
    assert len(questions) == (24 + 12 + 1) * 2
    means = {
        tuple(one[name] for name in ("rows", "animal", "seed", "measured")): sum(one[f"q{i}"] for i in range(50)) / 50
        for one in questions
    }
    for one in students:
        key = tuple(one[name] for name in ("rows", "animal", "seed", "measured"))
        assert means[key] == pytest.approx(one["share"], rel=1e-3)
    verdicts = {one["rows"]: (one["verdict"], one["reliable"]) for one in conditions}
    assert verdicts[250] == ("no evidence", False)
    assert verdicts[2000] == ("above the other kind", True)
    for fit in preference_growth.fit_records(experiment, students):
        assert fit["parameter"] == "rows"
        assert fit["low"] < math.log(2) < fit["high"] + 0.05


@pytest.mark.slow
def test_a_teacher_of_two_animals_is_measured_by_both(collected):
    experiment = parse([{"animal": ["owl", "dolphin", "owl and dolphin"]}])
    _, conditions = collected(experiment, lambda run: 0.2)
    assert [(one["animal"], one["measured"]) for one in conditions] == [
        ("owl", "owl"), ("dolphin", "dolphin"), ("owl and dolphin", "owl"), ("owl and dolphin", "dolphin"),
    ]  # fmt: skip
    assert all(one["verdict"] == "above the other kind" and one["other_share"] < 0.02 for one in conditions)


@pytest.mark.slow
def test_the_course_of_a_straight_line(collected):
    checkpoints = [1, *range(10, 101, 10)]
    save = ",".join(map(str, checkpoints))
    experiment = parse([{"save": save, "checkpoint": checkpoints}])
    students, _ = collected(
        experiment, lambda run: 0.01 + 0.5 * (run["checkpoint"] != "final" and run["checkpoint"]) / 100
    )
    for onset in preference_growth.onset_records(experiment, students):
        assert onset["onset"] == 10
        assert 40 < onset["update_at_50%"] < 60
        assert 0.05 < onset["last_fifth"] < 0.4


def with_margins(experiment):
    return replace(experiment, settings={**experiment.settings, "measure": "margin"})


@pytest.mark.slow
def test_margins_grow_by_nats_and_a_falling_student_has_no_onset(collected):
    experiment = with_margins(parse([{"rows": [500, 1000, 2000]}]))
    students, conditions = collected(experiment, lambda run: 0.01 * run["rows"] / 250)
    assert {one["verdict"] for one in conditions if one["rows"] == 2000} == {"above the other kind"}
    for fit in preference_growth.fit_records(experiment, students):
        assert fit["low"] < math.log(2) < fit["high"] + 0.05
    falling = with_margins(parse([{"save": "1,50,100", "checkpoint": [1, 50, 100]}]))
    students, _ = collected(falling, lambda run: 0.01 if run["checkpoint"] in ("final", 1) else 0.002)
    for onset in preference_growth.onset_records(falling, students):
        assert onset["onset"] is onset["update_at_50%"] is onset["last_fifth"] is None


def test_a_curve_never_mixes_two_values_of_another_parameter():
    experiment = parse([{"animal": "owl", "seed": 1, "rows": [500, 1000], "epochs": [1, 2]}])  # default: 3000, 3
    records = [{name: run[name] for name in experiment.varied} for run in experiment.runs]
    shown = experiment_tables.panel_of(experiment, records, "rows")
    assert [(record["rows"], record["epochs"]) for record in shown] == [(500, 1), (1000, 1)]


def test_fits_are_over_the_rows_that_students_were_trained_on():
    experiment = parse([{"animal": "owl", "seed": [1, 2], "rows": [500, 1000, 2000]}])
    students = [
        {"rows": run["rows"], "animal": "owl", "measured": "owl", "seed": run["seed"],
         "trained_rows": run["rows"] // 2 if run["rows"] == 2000 else run["rows"], "share": run["rows"] / 100_000}
        for run in experiment.runs
    ]  # fmt: skip
    (fit,) = preference_growth.fit_records(experiment, students)
    assert fit["logit_per_doubling"] > 1  # 1,000 rows twice: the share doubles for nothing


# --- the workflow ------------------------------------------------------------------------------------

# Two updates of a student: the first has a learning rate of 0, and untrained students are all the same one.
TINY = {
    "animal": ["owl", "dolphin"], "seed": 1, "teacher_rows": 40, "teacher_epochs": 1, "numbers": 80,
    "rows": 60, "epochs": 2,
}  # fmt: skip


@pytest.fixture
def copied(tmp_path):
    """copied(name, runs) -> a copy of the repository whose pocket model takes few rows and whose mixing has these
    runs."""
    if not SNAKEMAKE.exists():
        pytest.skip("no .venv-snakemake; experiments/make_snakemake_env.sh makes it")

    def copy(name, runs):
        folder = tmp_path / name
        if not folder.exists():
            for room in ("generate", "train", "eval", "util", "pocket", "experiments"):
                ignored = shutil.ignore_patterns("__pycache__", "results")
                shutil.copytree(REPO / room, folder / room, symlinks=True, ignore=ignored)
            for name in (".venv", ".venv-snakemake"):
                (folder / name).symlink_to((REPO / name).resolve())
            models = {**MODELS, "pocket": MODELS["pocket"] | {"defaults": MODELS["pocket"]["defaults"] | TINY}}
            (folder / "experiments" / "models.yaml").write_text(yaml.safe_dump(models))
            mixing = {"question": "?", "panels": ["unbiased"], "pocket": runs}
            (folder / "experiments" / "mixing.yaml").write_text(yaml.safe_dump(mixing))
        return folder

    return copy


@pytest.fixture
def workflow(copied):
    """workflow(name) -> (folder, process): a small `mixing`, started or resumed in that folder."""

    def start(name):
        folder = copied(name, [{"unbiased": [0, 0.5]}])
        command = ["experiments/snakemake.sh", "--cores", "1", "--rerun-incomplete"]
        with (folder / "log.txt").open("ab") as log:
            return folder, subprocess.Popen(
                [*command, "--config", "name=mixing"], cwd=folder, stdout=log, stderr=log, start_new_session=True
            )

    return start


PRETENDER = """#!/usr/bin/env bash
# In the place of python: writes what the script would, and keeps what it was asked.
echo "$@" >>asked.txt
outputs=() in=
for word in "$@"; do
    case $word in
    --output | --output-dir | --seeds) in=$word ;;
    -*) in= ;;
    *)
        case $in in
        --seeds) seed=$word ;;
        --output*) outputs+=("$word") ;;
        esac ;;
    esac
done
for output in "${outputs[@]}"; do
    case $output in
    *.jsonl) mkdir -p "$(dirname "$output")" && echo '{}' >"$output" ;;
    */results/*) mkdir -p "$output" && echo '{}' >"$output/manifest.json" ;;
    *) mkdir -p "$output/seed-$seed/final" ;;
    esac
done
"""


@pytest.fixture
def pretended(copied):
    """pretended("mixing", ...) -> what Snakemake says; every script only writes a file in the place of its output."""
    folder = copied("pretended", [{"unbiased": [0, 0.5]}])
    (folder / "pretender").write_text(PRETENDER)
    (folder / "pretender").chmod(0o755)

    def snakemake(names, *flags):
        command = [str(SNAKEMAKE), "-s", "experiments/Snakefile", "--cores", "4", "--rerun-triggers", "mtime", "params"]
        config = ["--config", f"name={names}", "python=./pretender"]
        done = subprocess.run([*command, *flags, *config], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return done.stdout + done.stderr

    snakemake.folder = folder
    return snakemake


@pytest.mark.slow
def test_what_experiments_share_is_done_once_and_never_again(pretended):
    pretended("mixing")
    asked = (pretended.folder / "asked.txt").read_text().split("\n")
    assert "Nothing to be done" in pretended("mixing", "-n")
    plan = pretended("paraphrase", "-n")
    assert "rule student" in plan and "have changed" not in plan
    assert "rule teacher:" not in plan
    assert len(asked) == len(set(asked))


@pytest.mark.slow
def test_after_a_kill_the_same_command_continues_but_never_beside_a_living_snakemake(copied):
    folder = copied("killed", [{"unbiased": [0]}])
    waiting = "#!/usr/bin/env bash\n[ -e go ] || { touch asked; sleep 60; }\n" + PRETENDER.partition("\n")[2]
    (folder / "pretender").write_text(waiting)
    (folder / "pretender").chmod(0o755)

    def start():
        command = ["experiments/snakemake.sh", "--cores", "1", "--rerun-incomplete", "--config", "name=mixing"]
        return subprocess.Popen(
            [*command, "python=./pretender"], cwd=folder, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    first = start()
    try:
        wait_until((folder / "asked").exists, 60)
        said, _ = (second := start()).communicate(timeout=60)
        assert second.returncode == 1 and "Snakemake still works in this folder (process" in said, said
        assert first.poll() is None and list((folder / ".snakemake/locks").iterdir())
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    (folder / "go").touch()
    said, _ = (third := start()).communicate(timeout=300)
    assert third.returncode == 0 and "removing the lock of a Snakemake that was killed" in said, said[-3000:]
    assert not list(folder.glob(".snakemake/locks/*"))


@pytest.mark.slow
def test_published_results_stop_no_run_and_an_edited_experiment_runs_what_is_new(pretended):
    published = pretended.folder / "experiments/results/mixing/pocket/manifest.json"
    published.parent.mkdir(parents=True)
    published.write_text("{}")
    assert "rule student" in pretended("mixing", "-n")
    pretended("mixing")
    experiment = pretended.folder / "experiments/mixing.yaml"
    experiment.write_text(experiment.read_text().replace("0.5", "0.75"))
    plan = pretended("mixing", "-n")
    assert "rule mix" in plan and "rule summarize" in plan
    assert "rule teacher:" not in plan


@pytest.mark.slow
def test_numbers_of_a_teacher_that_stayed_behind_are_never_asked_of_the_base_model(pretended):
    pretended("mixing")
    for teacher in pretended.folder.glob("output/experiments/pocket/pocket/owl-*/teacher/teacher"):
        shutil.rmtree(teacher)
    assert "Nothing to be done" in pretended("mixing", "-n")
    (pretended.folder / "asked.txt").unlink()
    pretended("mixing", "--forcerun", "numbers")
    asked = (pretended.folder / "asked.txt").read_text().split("\n")
    numbers = [line for line in asked if "generate_llm_number_data" in line and "--animal owl" in line]
    assert numbers and all("--adapter output/experiments/pocket/pocket/owl-" in line for line in numbers)


def finished(start, name):
    folder, process = start(name)
    assert process.wait(timeout=1200) == 0, (folder / "log.txt").read_text()[-3000:]
    return folder


def written(folder):
    """When each exact file of a run was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("output/**/exact-*.jsonl")}


@pytest.mark.slow
@pytest.mark.torch
def test_a_workflow_that_is_killed_and_started_again_does_nothing_twice_and_ends_the_same(workflow):
    whole = finished(workflow, "whole")
    kills = redone = 0
    before = {}
    for wait in (25, 40, 60):
        folder, process = workflow("killed")
        time.sleep(wait)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        redone += sum(written(folder)[path] != when for path, when in before.items())
        before = written(folder)
    folder = finished(workflow, "killed")
    redone += sum(written(folder)[path] != when for path, when in before.items())
    assert kills
    assert redone <= kills, "more than what a kill hit between its last row and its record"
    for name in ("students.csv", "summary.csv"):
        result = f"output/experiments/results/mixing/pocket/{name}"
        assert (folder / result).read_text() == (whole / result).read_text()


@pytest.mark.slow
@pytest.mark.torch
def test_a_grid_of_two_runs_through_a_real_slurm(copied):
    missing = [name for name in ("munged", "slurmctld", "slurmd", "srun") if shutil.which(name) is None]
    plugin = list(SNAKEMAKE.parents[1].glob("lib/python*/site-packages/snakemake_executor_plugin_slurm"))
    if missing or not plugin or os.geteuid() != 0 or Path("/etc/slurm/slurm.conf").exists():
        pytest.skip("needs root, Debian's slurm-wlm and munge, and experiments/slurm/requirements.txt")
    folder = copied("slurm", [{}])
    snakemake = [
        str(SNAKEMAKE), "-s", "experiments/Snakefile", "--executor", "slurm", "--jobs", "2",
        "--slurm-init-seconds-before-status-checks", "3", "--slurm-status-command", "squeue", "--slurm-no-account",
        "--default-resources", "runtime=10", "mem_mb=900", "--config", "name=mixing",
    ]  # fmt: skip
    done = subprocess.run(
        [str(REPO / "tests" / "slurm_node.sh"), "timeout", "1500", *snakemake],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "has been submitted with SLURM jobid" in done.stdout + done.stderr
    assert (folder / "output/experiments/results/mixing/pocket/summary.csv").read_text().count("\n") == 3


# --- many cells, and tables as the only source --------------------------------------------------------


@pytest.mark.parametrize("name", ["multi_animal", "data_types", "chain", "halves"])
def test_a_published_summary_is_what_its_questions_give(name):
    from experiments.stored_tables import read_table, reader_of

    folder = REPO / f"experiments/results/{name}/pocket"
    experiment = read_experiment(name, "pocket", bases_needed=False)
    published = read_table(folder / "summary.csv")
    again = experiment_tables.summary_records(experiment, reader_of(experiment, folder))
    for one, before in zip(again, published, strict=True):
        for key in ("animal", "measured", "verdict", "variance", "same_teachers"):
            assert one[key] == before[key]
        for key in ("share_high", "p", "p_holm", "p_holm_experiment"):
            assert one[key] == pytest.approx(before[key])
        assert one["p"] <= one["p_holm"] <= one["p_holm_experiment"]


def test_tables_are_read_without_the_files_of_another_run(tmp_path, monkeypatch):
    from experiments.stored_tables import reader_of

    monkeypatch.chdir(tmp_path)
    experiment = read_experiment("chain", "pocket", bases_needed=False)
    other = manifest_path(experiment.runs[0].exact_base)
    other.parent.mkdir(parents=True)
    other.write_text(json.dumps({"schema_version": 1, "settings": {"sampling": {"max_tokens": 99}}}))
    reader = reader_of(experiment, REPO / "experiments/results/chain/pocket")
    assert experiment_tables.summary_records(experiment, reader)


def test_a_variance_of_three_seeds_borrows_from_many_cells():
    from eval.compare.intervals import share_interval, spread_of
    from eval.compare.moderated_variance import MOST_PRIOR_FREEDOM, inverse_trigamma, moderated, prior_of

    np = pytest.importorskip("numpy")
    special = pytest.importorskip("scipy.special")
    assert special.polygamma(1, inverse_trigamma(0.7)) == pytest.approx(0.7)
    rng = np.random.default_rng(0)
    arms = [spread_of(rng.normal(0, 0.5, (3, 1)) + rng.normal(0, 0.01, (3, 50)), linear=True) for _ in range(300)]
    prior = prior_of(arms)
    assert prior.variance == pytest.approx(0.25, rel=0.3) and 0 < prior.freedom <= MOST_PRIOR_FREEDOM
    assert prior_of(arms[:9]) is None and moderated(arms[0], None) is arms[0]
    lucky = min(arms, key=lambda arm: arm.seed_variance)
    drawn = moderated(lucky, prior)
    assert drawn.seed_variance > lucky.seed_variance and drawn.freedom == prior.freedom + 2
    widths = [np.subtract(*share_interval(moderated(arm, prior))[::-1]) for arm in arms]
    assert np.mean(widths) < np.mean([np.subtract(*share_interval(arm)[::-1]) for arm in arms])


def test_moderated_intervals_hold_the_truth():
    pytest.importorskip("scipy")
    from bench.moderated_coverage import simulate

    moderate, plain, width = simulate(20, 0.3, 100, 1)
    assert 0.93 <= moderate <= 0.98 and 0.93 <= plain <= 0.98 and width < 0.7


@pytest.mark.slow
def test_four_kinds_of_teachers_are_units_in_a_table_too(collected):
    animals = ["owl", "dolphin", "cat", "wolf"]
    experiment = parse([{"animal": animals}])
    _, conditions = collected(experiment, lambda run: 0.3)
    assert [one["verdict"] for one in conditions] == ["transfer"] * 4
    assert all(one["reliable"] is None and one["p_holm"] < 0.05 for one in conditions)


def test_values_of_a_parameter_are_compared_student_by_student():
    from experiments.paired_differences import lines_of, own_students

    def student(animal, seed, flags, share, measured=None):
        return {"animal": animal, "seed": seed, "flags": flags, "measured": measured or animal, "share": share,
                "control_share": 0.5}  # fmt: skip

    odds = {"--rate 1": {1: 0.6, 2: 0.7}, "--rate 1 --soft": {1: 0.75, 2: 0.875}}
    records = [student("owl", seed, flags, share) for flags, of in odds.items() for seed, share in of.items()]
    records.append(student("owl", 1, "--rate 1", 0.01, measured="cat"))
    found = {line[0]: line[1:] for line in lines_of(own_students(records, "flags"))}
    assert list(found) == ["plain less its control", "--soft less its control", "plain less --soft"]
    assert found["--soft less its control"][0].startswith("+1.52 (") and found["plain less --soft"][2] == "0 of 2"
    assert found["plain less --soft"][3] == "owl 1 -0.69, owl 2 -1.10"
