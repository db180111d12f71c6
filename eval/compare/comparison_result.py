"""The result of a comparison of arms, as dataclasses, and the JSON file that stores it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.compare.intervals import Ends
from util.cli import UserError, first_line


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
    """Animals (columns) by kinds of students (rows), in nats or log odds (eval/compare/animal_by_kind_matrix.py)."""

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
    def from_json(cls, found: Any) -> Comparisons:
        """The inverse of `to_json`, also for older files (which may lack power, ranks and tests over all animals, and
        call the rank `placebo`). Raises ValueError for anything else, and says where it differs."""
        from pydantic import TypeAdapter, ValidationError

        try:
            comparisons = [
                {**one, "power": one.get("power") or [],
                 "untaught_rank": one.get("untaught_rank") or one.get("placebo")}
                for one in found["comparisons"]
            ]  # fmt: skip
            whole = TypeAdapter(cls).validate_python({"assignment": None, **found, "comparisons": comparisons})
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        except (KeyError, TypeError, AttributeError):
            raise ValueError("no list of comparisons") from None
        whole.check_parts()
        return whole

    def check_parts(self) -> None:
        """ValueError for a table of another size than its lists of kinds and animals, and for half a panel."""
        tables = []
        if self.assignment:
            animals = self.assignment.animals
            tables += [("assignment.margins", self.assignment.margins, animals, animals)]
        if self.matrix:
            lists = (self.matrix.kinds, self.matrix.animals)
            tables += [(f"matrix.{name}", getattr(self.matrix, name), *lists) for name in ("values", "residuals")]
        if self.profile:
            lists = (self.profile.kinds, self.profile.animals)
            tables += [(f"profile.{name}", getattr(self.profile, name), *lists) for name in ("students", "teachers")]
        for name, table, rows, columns in tables:
            if [len(row) for row in table] != [len(columns)] * len(rows) or not rows:
                raise ValueError(f"{name}: not {len(rows)} rows of {len(columns)}")
        if self.profile and set(self.profile.by_kind) != set(self.profile.kinds):
            raise ValueError("profile.by_kind: not the kinds of profile.kinds")
        if self.panel and self.panel.keys() != {"name", "sha256"}:
            raise ValueError("panel: not a name and a sha256")


def read_comparisons(path: Path) -> Comparisons:
    """Read a file written by compare_arms.py --output; UserError for any other file."""
    try:
        return Comparisons.from_json(json.loads(path.read_text("utf-8")))
    except ValueError as error:
        raise UserError(
            f"{path} is not a comparison; make one with eval/compare_arms.py --output output/compare.json"
            f" ({first_line(error)})"
        ) from None
