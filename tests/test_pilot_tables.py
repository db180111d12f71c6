"""Tables of the pilots from committed measures: the tests that their pages cite come out again."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize("name", ["trees", "smollm2-sixteen"])
def test_the_tables_of_other_kinds_are_made_again(name):
    made = printed("other_kinds.py", str(RESULTS / name / "measures.jsonl"))
    assert made == (RESULTS / name / "tests.md").read_text("utf-8")
    page = {"trees": "docs/results-qwen.md", "smollm2-sixteen": "experiments/results/smollm2/README.md"}[name]
    rows = re.findall(r"^\| .*\|$", made, re.MULTILINE)
    assert len(rows) > 7 and all(row in (REPO / page).read_text("utf-8") for row in rows)


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
    said = printed("own_less_others.py", str(tmp_path / "two.json"), fails=True)
    assert "is not a comparison of three or more kinds by margin" in said and "Traceback" not in said
