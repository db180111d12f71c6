"""A comparison as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from eval.compare.intervals import (
    POWER,
)
from eval.compare.verdict import POWER_ANSWERS
from util.terminal import say, table

if TYPE_CHECKING:
    pass


COLLAPSED = 0.05  # more answers than this that name no animal: the model may have lost the question


class Words(NamedTuple):
    """How the figures of a measure are written."""

    value: str
    difference: str
    factor: float

    def of(self, value: float) -> str:
        return self.value.format(self.factor * value)

    def gap(self, value: float) -> str:
        return self.difference.format(self.factor * value)

    def gap_or_none(self, value: float | None) -> str:
        return "none would" if value is None else self.gap(value)

    def span(self, ends: Sequence[float]) -> str:
        low, high = (self.factor * end for end in ends)
        return f"{low:.2f} to {high:.2f}"


PERCENT = Words("{:.2f}%", "{:+.2f} points", 100.0)


WORDS = {"share": PERCENT, "panel": PERCENT, "margin": Words("{:+.2f}", "{:+.2f} nats", 1.0)}


def percent(value: float) -> str:
    return f"{100 * value:.2f}%"


def p_value(value: float) -> str:
    return "below 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.1 else "above 0.1"


def show(found: dict[str, Any]) -> None:
    """Print one animal's tables and what to look at before believing them."""
    measure = found["measure"]
    words = WORDS[measure]
    arms = [
        (role, arm["seeds"], words.of(arm["share"]), words.span(arm["interval"]), percent(arm["non_answers"]),
         percent(arm["uncovered"]))
        for role, arm in found["shares"].items()
    ]  # fmt: skip
    heading = ("arm", "seeds", f"{found['animal']} {measure}", "95% interval", "non-answers", "uncovered")
    print(table(heading, arms), "\n")
    differences = [
        (role, words.gap(d["difference"]), words.span(d["interval"]), p_value(d["p"]))
        for role, d in found["target_minus"].items()
    ]
    print(table(("target minus", "difference", "95% interval", "p"), differences), "\n")
    if found["power"]:
        seen = [(line["seeds"], *map(words.gap_or_none, list(line.values())[1:])) for line in found["power"]]
        how = ("exact",) if measure != "share" else ("exact", f"{POWER_ANSWERS} answers a question")
        print(
            f"smallest target minus control that so many seeds an arm call transfer with about {POWER:.0%} probability:"
        )
        print(table(("seeds", *how), seen), "\n")
    if found["placebo"]:
        print(f"{placebo_words(found['animal'], found['placebo'])}\n")
    for role, arm in found["shares"].items():
        if arm["non_answers"] > COLLAPSED:
            kinds = ", ".join(f"{kind} {percent(mass)}" for kind, mass in arm["non_answer_kinds"].items())
            say(f"{role}: {percent(arm['non_answers'])} of the answers name no animal ({kinds}): read some of them")
    if any(arm["seeds"] == 1 for role, arm in found["shares"].items() if role != "base"):
        say("one training seed in an arm: its intervals are over questions alone, another seed may give another share")


def placebo_words(animal: str, found: dict[str, Any]) -> str:
    """The placebo test in one sentence."""
    names = [*found["furthest"], *["..."] * (found["further"] > len(found["furthest"]))]
    return (
        f"placebo: {animal} rose by {found['shift']:+.2f} nats of log-probability over the other-animal students; of"
        f" {found['animals']} animals that nobody was taught {found['further'] or 'none'} rose as far"
        f"{' (' + ', '.join(names) + ')' if names else ''}, p {p_value(found['p'])}"
    )


def assignment_words(found: dict[str, Any]) -> str:
    """The assignment test in one sentence."""
    ways, animals, sums = found["assignments"], len(found["animals"]), found["sum"]
    return (
        f"of {ways:,} ways to give the animals to the students {found['as_well']:,} fit the margins as well as the true"
        f" one, itself counted: p {found['p']:.2g} (margins sum to {sums['true']:.2f} nats; best other way"
        f" {sums['best_other']:.2f}; all {sums['mean']:.2f}, sd {sums['sd']:.2f}); {found['own_highest']} of {animals}"
        " animals stand highest in their own students"
    )


def show_pairwise(rows: Sequence[dict[str, Any]], measure: str) -> None:
    """Print share or margin of every trained animal in every arm."""
    animals = list(rows[0]["shares"])
    print(
        table(("arm", *animals), [(row["arm"], *map(WORDS[measure].of, row["shares"].values())) for row in rows]), "\n"
    )


def verdict_words(found: dict[str, Any]) -> str:
    """A verdict with its adjusted p-value, where several animals were looked at, and the placebo's."""
    said = [f"Holm p {p_value(found['p_holm'])}"] if "p_holm" in found else []
    said += [f"placebo p {found['placebo']['p']:.2g}"] if found["placebo"] else []
    return found["verdict"] + (f" ({', '.join(said)})" if said else "")
