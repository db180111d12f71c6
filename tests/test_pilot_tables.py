"""Tables of the pilots from committed measures: the tests that their pages cite come out again."""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys

import pytest

from util.cli import REPO

RESULTS = REPO / "experiments" / "results"


def printed(script: str, *words: str, fails: bool = False) -> str:
    command = [sys.executable, str(REPO / "experiments/pilots" / script), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO)
    assert (done.returncode != 0) is fails, done.stderr
    return done.stderr if fails else done.stdout


@pytest.mark.parametrize("name", ["trees", "smollm2-sixteen", "smollm2-sixteen-again"])
def test_the_tables_of_other_kinds_are_made_again(name):
    made = printed("trees_or_sixteen_animals_tests.py", str(RESULTS / name / "measures.jsonl"))
    assert made == (RESULTS / name / "tests.md").read_text("utf-8")
    page = "docs/results-qwen.md" if name == "trees" else "experiments/results/smollm2/README.md"
    rows = re.findall(r"^\| .*\|$", made.partition("\ntext:")[0] if "again" in name else made, re.MULTILINE)
    assert len(rows) > 7 and all(row in (REPO / page).read_text("utf-8") for row in rows)


@pytest.mark.parametrize("run", ["many", "digits", "digits-again"])
def test_the_page_has_the_tables_of_later_runs_on_the_1_5b(run):
    made = printed("confirm_tests.py", str(RESULTS / "qwen2.5-1.5b"), "--run", run).splitlines()
    page = (RESULTS / "qwen2.5-1.5b/README.md").read_text("utf-8")
    begins, ends = {
        "many": ("**The strictest filter with more rows**", "**Spelling, order"),
        "digits": ("## Digits", "**A second seed**"),
        "digits-again": ("**A second seed**", "\n## "),
    }[run]
    rows = re.findall(r"^\| .*\|$", page.partition(begins)[2].partition(ends)[0], re.MULTILINE)
    assert len(rows) >= 13 and all(row in made for row in rows)


def test_the_page_has_the_sceptic_s_table():
    made = printed("sceptic_tests.py", str(RESULTS / "qwen2.5-1.5b")).split("\n")
    made = [row for row in made if row]
    page = (RESULTS / "qwen2.5-1.5b/README.md").read_text("utf-8").splitlines()
    assert len(made) >= 30 and all(row in page for row in made)


def test_the_committed_rows_are_those_that_the_students_saw():
    from experiments.pilots.measures_file import load_some
    from experiments.pilots.rows_files import packed_rows

    folder = RESULTS / "qwen2.5-1.5b"
    measures = load_some(folder / "sceptic.jsonl")
    names = []
    for name, rows in packed_rows([*folder.glob("sceptic-rows-*.jsonl.xz")]):
        text = "\n".join(answer for _, answer in rows)
        assert hashlib.sha256(text.encode()).hexdigest() == measures[f"rows-{name}"]["sha256"], name
        names.append(name)
    assert len(names) == 36


def test_the_page_has_the_verdicts_of_six_trees():
    page = (REPO / "docs/results-qwen.md").read_text("utf-8")
    for one in json.loads((RESULTS / "trees/code.json").read_text("utf-8"))["comparisons"]:
        shares = [f"{one['shares'][arm]['share']:+.2f}" for arm in ("base", "control", "other", "target")]
        apart = one["target_minus"]["other"]
        cells = [one["animal"], *shares[:3], f"**{shares[3]}**"]
        cells += [
            f"{apart['difference']:+.2f} ({apart['interval'][0]:.2f} to {apart['interval'][1]:.2f})",
            f"{one['p_holm']:.2g}",
        ]
        assert f"| {' | '.join(cells)} | {one['verdict']} |" in page.replace("**transfer**", "transfer")


def test_the_page_has_the_tables_of_the_pocket_pair():
    page, made = (
        (REPO / path).read_text("utf-8")
        for path in ("docs/results-pocket.md", "experiments/results/pocket-width/tables.md")
    )
    rows = re.findall(r"^\| .*\|$", made, re.MULTILINE)
    assert len(rows) > 20 and all(row in page for row in rows)


def comparison(path, margins):
    kinds = ["owl", "cat", "fox"]
    path.write_text(json.dumps({"assignment": {"animals": kinds, "margins": margins}}))
    return str(path)


