"""Logs what was measured of a student to the Weights & Biases run of its training: shares over the updates.

The run page then shows, beside the losses, a curve of the animal's share with its interval, and a table of the animals
that each checkpoint names most. A report adds its figures, such as the matrix of animals by students, to the run of
every student that it compares.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.compare.comparability import adapter_folder
from eval.compare.intervals import Ends, share_interval
from eval.compare.read_results import arm_spread, mean_masses, read_result
from util.cli import UserError
from util.jsonl.manifest import Manifest
from util.wandb_run import finish_run, start_run

NAMED = 10  # animals in the table
PROJECT = "subliminal-learning"  # where the training names none


@dataclass(frozen=True)
class StudentRun:
    """The W&B run of a student's training, and the update at which the student was measured."""

    run_id: str
    project: str
    update: int


def student_run(adapter: Path | None) -> StudentRun:
    """The run of the training that wrote an adapter. UserError if there is none: shares need a curve to belong to."""
    training = Manifest.read(adapter.parent) if adapter else None
    if adapter is None or training is None or training.script != "train_student_sft":
        raise UserError(
            "--report-to wandb writes into the run of a student's training; pass --adapter with a folder that training"
            " wrote (final/ or checkpoint-N/)"
        )
    if training.wandb_run_id is None:
        raise UserError(
            f"the training of {adapter} was not logged to W&B (its manifest has no wandb_run_id); train with"
            " --report-to wandb, or leave --report-to out here"
        )
    number = re.fullmatch(r"checkpoint-(\d+)", adapter.name)
    update = int(number[1]) if number else int(training.counts.get("updates", 0))
    return StudentRun(training.wandb_run_id, training.arguments.get("wandb_project") or PROJECT, update)


def share_with_interval(path: Path, animal: str) -> tuple[float, Ends]:
    """The share of an animal in a results file, with its 95% interval over the questions."""
    result = read_result(path)
    spread = arm_spread([result], animal, result.questions, "share")
    return spread.share, share_interval(spread)


def named_most(path: Path) -> list[tuple[str, float]]:
    """(animal, share) of the animals that a results file names most."""
    masses = mean_masses([{"animals": named} for named in read_result(path).animals])
    return sorted(masses.items(), key=lambda item: (-item[1], item[0]))[:NAMED]


def figures_of(path: Path, animal: str | None, update: int) -> dict[str, float]:
    """What is logged at one update: the animal's share with the ends of its interval, and those named most."""
    found: dict[str, float] = {"train/global_step": update}
    if animal:
        share, (low, high) = share_with_interval(path, animal)
        found |= {f"eval/{animal}": share, f"eval/{animal} low": low, f"eval/{animal} high": high}
    return found | {f"animals/{name}": share for name, share in named_most(path)}


def log_shares(run: StudentRun, path: Path, animal: str | None) -> None:
    """Write the shares of a results file into the student's run."""
    import wandb

    wandb_run: Any = start_run(run.project, None, None, run.run_id)
    for pattern in ("eval/*", "animals/*"):
        wandb_run.define_metric(pattern, step_metric="train/global_step")
    wandb_run.log(figures_of(path, animal, run.update))
    rows = [[run.update, name, share] for name, share in named_most(path)]
    wandb_run.log({f"named most at update {run.update}": wandb.Table(columns=["update", "animal", "share"], data=rows)})
    finish_run(wandb_run)


# --- a report's figures ------------------------------------------------------------------------------


def runs_of(results: Sequence[Path], root: Path) -> list[StudentRun]:
    """The runs of the students behind some results files, each once. root: where the folders of adapters start from."""
    found = {}
    for path in results:
        folder = adapter_folder(Manifest.read(path) or Manifest())
        training = folder and Manifest.read((root / folder).parent)
        if folder and training and training.wandb_run_id:
            run = student_run(root / folder)
            found[run.run_id] = run
    return list(found.values())


def log_figures(results: Sequence[Path], root: Path, figures: Mapping[str, bytes]) -> int:
    """Write figures (PNG) into the run of each student behind the results files; returns how many runs. UserError if
    no student has one."""
    import wandb
    from PIL import Image

    runs = runs_of(results, root)
    if not runs:
        raise UserError(
            f"none of the {len(results)} results files is of a student that was trained with --report-to wandb (its"
            " manifest has no wandb_run_id, or its folder is not here); leave --report-to out, or pass --root"
        )
    for run in runs:
        wandb_run: Any = start_run(run.project, None, None, run.run_id)
        wandb_run.log({f"report/{name}": wandb.Image(Image.open(io.BytesIO(png))) for name, png in figures.items()})
        finish_run(wandb_run)
    return len(runs)
