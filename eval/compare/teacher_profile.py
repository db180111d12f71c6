"""The profile test: do students take over how their own teacher ranks the animals that nobody was taught?

A teacher moves the log-probabilities of all animals, and every teacher in its own way. Whether the students of its
numbers move in the same way can be seen on untaught animals alone. General drift, the same in all kinds, drops out:
both sides are taken less their means over kinds and over animals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from eval.compare.assignment_permutations import TIE, assignment_sums, is_exact
from eval.compare.check_roles import trained_on
from eval.compare.comparability import manifest_of
from eval.compare.comparison_result import DriftFit, ProfileTest
from eval.compare.read_results import Result
from eval.compare.remove_shared_drift import doubly_centred, ranks_of, without_patterns
from eval.compare.untaught_rank import spoken
from util.cli import UserError
from util.jsonl.filter_certificate import DATA_TYPES

if TYPE_CHECKING:
    import numpy as np


def profile_test(
    base: Result,
    students: Mapping[str, list[Result]],
    teachers: Mapping[str, list[Result]],
    taught: Sequence[str],
) -> ProfileTest:
    """Correlate students with their own and with other teachers over untaught animals.

    The p-value is that of a permutation test over kinds: the part of the assignments of teachers to students that fit
    as well as the true one. students, teachers: by kind. taught: every animal that a teacher was taught.
    UserError for fewer than two kinds with teachers, and for files without log-probabilities.
    """
    import numpy as np

    kinds = [kind for kind in students if kind in teachers]
    animals = [name for name in spoken(base) if name not in taught]
    if len(kinds) < 2 or len(animals) < 3:
        raise UserError(
            f"the profile test needs teachers of two kinds or more and exact files; found {len(kinds)} kinds with"
            f" students and teachers and {len(animals)} untaught animals that the base model names"
        )
    of_students, of_teachers = (
        np.array([mean_logs(some[kind], animals) for kind in kinds]) for some in (students, teachers)
    )
    return compare_profiles(kinds, animals, of_students, of_teachers)


def compare_profiles(
    kinds: list[str], animals: list[str], of_students: np.ndarray, of_teachers: np.ndarray
) -> ProfileTest:
    """The test itself. of_students, of_teachers: [kinds, animals], what students and teachers do to each animal."""
    centred, own_teachers = doubly_centred(of_students), doubly_centred(of_teachers)
    table = correlations(centred, own_teachers)
    own, other, p, tried = summed_up(table)
    fits = []
    for rank in ranks_of(len(kinds), 3):
        left = correlations(without_patterns(of_students, rank), without_patterns(of_teachers, rank))
        fits.append(DriftFit(rank, *summed_up(left)[:3]))
    return ProfileTest(
        kinds=kinds,
        animals=animals,
        students=centred.tolist(),
        teachers=own_teachers.tolist(),
        own=own,
        other=other,
        by_kind=dict(zip(kinds, table.diagonal().tolist())),
        slope=float((centred * own_teachers).sum() / (own_teachers**2).sum()),
        p=p,
        assignments=tried,
        exact=is_exact(len(kinds)),
        drift_fits=fits,
    )


def mean_logs(results: Sequence[Result], animals: Sequence[str]) -> list[float]:
    """Log-probability of each animal, the mean over students and questions."""
    import numpy as np

    logs = [[of_question[name] for name in animals] for result in results for of_question in result.logs]
    return list(np.mean(logs, axis=0))


def correlations(students: np.ndarray, teachers: np.ndarray) -> np.ndarray:
    """Pearson correlation of every kind of students with every teacher, [kinds, kinds]. Rows are centred."""
    import numpy as np

    def scaled(values: np.ndarray) -> np.ndarray:
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)

    return scaled(students) @ scaled(teachers).T


def summed_up(table: np.ndarray) -> tuple[float, float, float, int]:
    """(mean own correlation, mean other, p, assignments tried) of a table of correlations."""
    size, own = len(table), float(table.trace())
    sums = assignment_sums(table)
    as_well = int((sums >= sums[0] - TIE).sum())
    return own / size, (float(table.sum()) - own) / (size * (size - 1)), as_well / len(sums), len(sums)


def check_teachers(teachers: Mapping[str, Sequence[Result]], kinds: Sequence[str]) -> None:
    """UserError for teachers of a kind without students, and for files that are known to be of students."""
    for kind, some in teachers.items():
        if kind not in kinds:
            raise UserError(
                f"--teachers {kind}={some[0].path}: no results of {kind}'s students were given; add them with"
                f" --students {kind}=FILE"
            )
        for result in some:
            trained = trained_on(manifest_of(result))
            if trained.get("kind") in DATA_TYPES:
                raise UserError(
                    f"--teachers {kind}={result.path} has the results of a student (it was trained on"
                    f" {trained['train_jsonl']}); pass those of the teacher that wrote its rows"
                )