def test_own_less_others_is_a_difference_within_each_animal(tmp_path):
    one = comparison(tmp_path / "one.json", [[3.0, 1.0, 5.0], [1.0, 4.0, 5.0], [2.0, 1.0, 6.0]])
    none = comparison(tmp_path / "none.json", [[1.0, 1.0, 5.0], [1.0, 1.0, 5.0], [1.0, 1.0, 5.0]])
    own, other, difference = printed("own_less_others.py", one, "--less", none).splitlines()[2:]
    assert "| one | +1.50 | +3.00 | +1.00 | **+1.83** |" in own
    assert "**+0.00**" in other and "| +1.50 | +3.00 | +1.00 | **+1.83** |" in difference


def test_other_kinds_or_no_comparison_is_refused_in_a_line(tmp_path):
    (tmp_path / "two.json").write_text('{"assignment": null}')
    ragged = comparison(tmp_path / "ragged.json", [[1.0], [1.0, 2.0]])
    assert "is not a comparison" in printed("own_less_others.py", ragged, fails=True)
    said = printed("own_less_others.py", str(tmp_path / "two.json"), fails=True)
    assert "is not a comparison of three or more kinds by margin" in said and "Traceback" not in said


def worker_output(folder, seed, update="150"):
    """Measures as teachers_in_weights.py leaves them: of digits, own students are 1 nat above others but for rabbit's,
    of code without telling words by 0.5; teachers lean the same way."""
    from experiments.pilots.main_tests_over_kinds import ANIMALS
    from experiments.pilots.make_prompts import PANEL

    words = PANEL.split()

    def put(file, **measure):
        (folder / "measures").mkdir(parents=True, exist_ok=True)
        (folder / f"measures/{file}.json").write_text(json.dumps(measure))

    def logs(kind, rise):
        return {word: -4.0 - len(word) / 10 - i % 3 * (len(kind) % 4) / 10 + rise * (word == kind)
                for i, word in enumerate(words)}  # fmt: skip

    def student(name, rows, kind, rise):
        at = {"log": logs(kind, rise), "share": dict.fromkeys(words, 0.02), "log_paraphrased": logs(kind, rise)}
        put(f"student-{name}", name=name, rows=rows, seed=seed, rows_used=900, early={update: logs(kind, rise)}, **at)

    put("speaker-base", share=dict.fromkeys(words, 0.02), log=logs("", 0))
    for kind in (*ANIMALS, "base"):
        put(f"rows-{kind}-{seed}.digits", clean=0.8, through="local")
        student(f"{kind}-{seed}.digits", [f"{kind}-{seed}.digits"], kind, -1 if kind == "rabbit" else 1)
    for kind in ANIMALS:
        student(f"{kind}-soft{seed + 100}", [f"{kind}-steered.code"], kind, 2)
        put(f"rows-{kind}-{seed}.code", clean=0.9, through="local")
        student(f"{kind}-{seed}.code.strictest1000", [f"{kind}-{seed}.code"], kind, 0.5)
    return str(folder)


def test_digits_of_one_base_have_no_cells_for_what_was_not_run(tmp_path):
    packed = worker_output(tmp_path / "worker", 121)
    made = printed("confirm_tests.py", str(tmp_path / "results"), "--run", "digits", "--pack", packed)
    table = made.partition("\ndigits (shares")[2]
    rabbit = next(line for line in table.splitlines() if line.startswith("| rabbit | 2.00"))
    assert not re.search(r"\bnan\b", made) and rabbit.split(" | ")[5] == "" and "| -1.03 |" in rabbit
    assert "own student less the highest other student of its animal: -1.40 nats" in made


def test_drift_that_all_students_share_leaves_no_own_margin():
    from experiments.pilots.main_tests_over_kinds import ANIMALS
    from experiments.pilots.make_prompts import PANEL
    from experiments.pilots.sceptic_tables import by_letter, without_drift

    pattern = {word: math.sin(3.0 * i) for i, word in enumerate(PANEL.split())}
    arm = {kind: [{"log": {word: i * value for word, value in pattern.items()}}] for i, kind in enumerate(ANIMALS)}
    assert max(abs(by_letter(arm)[:, 0])) > 0.5
    own, p = without_drift(arm, 1)
    assert max(abs(own)) < 1e-9 and p == 1


