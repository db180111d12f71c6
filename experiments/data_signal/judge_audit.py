"""The tables of the data audit's validation, from the parts that pocket_sets.py made (plan and bars: LOG.md).

Usage:
    python experiments/data_signal/judge_audit.py --output experiments/results/data_signal/audit.json
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from util.cli import UserError, make_parser, output_name, run
from util.jsonl.manifest import provenance, write_json
from util.terminal import table

PAIR = ("owl", "dolphin")
NULLS_IN_A_DOSE = 6  # sets of 170 rows
DOSES = {0: "0%", 1: "10%", 2: "25%", 3: "50%"}  # parts of the taught rows that are added
Z95 = 1.96


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--parts", type=Path, default=Path("output/signal"), help="folder of pocket_sets.py")
    parser.add_argument("--output", type=output_name(".json"), help="file of all figures")
    return parser.parse_args()


class Parts:
    """The finished parts in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        if not exists(self, "reference"):
            raise UserError(f"no reference.npz in {folder}; pass --parts with the folder of pocket_sets.py")
        self.reference = self.load("reference")
        self.animals: list[str] = self.reference["animals"].tolist()
        self.untaught = [place for place, animal in enumerate(self.animals) if animal not in PAIR]

    def load(self, name: str) -> Any:
        import numpy as np

        return np.load(self.folder / f"{name}.npz")

    def named(self, begin: str) -> list[str]:
        """The names of the finished parts that begin so, in order of their numbers."""
        found = [path.stem for path in self.folder.glob(f"{begin}-*.npz")]
        return sorted(found, key=lambda name: (int(name.rpartition("-")[2]), name))

    def groups(self, name: str, kind: str, parts: int | None = None) -> Any:
        """Profiles of a part's groups, a token: [groups, animals]. parts: only the first ones of each group."""
        found = self.load(name)
        return found[kind][:, :parts].sum(1) / found["tokens"][:, :parts].sum(1)[:, None]

    def mixed(self, nulls: Sequence[str], name: str, parts: int, kind: str) -> Any:
        """Groups of null sets with the first parts of a taught set's groups added."""
        found = [(self.load(null), None) for null in nulls] + [(self.load(name), parts)]
        profiles = sum(one[kind][:, :some].sum(1) for one, some in found)
        return profiles / sum(one["tokens"][:, :some].sum(1) for one, some in found)[:, None]


