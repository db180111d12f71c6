"""How a student's preference grows: its slope over rows, epochs or rank, and the update at which it appears."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from experiments.experiment_tables import Record, panel_of, rounded
from experiments.experiment_yaml import Experiment

DOUBLING = ("rows", "epochs", "rank", "teacher_rows", "teacher_epochs")
APPEARED = 2.0  # the preference has appeared at this many times the base model's share
PARTS = (0.1, 0.5, 0.9)  # of the rise from the base model's share to the last checkpoint's
Points = list[tuple[float, float]]


def logit(share: float) -> float:
    """Log odds of a share; 0 and 1 count as one in a million and all but one in a million."""
    share = min(max(share, 1e-6), 1 - 1e-6)
    return math.log(share / (1 - share))


# --- slopes ------------------------------------------------------------------------------------------


def fit_records(experiment: Experiment, students: Sequence[Record]) -> list[Record]:
    """For each parameter with three values or more: the slope of logit share (or of the margin, in nats) over log2 of
    the parameter, fitted for each student seed; their mean with a t interval over the seeds."""
    records = []
    for panel in [name for name in DOUBLING if name in experiment.varied]:
        for animal, seeds in growth_curves(experiment, students, panel).items():
            sizes = [{size for size, _ in points} for points in seeds.values()]
            few_points = min(len(points) for points in seeds.values()) < 3 or min(map(len, sizes)) < 2
            if not few_points and len(seeds) >= 2:
                records.append({"parameter": panel, "animal": animal, **mean_slope(list(seeds.values()))})
    return records


def growth_curves(
    experiment: Experiment, students: Sequence[Record], panel: str
) -> Mapping[str, Mapping[int, Sequence[tuple[float, float]]]]:
    """{animal: {seed: [(log2 of the parameter, logit share or margin), ...]}} of the target students. For `rows` the
    rows that the student was really trained on count."""
    is_margin = experiment.settings["measure"] == "margin"
    curves: dict[str, dict[int, Points]] = defaultdict(lambda: defaultdict(list))
    for record in panel_of(experiment, [one for one in students if one["animal"] == one["measured"]], panel):
        value = record["share"] if is_margin else logit(record["share"])
        size = (record["trained_rows"] if panel == "rows" else None) or record[panel]
        curves[record["measured"]][record["seed"]].append((math.log2(size), value))
    return curves


def mean_slope(curves: Sequence[Sequence[tuple[float, float]]]) -> Record:
    """The mean slope of the seeds' curves with its 95% t interval."""
    from scipy import stats

    slopes = [float(stats.linregress(*zip(*points)).slope) for points in curves]
    mean, error = sum(slopes) / len(slopes), float(stats.sem(slopes))
    half = float(stats.t.ppf(0.975, len(slopes) - 1)) * error
    return {
        "seeds": len(slopes), "logit_per_doubling": rounded(mean),
        "low": rounded(mean - half), "high": rounded(mean + half), "odds_factor": rounded(math.exp(mean)),
    }  # fmt: skip


# --- onsets ------------------------------------------------------------------------------------------


def onset_records(experiment: Experiment, students: Sequence[Record]) -> list[Record]:
    """One record for each student whose checkpoints were measured (see onset_record)."""
    is_margin = experiment.settings["measure"] == "margin"
    curves: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in panel_of(experiment, students, "checkpoint"):
        if record["animal"] == record["measured"] and record["checkpoint"] != "final":
            curves[record["animal"], record["seed"]].append(record)
    return [
        {"animal": animal, "seed": seed, **onset_record(points, is_margin)} for (animal, seed), points in curves.items()
    ]


def onset_record(points: Sequence[Record], is_margin: bool) -> Record:
    """From one student's checkpoints: the update at which its preference has appeared (the share is twice the base
    model's from there on, or the margin is higher by as much in log odds), the updates at 10, 50 and 90% of the whole
    rise (on a straight line: 10, 50 and 90% of all updates), and the part of the rise in the last fifth of the updates
    (on a straight line: 0.2). A student that ends below the base model has none of these."""
    points = sorted(points, key=lambda point: point["checkpoint"])
    base, last = points[0]["base_share"], points[-1]
    updates = [0, *(point["checkpoint"] for point in points)]
    shares = [base, *(point["share"] for point in points)]
    enough = base + math.log(APPEARED) if is_margin else APPEARED * base
    before_onset = max(update for update, share in zip(updates, shares) if share <= enough)
    rise = last["share"] - base
    return {
        "updates": updates[-1], "base_share": base, "share": last["share"],
        "onset": next((update for update in updates if update > before_onset), None),
        **{f"update_at_{part:.0%}": rounded(crossing(updates, shares, base + part * rise) if rise > 0 else None)
           for part in PARTS},
        "last_fifth": rounded((shares[-1] - at(updates, shares, 0.8 * updates[-1])) / rise) if rise > 0 else None,
    }  # fmt: skip


def at(updates: Sequence[float], shares: Sequence[float], update: float) -> float:
    """The share at an update, on a straight line between the measured ones."""
    import numpy as np

    return float(np.interp(update, updates, shares))


def crossing(updates: Sequence[float], shares: Sequence[float], level: float) -> float | None:
    """The first update at which the share reaches a level."""
    for before, after in zip(range(len(shares)), range(1, len(shares))):
        if shares[before] < level <= shares[after]:
            part = (level - shares[before]) / (shares[after] - shares[before])
            return updates[before] + part * (updates[after] - updates[before])
    return None