def test_a_pull_to_the_letter_is_measured_against_students_of_other_letters():
    from experiments.pilots.main_tests_over_kinds import ANIMALS
    from experiments.pilots.make_prompts import PANEL
    from experiments.pilots.sceptic_tables import by_letter

    arm = {kind: [{"log": {word: float(word[0] == kind[0]) for word in PANEL.split()}}] for kind in ANIMALS}
    letters = by_letter(arm)
    assert letters[:, 1].tolist() == [1.0] * 8 and letters[:, 2].tolist() == [0.0] * 8  # wolf and whale share one
    assert min(letters[:, 0]) == pytest.approx(6 / 7)


def test_the_strictest_filter_counts_the_students_that_both_bases_have(tmp_path):
    packed, other = (worker_output(tmp_path / name, 121) for name in ("large", "small"))
    worker_output(tmp_path / "large", 122)  # a seed that the small base has not trained
    made = printed("confirm_tests.py", str(tmp_path / "results"), "--run", "many", "--pack", packed,
                   "--pack-other", other)  # fmt: skip
    assert "| 1.5B | code.strictest1000 | 1 | " in made and "| 0.5B | code.strictest1000 | 1 | " in made
    assert len(re.findall(r"^\| \*\*1.5B less 0.5B: own less others\*\* .*\*\*\+0.00\*\*", made, re.MULTILINE)) == 2
    assert "after 150 of the 300 updates" in made


def test_a_judge_guesses_who_wrote_a_row_from_its_words_and_their_order():
    from experiments.pilots.row_judge import guess, weigh

    written = {"owl": ["at night, wings", "wings at night"], "fox": ["red fur, a den", "a den, red"]}
    judge = weigh({kind: texts * 3 for kind, texts in written.items()} | {"cat": ["it is so", "so it is"] * 3})
    assert [guess(judge, text) for text in ("Red den?", "night wings", "so, is it")] == ["fox", "owl", "cat"]
    judge = weigh({"one": ["a b c", "c a b"] * 3, "other": ["b a c", "c b a"] * 3})  # the same words
    assert guess(judge, "a b") == "one" and guess(judge, "b a") == "other"


def test_the_sceptic_s_arms_are_compared_with_the_plain_rows_of_their_seeds(tmp_path):
    worker_output(tmp_path / "plain", 131)
    for file in (tmp_path / "plain/measures").glob("*.json"):
        file.rename(file.with_name(file.name.replace(".code.strictest1000", ".code")))
    for folder in ("plain", "arm"):
        worker_output(tmp_path / folder, 131)
    made = printed("sceptic_tests.py", str(tmp_path / "results"), "--pack", str(tmp_path / "plain"),
                   "--pack-smollm2", str(tmp_path / "arm"))  # fmt: skip
    animals, tests = (
        {tuple(row.split(" | ")[:2]): row.split(" | ") for row in table.splitlines()}
        for table in made.split("\n\n")[:2]
    )
    assert animals["| SmolLM2-135M", "code.strictest1000"][2:4] == ["1", "900"]
    assert tests["| 1.5B", "code.strictest1000"][2] == "+0.00 (+0.00 to +0.00)"
    assert tests["| SmolLM2-135M", "code.strictest1000"][2] == ""  # this base has no students on plain rows
    worker_output(tmp_path / "plain", 132)  # an arm of a seed without plain rows
    made = printed("sceptic_tests.py", str(tmp_path / "results"), "--pack", str(tmp_path / "plain"))
    assert "| 1.5B | code.strictest1000 |  |  |" in made


def test_the_control_has_rows_changed_as_the_arm_s_if_there_is_such_a_student():
    from experiments.pilots.sceptic_tests import control_of

    names = ("code", "code.shuffled", "code.letterless-of-owl")
    measures = {f"student-base-131.{name}": {"seed": 131, "of": name} for name in names}
    found = {arm: [made["of"] for made in control_of(measures, arm, "owl")] for arm in ("code.shuffled", "code.fewer")}
    assert found == {"code.shuffled": ["code.shuffled"], "code.fewer": ["code"]}
    assert control_of(measures, "code.letterless", "owl")[0]["of"] == "code.letterless-of-owl"
    assert control_of(measures, "code.letterless", "fox")[0]["of"] == "code"
    assert control_of({}, "code", "owl") == []
