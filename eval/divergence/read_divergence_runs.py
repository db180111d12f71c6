"""Read the run folders of experiments/divergence.sh: the students by arm, and the tokens in their training rows.

A run is a folder of one seed: tokens-ANIMAL.jsonl (divergence_tokens.py), numbers-ANIMAL-ARM.jsonl
(select_by_divergence.py), exact-ANIMAL-ARM.jsonl and exact-base.jsonl (eval.py --exact).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from eval.answers.answer_rows import check_id
from eval.compare.read_results import Result, read_result
from eval.divergence.which_tokens_diverge import check_divergence
from util.cli import UserError
from util.jsonl.divergence_row import DEFINITIONS, of_answer
from util.jsonl.manifest import Manifest
from util.jsonl.rows import Row, read_rows

RunArms = dict[str, dict[int, Result]]
"""{arm: {index of the run: its student}} of one animal"""
ALL, BASE_FILE = "all", "exact-base.jsonl"
TREATMENTS = ("only", "random", "without", "all-but-random", "rows-rich", "rows-poor", "rows-random")
DENSITIES = {
    **{name: f"{name}, % of answer tokens" for name in DEFINITIONS},
    "kl": "KL(teacher || base), 0.01 nats per token",
}


def arms_in(folder: Path, animal: str) -> dict[str, Path]:
    """{arm: its results} of an animal in one run, in the order of the tables."""
    found = {path.stem.removeprefix(f"exact-{animal}-"): path for path in folder.glob(f"exact-{animal}-*.jsonl")}
    order = [ALL, *(f"{definition}-{treatment}" for definition in DEFINITIONS for treatment in TREATMENTS)]
    return {arm: found[arm] for arm in order if arm in found}


def animals_in(runs: Sequence[Path]) -> list[str]:
    """The animals whose tokens were measured in every run."""
    each = [{path.stem.removeprefix("tokens-") for path in folder.glob("tokens-*.jsonl")} for folder in runs]
    for folder, animals in zip(runs, each):
        if not folder.is_dir():
            raise UserError(f"no folder {folder}; name one of experiments/divergence.sh: output/divergence-seed-42")
        if not animals:
            raise UserError(
                f"{folder} has no tokens-ANIMAL.jsonl; run experiments/divergence.sh (SEED chooses the run)"
            )
    return sorted(set.intersection(*each))


def read_base(folder: Path) -> Result:
    """The results of the base model in a run folder."""
    path = folder / BASE_FILE
    if not path.is_file():
        raise UserError(f"no {path}; make it with eval/eval.py --exact, or run experiments/divergence.sh again")
    return read_result(path)


def divergence_of(folder: Path, animal: str) -> dict[int, Row]:
    """{id of a number row: its row in the divergence file}. The arm *all* has every row, in the order of the file."""
    every = folder / f"numbers-{animal}-{ALL}.jsonl"
    if not every.is_file():
        raise UserError(f"no {every}: the arm {ALL!r} gives the ids of the rows; run experiments/divergence.sh again")
    tokens = read_rows(folder / f"tokens-{animal}.jsonl", check_divergence)
    return {row["id"]: found for row, found in zip(read_rows(every, check_id), tokens)}


def rows_trained_on(folder: Path, animal: str, arm: str) -> list[Row]:
    """The rows that an arm's student was trained on: the first ones of its file, as many as its manifest says."""
    # not seed-42.<label>: training moves the folder of another run aside under such a name
    seeds = [seed for seed in (folder / f"{animal}-{arm}").glob("seed-*") if re.fullmatch(r"seed-\d+", seed.name)]
    manifests = [Manifest.read(seed) or Manifest() for seed in seeds]
    count = max((manifest.settings.get("rows") or 0 for manifest in manifests), default=0)
    return list(islice(read_rows(folder / f"numbers-{animal}-{arm}.jsonl", check_id), count or None))


def described_rows(rows: Sequence[Row], found: dict[int, Row]) -> dict[str, float]:
    """Of some rows: their number, tokens with loss, the fraction of answer tokens that each definition marks, and the
    mean KL(teacher || base) of answer tokens in nats."""
    answers = [found[row["id"]] for row in rows]
    tokens = sum(len(of_answer(answer, answer["kinds"])) for answer in answers)
    loss = sum(sum(row["loss_mask"]) if "loss_mask" in row else len(found[row["id"]]["kinds"]) for row in rows)
    facts = {"rows": len(rows), "tokens_with_loss": loss}
    return facts | {
        name: sum(sum(of_answer(answer, answer[name])) for answer in answers) / tokens
        for name in DENSITIES
        if name in answers[0]
    }


def read_arms(animal: str, runs: Sequence[Path]) -> RunArms:
    """The students of an animal by arm and run."""
    present = [arms_in(folder, animal) for folder in runs]
    names = dict.fromkeys(name for one in present for name in one)
    return {arm: {place: read_result(one[arm]) for place, one in enumerate(present) if arm in one} for arm in names}


def inputs_of(runs: Sequence[Path]) -> list[Path]:
    """All files of the runs that the tables use."""
    return sorted(
        path for folder in runs for kind in ("exact", "tokens", "numbers") for path in folder.glob(f"{kind}-*.jsonl")
    )
