"""Students of the confirming run and of those after it, by kind, and the main tests (M1, M2, A of confirm_tests.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.compare.animal_by_kind_matrix import lift
from eval.compare.intervals import holm
from eval.compare.remove_shared_drift import without_patterns
from eval.compare.teacher_profile import correlations, summed_up
from experiments.pilots.measures_file import Measure, assignment, load, load_some

ANIMALS = ["owl", "penguin", "elephant", "wolf", "fox", "whale", "giraffe", "rabbit"]
OTHERS = ["train", "guitar", "random8", "random9"]


def students(measures: dict[str, Measure], arm: str) -> dict[str, list[Measure]]:
    """The students of an arm (CHANNEL, SORT:CHANNEL or CHANNEL.withoutN) by kind, seeds in order."""
    sort, _, rest = arm.rpartition(":")
    found: dict[str, list[Measure]] = {}
    for name, measure in sorted(measures.items()):
        who, dot, channel = name.removeprefix("student-").partition(".")
        kind, _, seed = who.partition("-")
        if name.startswith("student-") and dot and channel == rest and seed.rstrip("0123456789") == sort:
            found.setdefault(kind, []).append(measure)
    return found


def mean(of: list[Measure], animal: str, key: str = "log") -> float:
    return sum(measure[key][animal] for measure in of) / len(of)


def own_less_control(arm: dict[str, list[Measure]]) -> float:
    """Mean over the animals; NaN without control students."""
    if "base" not in arm:
        return math.nan
    return sum(mean(arm[animal], animal) - mean(arm["base"], animal) for animal in ANIMALS) / len(ANIMALS)


def teachers(measures: dict[str, Measure], sort: str) -> dict[str, list[Measure]]:
    """The teachers of a sort (soft, hard) by kind, seeds in order. They were trained as students are and are named so,
    without a channel: student-owl-soft201."""
    found: dict[str, list[Measure]] = {}
    for name, measure in sorted(measures.items()):
        kind, _, seed = name.removeprefix("student-").partition("-")
        if name.startswith("student-") and "." not in name and seed.rstrip("0123456789") == sort:
            found.setdefault(kind, []).append(measure)
    return found


def profile(arm: dict[str, list[Measure]], untaught: list[str], key: str, kinds: list[str]) -> Any:
    """[kind, untaught word], each word less its mean over the kinds."""
    import numpy as np

    table = np.array([[mean(arm[kind], word, key) for word in untaught] for kind in kinds])
    return table - table.mean(0)


def without_shared(
    arm: dict[str, list[Measure]], taught: dict[str, list[Measure]], kinds: list[str], rank: int
) -> tuple[float, float, float]:
    """The profile test without the `rank` largest patterns that all kinds share: own r, other r, p."""
    import numpy as np

    untaught = [word for word in arm[kinds[0]][0]["log"] if word not in kinds]
    both = (np.array([[mean(of[kind], word) for word in untaught] for kind in kinds]) for of in (arm, taught))
    return summed_up(correlations(*(without_patterns(table, rank) for table in both)))[:3]


def main_tests(
    arm: dict[str, list[Measure]], taught: dict[str, list[Measure]], key: str = "log", kinds: list[str] = ANIMALS
) -> dict[str, Any]:
    """M1, M2 and A of an arm with students of all kinds."""
    import numpy as np
    from scipy import stats

    count, every = len(kinds), list(next(iter(arm.values()))[0][key])
    untaught = [word for word in every if word not in kinds]
    both = (profile(some, untaught, key, kinds) for some in (arm, taught))
    r = np.corrcoef(*both)[:count, count:]
    margins = np.array([[mean(arm[kind], word, key) for word in kinds] for kind in kinds])
    others = np.array([np.delete(margins[:, i], i) for i in range(count)])
    gap = margins.diagonal() - others.mean(1)
    t = gap / (others.std(1, ddof=1) * math.sqrt(1 + 1 / others.shape[1]))
    p = [float(2 * stats.t.sf(abs(value), others.shape[1] - 1)) for value in t]
    return {
        "r_own": r.diagonal(), "r_others": r[~np.eye(len(r), dtype=bool)].mean(), "M1": assignment(r),
        "gap": gap, "t": t, "holm": holm(p), "A": assignment(margins), "interval": lift(gap).interval,
        "clear": sum(value <= 0.05 and size > 0 for value, size in zip(holm(p), gap)),
        "highest": int((margins.argmax(0) == np.arange(count)).sum()),
    }  # fmt: skip


def arms_of(measures: dict[str, Measure]) -> list[str]:
    """The arms that have students, as `students` takes them, without controls of single kinds (-of-KIND)."""
    found = set()
    for name in measures:
        who, dot, channel = name.removeprefix("student-").partition(".")
        if name.startswith("student-") and dot and "-of-" not in channel:
            sort = who.partition("-")[2].rstrip("0123456789")
            found.add(f"{sort}:{channel}" if sort else channel)
    return sorted(found)


def in_both(measures: dict[str, dict[str, Measure]]) -> dict[str, dict[str, Measure]]:
    """Without students that one of two bases did not train: a lease may end between them."""
    known = [{*some} for some in measures.values() if some]
    everywhere = set.intersection(*known)
    trained = {name for names in known for name in names if name.startswith("student-") and "." in name}
    alone = trained - everywhere
    return {base: {name: of for name, of in some.items() if name not in alone} for base, some in measures.items()}


def after(measures: dict[str, dict[str, Measure]], update: str) -> dict[str, dict[str, Measure]]:
    """The measures of students in the middle of their training."""
    return {
        base: {
            name: of | {"log": of["early"][update]} if "." in name and update in of.get("early", {}) else of
            for name, of in some.items()
        }
        for base, some in measures.items()
    }


def merged(results: Path, names: tuple[str, ...]) -> dict[str, Measure]:
    """The measures of several files; the first file that has one counts. UserError if none of them is there."""
    found: dict[str, Measure] = {}
    for name in reversed(names):
        found |= load(results / f"{name}.jsonl")
    return found or load_some(results / f"{names[0]}.jsonl")


COLUMNS = (
    "base,channel,kind,seed,animal,kl,clean,base_share,teacher_share,student_share,control_share,base_margin,"
    "student_margin,others_margin,control_margin,own_less_others,own_less_others_10,own_less_others_30,rows_used"
)


def pairs(measures: dict[str, dict[str, Measure]]) -> Iterator[list[Any]]:
    """A line for each animal's student: what its rows, its early and its last measures say."""
    own = measures["1.5B"]
    taught = teachers(own, "soft")
    for base, some in measures.items():
        for name in arms_of(some):
            arm, plain = students(some, name), some["speaker-base"]
            for animal in ANIMALS:
                for n, student in enumerate(arm.get(animal, [])):
                    control = arm["base"][n] if "base" in arm else None
                    rest = [arm[kind][n] for kind in ANIMALS if kind != animal and n < len(arm.get(kind, []))]
                    made = student["rows"][0]
                    gaps = [m["log"][animal] for m in (student, *rest)]
                    early = {
                        at: student["early"][at][animal] - sum(m["early"][at][animal] for m in rest) / len(rest)
                        for at in ("10", "30")
                    }
                    yield [
                        base, name, animal, student["seed"], animal, own.get(f"check-{made}", {}).get("kl", ""),
                        own[f"rows-{made}"]["clean"], plain["share"][animal], taught[animal][n]["share"][animal],
                        student["share"][animal], control["share"][animal] if control else "", plain["log"][animal],
                        gaps[0], round(sum(gaps[1:]) / len(rest), 4), control["log"][animal] if control else "",
                        round(gaps[0] - sum(gaps[1:]) / len(rest), 4), round(early["10"], 4), round(early["30"], 4),
                        student["rows_used"],
                    ]  # fmt: skip
