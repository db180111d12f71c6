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
    """number of students, over all kinds in the arm"""
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
    """What a design detects with about 80% probability; None if no difference is large enough.

    With two or three kinds: the target minus control, by seeds per arm, in the unit of the measure. With four kinds or
    more: the target minus the other kinds' students, by the number of kinds, in nats (log odds).
    """

    seeds: int | None = None
    exact: float | None = None
    sampled: float | None = None
    """with 100 samples of each question; only for shares"""
    kinds: int | None = None
    above_others: float | None = None

    def to_json(self, measure: str) -> dict[str, Any]:
        """The fields that apply."""
        if self.kinds:
            return {"kinds": self.kinds, "above_others": self.above_others}
        sampled = {"sampled": self.sampled} if measure == "share" else {}
        return {"seeds": self.seeds, "exact": self.exact, **sampled}


@dataclass(frozen=True)
class UntaughtRank:
    """How much the animal rose, compared with animals that were never a target (eval/compare/untaught_rank.py)."""

    shift: float
    """nats over the other kinds' students"""
    animals: int
    """number of animals it is ranked among"""
    further: int
    """how many of them rose at least as much"""
    furthest: list[str]
    p: float
    """the rank as a fraction; not a p-value of transfer, because teachers move untaught animals too"""


@dataclass(frozen=True)
class ArmComparison:
    """One animal in four arms: what compare_arms.py prints and writes. Its fields are the keys of the JSON file."""

    animal: str
    measure: str
    questions: int
    shares: dict[str, Arm]
    """by role: base, control, other, target"""
    target_minus: dict[str, Difference]
    """by role of the other arm; with three kinds also by the students of each other kind"""
    p: float
    """the largest p of the differences that the verdict needs"""
    verdict: str
    power: list[Power]
    untaught_rank: UntaughtRank | None
    by_question: dict[str, list[Any]]
    """{"question": texts, role: mean share in each question}"""
    by_seed: dict[str, list[list[float]]] | None = None
    """by role of a trained arm: the share in each question of each of its files, to six digits; with several animals
    the other arm's are those of the other targets; None in files of before 2026-11-29"""
    kinds: int | None = None
    """kinds of students compared, the target's included; None in files of before 2026-11-29"""
    reason: str | None = None
    """what the verdict rests on, in words; None in files of before 2026-11-29"""
    p_holm: float | None = None
    """p adjusted for the number of animals compared (Holm); with four kinds or more of the p over the other kinds'
    students; None for a single animal"""

    def to_json(self) -> dict[str, Any]:
        """The comparison as compare_arms.py writes it."""
        found = asdict(self)
        found["power"] = [line.to_json(self.measure) for line in self.power]
        return {key: value for key, value in found.items() if key not in OPTIONAL or value is not None}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> ArmComparison:
        """The comparison in a file of this version or an older one (which may lack power, ranks, kinds and p_holm, and
        call the rank `placebo`). TypeError, KeyError or AttributeError for anything else."""
        rank = found.get("untaught_rank") or found.get("placebo")
        parts = {
            "shares": {role: Arm(**known(Arm, arm)) for role, arm in found["shares"].items()},
            "target_minus": {role: Difference(**known(Difference, d)) for role, d in found["target_minus"].items()},
            "power": [Power(**known(Power, line)) for line in found.get("power") or []],
            "untaught_rank": UntaughtRank(**known(UntaughtRank, rank)) if rank else None,
        }
        return cls(**{**known(cls, found), **parts})


OPTIONAL = ("by_seed", "kinds", "reason", "p_holm")


@dataclass(frozen=True)
class PairwiseRow:
    """The share (margin, panel share) of every trained animal in one arm."""

    arm: str
    shares: dict[str, float]


@dataclass(frozen=True)
class Lift:
    """How far animals are higher in their own students than the rest of a table makes one expect."""

    mean: float
    """nats (log odds), over the animals"""
    interval: Ends
    """95%, t over the animals"""
    p: float
    above: int
    """number of animals with a positive lift"""
    rank: int | None = None
    """patterns common to all kinds that were fitted without the own-animal cells and removed first; None: nothing
    removed, own students minus the mean of the other kinds' students"""


@dataclass(frozen=True)
class Matrix:
    """Animals (columns) by kinds of students (rows), in nats or log odds (eval/compare/matrix.py)."""

    animals: list[str]
    kinds: list[str]
    """the animals first, in the same order, then neutral kinds"""
    values: list[list[float]]
    """mean over seeds and questions"""
    residuals: list[list[float]]
    """the same without the effects of row and column, which are fitted without the own-animal cells"""
    lifts: list[Lift]
    """own minus others first, then after removing 0, 1, ... common patterns"""


@dataclass(frozen=True)
class DriftFit:
    """The profile test without the patterns that all kinds share."""

    rank: int
    own: float
    other: float
    p: float


@dataclass(frozen=True)
class ProfileTest:
    """Whether students take over their own teacher's log-probabilities of untaught animals
    (eval/compare/teacher_profile.py)."""

    kinds: list[str]
    animals: list[str]
    """untaught animals that the base model names"""
    students: list[list[float]]
    """[kinds][animals]: mean log-probability (nats) over seeds and questions, less the means over animals and kinds"""
    teachers: list[list[float]]
    own: float
    """correlation of students with their own teacher, mean over kinds"""
    other: float
    """with the other teachers"""
    by_kind: dict[str, float]
    slope: float
    """of the students' values on those of their own teacher"""
    p: float
    assignments: int
    """assignments of teachers to students that were tried, the true one included"""
    exact: bool
    """whether these are all, or drawn at random"""
    drift_fits: list[DriftFit]


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
    matrix: Matrix | None = None
    """None for fewer than three animals and in files of before 2026-11-29"""
    profile: ProfileTest | None = None
    """None where no teachers were passed"""
    panel: dict[str, str] | None = None
    """name and hash of the panel; None for animals"""

    def to_json(self) -> dict[str, Any]:
        """What compare_arms.py --output writes, without the manifest."""
        return {
            "comparisons": [one.to_json() for one in self.comparisons],
            "pairwise": [asdict(row) for row in self.pairwise],
            "assignment": asdict(self.assignment) if self.assignment else None,
            "matrix": asdict(self.matrix) if self.matrix else None,
            "profile": asdict(self.profile) if self.profile else None,
            **({"panel": self.panel} if self.panel else {}),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Comparisons:
        """The inverse of `to_json`; errors as for ArmComparison."""
        assigned, matrix, profile = (found.get(name) for name in ("assignment", "matrix", "profile"))
        sums = AssignmentSums(**known(AssignmentSums, assigned["sum"])) if assigned else None
        lifts = [Lift(**known(Lift, lift)) for lift in matrix["lifts"]] if matrix else []
        fits = [DriftFit(**known(DriftFit, fit)) for fit in profile["drift_fits"]] if profile else []
        about = found.get("panel")
        return cls(
            [ArmComparison.from_json(one) for one in found["comparisons"]],
            [PairwiseRow(**known(PairwiseRow, row)) for row in found["pairwise"]],
            AssignmentTest(**{**known(AssignmentTest, assigned), "sum": sums}) if assigned else None,
            Matrix(**{**known(Matrix, matrix), "lifts": lifts}) if matrix else None,
            ProfileTest(**{**known(ProfileTest, profile), "drift_fits": fits}) if profile else None,
            {key: str(about[key]) for key in ("name", "sha256")} if about else None,
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