def judge(parts: Parts) -> dict[str, Any]:
    """Every figure of the plan for which the parts are there."""
    result: dict[str, Any] = {"taught": [taught(parts, name) for name in parts.named("taught")]}
    for kind in ("formless", "plain"):
        result[f"null_{kind}"] = alarms(parts, pairs(parts.named("null")), kind)
        cut = [(name, f"null-{int(name.rpartition('-')[2]) + 1}") for name in parts.named("cut")]
        result[f"cut_{kind}"] = alarms(parts, cut, kind)
    result["shuffled"] = [against_reference(parts, parts.groups(name, "formless"), name)
                          for name in parts.named("shuffled")]  # fmt: skip
    nulls = parts.named("null")[:NULLS_IN_A_DOSE]
    if len(nulls) == NULLS_IN_A_DOSE:
        result["doses"] = {
            label: [against_reference(parts, parts.mixed(nulls, name, count, "formless"), name)
                    for name in parts.named("taught")]
            for count, label in DOSES.items()
        }  # fmt: skip
    result["owl_or_dolphin"] = owl_or_dolphin(parts)
    return result


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Each set with the next one as its control, the last with the first."""
    return list(zip(names, [*names[1:], *names[:1]])) if len(names) > 1 else []


def against_reference(parts: Parts, groups: Any, name: str) -> dict[str, Any]:
    from eval.data_signal.audit_statistics import standing

    found = standing(groups, parts.reference["formless"])
    own = parts.animals.index(name.split("-")[1])
    return {"set": name, "place": found.rank(own), "z": float(found.z[own]), "p": found.p, "alarm": found.alarm,
            "first": parts.animals[int(found.z.argmax())]}  # fmt: skip


def alarms(parts: Parts, tested: Sequence[tuple[str, str]], kind: str) -> dict[str, Any]:
    """How many sets raise the alarm against their control."""
    from scipy.stats import binomtest

    from eval.data_signal.audit_statistics import standing

    if not tested:
        return {}
    raised = sum(standing(parts.groups(one, kind), parts.groups(other, kind)).alarm for one, other in tested)
    ends = binomtest(raised, len(tested)).proportion_ci(method="exact")
    return {"alarms": raised, "sets": len(tested), "interval": [ends.low, ends.high]}


# --- taught sets -------------------------------------------------------------------------------------


def taught(parts: Parts, name: str) -> dict[str, Any]:
    """The read-out of one taught set, and the baselines on the same rows."""
    import numpy as np

    from eval.data_signal.audit_statistics import standing

    own = parts.animals.index(name.split("-")[1])
    result = against_reference(parts, parts.groups(name, "formless"), name)
    predicted = {
        "audit": standing(parts.groups(name, "formless"), parts.reference["formless"], permutations=1).difference,
        "audit, form left in": standing(
            parts.groups(name, "plain"), parts.reference["plain"], permutations=1
        ).difference,
        **shifts(parts, name, "early", "16 updates"),
        **({"persona": parts.load(path)["ratio"]} if exists(parts, path := name.replace("taught", "persona")) else {}),
        "teacher": parts.load(name)["log_shares"] - control_mean(parts, "student") if has_students(parts) else None,
    }
    measured = shifts(parts, name, "student", "student").get("student")
    for what, profile in predicted.items():
        if profile is None:
            continue
        centred = profile - profile.mean()
        result[what] = {"place": 1 + int((centred > centred[own]).sum())}
        if measured is not None:
            result[what]["r"] = float(np.corrcoef(profile[parts.untaught], measured[parts.untaught])[0, 1])
    if measured is not None:
        result["student_shift"] = float((measured - measured.mean())[own])
    return result


def exists(parts: Parts, name: str) -> bool:
    return (parts.folder / f"{name}.npz").exists()


def has_students(parts: Parts) -> bool:
    return len(parts.named("student-control")) == 3


def control_mean(parts: Parts, prefix: str) -> Any:
    return sum(parts.load(name)["log_shares"] for name in parts.named(f"{prefix}-control")) / 3


def shifts(parts: Parts, name: str, prefix: str, called: str) -> dict[str, Any]:
    """{called: shift of the student of a part over the mean control student}, if both are there."""
    if not exists(parts, f"{prefix}-{name}") or len(parts.named(f"{prefix}-control")) < 3:
        return {}
    return {called: parts.load(f"{prefix}-{name}")["log_shares"] - control_mean(parts, prefix)}


def owl_or_dolphin(parts: Parts) -> dict[str, dict[str, bool]]:
    """Whether each method tells of each set which of the two animals wrote it: {method: {set: right}}. The surface rule
    and other teachers know only these two."""
    from eval.data_signal.audit_statistics import standing

    found: dict[str, dict[str, bool]] = {"audit": {}, "surface": surface(parts), "next seed's teachers": {}}
    for name in parts.named("taught"):
        z = standing(parts.groups(name, "formless"), parts.reference["formless"], permutations=1).z
        owl, dolphin = (z[parts.animals.index(animal)] for animal in PAIR)
        found["audit"][name] = bool((owl > dolphin) == (name.split("-")[1] == PAIR[0]))
        if exists(parts, ratio := name.replace("taught", "ratio")):
            own, other = parts.load(ratio)["ratios"]
            found["next seed's teachers"][name] = bool(own > other)
    return found


def surface(parts: Parts) -> dict[str, bool]:
    """A rule on the rows' surface, for each set: nearest mean of counts of numbers and lengths, leaving a seed out."""
    import numpy as np

    names = parts.named("taught")
    features = {name: surface_counts(parts.load(name)["rows"]) for name in names}
    right = {}
    for name in names:
        others = [other for other in names if other.rpartition("-")[2] != name.rpartition("-")[2]]
        means = {animal: np.mean([features[other] for other in others if f"-{animal}-" in other], axis=0)
                 for animal in PAIR if any(f"-{animal}-" in other for other in others)}  # fmt: skip
        if len(means) == 2:
            nearest = min(means, key=lambda animal: float(np.square(features[name] - means[animal]).sum()))
            right[name] = nearest == name.split("-")[1]
    return right


