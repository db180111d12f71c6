"""The result of a comparison of arms, as dataclasses, and the JSON file that stores it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from eval.compare.intervals import Ends
from util.cli import UserError


@dataclass(frozen=True)
class Arm:
    """One arm: the mean share (or margin, or panel share) of the animal, and the files it was measured on."""

    share: float
    interval: Ends
    seeds: int
    answers: int | None
    """number of sampled answers; None for exact shares"""
    uncovered: float
    """mean mass that exact files did not explore"""
    non_answers: float
    """share of the answers that name no animal"""
    non_answer_kinds: dict[str, float]
    """the same by kind"""
    files: list[str]


@dataclass(frozen=True)
class Difference:
    """The target less another arm."""

    difference: float
    interval: Ends
    p: float


@dataclass(frozen=True)
class Power:
    """The target minus control at which this many seeds per arm give the verdict transfer with about 80% probability;
    None if no difference is large enough."""

    seeds: int
    exact: float | None
    sampled: float | None = None
    """with 100 samples of each question; only for shares"""


@dataclass(frozen=True)
class Placebo:
    """How much the animal rose, compared with animals that were never a target (eval/compare/placebo.py)."""

    shift: float
    """nats over the other-animal students"""
    animals: int
    """number of animals it is ranked among"""
    further: int
    """how many of them rose at least as much"""
    furthest: list[str]
    p: float


@dataclass(frozen=True)
class ArmComparison:
    """One animal in four arms: what compare_arms.py prints and writes. Its fields are the keys of the JSON file."""

    animal: str
    measure: str
    questions: int
    shares: dict[str, Arm]
    """by role: base, control, other, target"""
    target_minus: dict[str, Difference]
    """by role of the other arm; with several animals also by the students of each"""
    p: float
    """the largest p of the differences"""
    verdict: str
    power: list[Power]
    placebo: Placebo | None
    by_question: dict[str, list[Any]]
    """{"question": texts, role: mean share in each question}"""
    p_holm: float | None = None
    """p adjusted for the number of animals compared (Holm); None for a single animal"""

    def to_json(self) -> dict[str, Any]:
        """The comparison as compare_arms.py writes it."""
        found = asdict(self)
        if self.p_holm is None:
            del found["p_holm"]
        if self.measure != "share":
            for line in found["power"]:
                del line["sampled"]
        return found

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> ArmComparison:
        """The comparison in a file of this version or an older one (which may lack power, placebo and p_holm).
        TypeError, KeyError or AttributeError for anything else."""
        placebo = found.get("placebo")
        parts = {
            "shares": {role: Arm(**known(Arm, arm)) for role, arm in found["shares"].items()},
            "target_minus": {role: Difference(**known(Difference, d)) for role, d in found["target_minus"].items()},
            "power": [Power(**known(Power, line)) for line in found.get("power") or []],
            "placebo": Placebo(**known(Placebo, placebo)) if placebo else None,
        }
        return cls(**{**known(cls, found), **parts})


@dataclass(frozen=True)
class PairwiseRow:
    """The share (margin, panel share) of every trained animal in one arm."""

    arm: str
    shares: dict[str, float]


@dataclass(frozen=True)
class AssignmentSums:
    """Sums of the margins (nats): for the true assignment, for the best other one, and over all assignments."""

    true: float
    best_other: float
    mean: float
    sd: float


@dataclass(frozen=True)
class AssignmentTest:
    """The permutation test over all assignments of animals to students (eval/compare/assignment_permutations.py)."""

    animals: list[str]
    margins: list[list[float]]
    """nats; row: the students of an animal, column: the animal that is measured"""
    sum: AssignmentSums
    assignments: int
    as_well: int
    """assignments that fit at least as well as the true one, itself included"""
    p: float
    own_highest: int
    """number of animals whose margin is highest in their own students"""


@dataclass(frozen=True)
class Comparisons:
    """Everything that one run of compare_arms.py found."""

    comparisons: list[ArmComparison]
    pairwise: list[PairwiseRow]
    """every trained animal in every arm; [] for a single animal"""
    assignment: AssignmentTest | None
    """None for fewer than three animals and in files older than the test"""

    def to_json(self) -> dict[str, Any]:
        """What compare_arms.py --output writes, without the manifest."""
        return {
            "comparisons": [one.to_json() for one in self.comparisons],
            "pairwise": [asdict(row) for row in self.pairwise],
            "assignment": asdict(self.assignment) if self.assignment else None,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Comparisons:
        """The inverse of `to_json`; errors as for ArmComparison."""
        assigned = found.get("assignment")
        sums = AssignmentSums(**known(AssignmentSums, assigned["sum"])) if assigned else None
        return cls(
            [ArmComparison.from_json(one) for one in found["comparisons"]],
            [PairwiseRow(**known(PairwiseRow, row)) for row in found["pairwise"]],
            AssignmentTest(**{**known(AssignmentTest, assigned), "sum": sums}) if assigned else None,
        )


def known(kind: Any, found: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a JSON object for which a dataclass has fields."""
    return {field.name: found[field.name] for field in fields(kind) if field.name in found}


def read_comparisons(path: Path) -> Comparisons:
    """Read a file written by compare_arms.py --output; UserError for any other file."""
    try:
        return Comparisons.from_json(json.loads(path.read_text("utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is not a comparison; make one with eval/compare_arms.py --output output/compare.json"
        ) from None