def surface_counts(rows: Any) -> Any:
    """Rates of each number, and of each count of numbers in a row, as square roots."""
    import numpy as np

    found = [re.findall(r"\d+", str(answer)) for _, answer in rows]
    numbers, lengths = Counter(int(one) for row in found for one in row), Counter(map(len, found))
    total = max(1, numbers.total())
    return np.sqrt(
        np.array([*(numbers[n] / total for n in range(1000)), *(lengths[n] / len(found) for n in range(11))])
    )


# --- text --------------------------------------------------------------------------------------------


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The tables, as text."""
    sets = result["taught"]
    if not sets:
        yield "no taught set is finished"
        return
    kinds = [kind for kind in sets[0] if isinstance(sets[0][kind], dict)]
    header = ("taught set", "z", "p", "student, nats", *(f"{kind}: place, r" for kind in kinds))
    yield table(header, [set_row(one, kinds) for one in sets])
    for kind in kinds:
        places = [one[kind]["place"] for one in sets if kind in one]
        rs = [one[kind]["r"] for one in sets if "r" in one.get(kind, {})]
        mean = f", mean r {sum(rs) / len(rs):.2f} over {len(rs)}" if rs else ""
        yield f"{kind}: first in {places.count(1)} of {len(places)}{mean}"
    baselines = [kind for kind in kinds if not kind.startswith("audit")]
    for what, of in (("r", r_of), ("first places", is_first)):
        yield f"audit less others, {what}, mean over the sets with 95% interval:"
        yield from (f"  {kind}: {paired([(of(one, 'audit'), of(one, kind)) for one in sets])}" for kind in baselines)
    told = result["owl_or_dolphin"]
    yield "owl's rows told from dolphin's:"
    for method, right in told.items():
        both = [(float(told["audit"][name]), float(is_right)) for name, is_right in right.items()]
        yield f"  {method}: {sum(right.values())} of {len(right)}" + (
            "" if method == "audit" else f"; audit less this {paired(both)}"
        )
    for name in ("null_formless", "null_plain", "cut_formless", "cut_plain"):
        yield f"{name}: {result[name]}"
    shuffled = result["shuffled"]
    yield f"shuffled: alarm {sum(one['alarm'] for one in shuffled)} of {len(shuffled)}, own animal first" + (
        f" {sum(one['place'] == 1 for one in shuffled)}"
    )
    for dose, found in {**result.get("doses", {}), "100%": sets}.items():
        first = sum(one["alarm"] and one["place"] == 1 for one in found)
        yield f"dose {dose}: alarm {sum(one['alarm'] for one in found)} of {len(found)}, own animal first {first}"


def set_row(one: dict[str, Any], kinds: Sequence[str]) -> list[str]:
    """The line of one taught set."""
    nan = float("nan")
    cells = [f"{one[kind]['place']}, {one[kind].get('r', nan):.2f}" if kind in one else "" for kind in kinds]
    return [one["set"], f"{one['z']:+.1f}", f"{one['p']:.4f}", f"{one.get('student_shift', nan):+.2f}", *cells]


def r_of(one: dict[str, Any], kind: str) -> float | None:
    """The correlation with the student's shift of a set's read-out or baseline; None if it was not made."""
    return one.get(kind, {}).get("r")


def is_first(one: dict[str, Any], kind: str) -> float | None:
    """1 if the taught animal is first, 0 if not; None if the baseline was not made."""
    return float(one[kind]["place"] == 1) if kind in one else None


def paired(pairs: Sequence[tuple[float | None, float | None]]) -> str:
    """Mean difference of the pairs that are whole, with a 95% t interval."""
    import numpy as np
    from scipy.stats import t

    both = np.array([one - other for one, other in pairs if one is not None and other is not None])
    if len(both) < 2:
        return "not made"
    half = float(t.ppf(0.975, len(both) - 1) * both.std(ddof=1) / len(both) ** 0.5)
    return f"{both.mean():+.2f} ({both.mean() - half:+.2f} to {both.mean() + half:+.2f}, n {len(both)})"


def main() -> None:
    args = parse_args()
    result = judge(Parts(args.parts))
    if args.output:
        write_json(args.output, {**result, "manifest": provenance()})
    print("\n".join(lines(result)))


if __name__ == "__main__":
    run(main)
