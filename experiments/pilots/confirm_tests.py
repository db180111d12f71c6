"""The main tests and the tables of the confirming run (plan_confirm.py), from its measures.

Margin: mean log-probability of an animal over the 50 questions. A kind's margin or profile is the mean over its seeds.

M1  profile: log-probabilities of the untaught animals, each less its mean over the eight animal kinds; correlation of
    every kind's students with every kind's teachers; share of the 40,320 assignments of students to teachers whose
    summed correlation is at least the true one's.
M2  kinds: an animal's margin in its own students less the mean over the other seven animal kinds; t with 6 degrees of
    freedom from the spread of those seven (prediction error), two-sided p, Holm over the eight animals.
A   assignment on the taught margins: the same permutations of the summed own margins.

Usage:
    python experiments/pilots/confirm_tests.py experiments/results/qwen2.5-1.5b
    python experiments/pilots/confirm_tests.py RESULTS --pack WORKER_OUTPUT --pack-other OTHER_OUTPUT  # makes RESULTS
    python experiments/pilots/confirm_tests.py RESULTS --run many      # the strictest filter on 12,000 draws
    python experiments/pilots/confirm_tests.py RESULTS --run digits    # 10,000 rows of digits (digits-again: new seed)
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from eval.compare.animal_by_kind_matrix import lift
from experiments.pilots.main_tests_over_kinds import (
    ANIMALS,
    COLUMNS,
    OTHERS,
    after,
    arms_of,
    in_both,
    main_tests,
    mean,
    merged,
    own_less_control,
    pairs,
    students,
    teachers,
    without_shared,
)  # fmt: skip
from experiments.pilots.markdown_table import head, row
from experiments.pilots.measures_file import Measure, load, pack
from experiments.pilots.sceptic_tables import print_drift, print_letters, print_more_rows
from util.cli import make_parser, run

RUNS = {  # files of measures of the 1.5B and the 0.5B
    "first": ("measures", "other-base"),
    "strict": ("strict", "strict-other-base"),
    "many": ("many", "many-other-base"),
    "digits": ("digits", "digits-other-base"),
    "digits-again": ("digits-again", "digits-again-other-base"),
}
BASES = {"1.5B": 0, "0.5B": 1}


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("results", type=Path, help="folder with measures.jsonl (and other-base.jsonl)")
    parser.add_argument("--csv", help="also write a line for each student of the first run into this file")
    parser.add_argument("--pack", type=Path, help="first fill the results folder from this output of the worker")
    parser.add_argument("--pack-other", type=Path, help="the worker's output for the other base")
    parser.add_argument("--run", choices=RUNS, default="first", help="what is packed; all but the first print no other")
    return parser.parse_args()


def print_tests(measures: dict[str, dict[str, Measure]]) -> None:
    """A line for each base and arm that has students of all animals: own less others, M1 and A."""
    print()
    head("base", "arm", "seeds", "own less others, nats", "95% over animals", "least", "M1 p", "r own", "others", "A p")
    for base, some in measures.items():
        for name in arms_of(some):
            arm = students(some, name)
            if set(ANIMALS) <= set(arm):
                found = main_tests(arm, teachers(measures["1.5B"], name.rpartition(":")[0] or "soft"))
                ends = "{:+.2f} to {:+.2f}".format(*found["interval"])
                cells = [base, name, len(arm[ANIMALS[0]]), f"**{found['gap'].mean():+.2f}**", ends]
                cells += [f"{found['gap'].min():+.2f}", f"{found['M1']:.2g}", f"{found['r_own'].mean():.2f}"]
                row(*cells, f"{found['r_others']:.2f}", f"{found['A']:.2g}")


def print_patterns(measures: dict[str, dict[str, Measure]]) -> None:
    """The profile test of each arm without the 1, 2 and 3 largest patterns that all kinds share."""
    print()
    head("base", "arm", *(f"without {rank}: r own, others, p" for rank in (1, 2, 3)))
    for base, some in measures.items():
        for name in arms_of(some):
            arm, taught = students(some, name), teachers(measures["1.5B"], name.rpartition(":")[0] or "soft")
            if not set(ANIMALS) <= set(arm):
                continue
            fits = [without_shared(arm, taught, ANIMALS, rank) for rank in (1, 2, 3)]
            row(base, name, *(f"{own:.2f}, {other:.2f}, {p:.2g}" for own, other, p in fits))


def print_animals(measures: dict[str, dict[str, Measure]], channel: str) -> None:
    """The table by animal of a main arm."""
    own = measures["1.5B"]
    arm, other, taught = students(own, channel), students(measures.get("0.5B", {}), channel), teachers(own, "soft")
    if not set(ANIMALS) <= set(arm):
        return
    found = main_tests(arm, taught)
    of_other = main_tests(other, taught)["gap"] if set(ANIMALS) <= set(other) else [math.nan] * len(ANIMALS)
    print(f"\n{channel} (shares in %, the rest in nats)\n")
    head("animal", "base", "teachers", "own students", "other animals'", "neutral and random", "control",
         "own less others", "t (6)", "Holm p", "own less control", "r profile", "0.5B: own less others")  # fmt: skip
    for i, animal in enumerate(ANIMALS):
        rest = [100 * mean(arm[kind], animal, "share") for kind in ANIMALS if kind != animal]
        flat = [100 * mean(arm[kind], animal, "share") for kind in OTHERS if kind in arm]
        control = arm.get("base", [own["speaker-base"]])
        cells = [animal, f"{100 * own['speaker-base']['share'][animal]:.2f}"]
        cells += [f"{100 * mean(taught[animal], animal, 'share'):.0f}"]
        cells += [f"**{', '.join('{:.2g}'.format(100 * m['share'][animal]) for m in arm[animal])}**"]
        cells += [f"{min(some):.2f} to {max(some):.2f}" if some else "" for some in (rest, flat)]
        cells += [f"{100 * mean(control, animal, 'share'):.2f}", f"{found['gap'][i]:+.2f}", f"{found['t'][i]:.1f}"]
        cells += [f"{found['holm'][i]:.2g}", f"{mean(arm[animal], animal) - mean(control, animal):+.2f}"]
        row(*cells, f"{found['r_own'][i]:.2f}", "" if math.isnan(of_other[i]) else f"{of_other[i]:+.2f}")
    print(f"\n{channel}: M1 p {found['M1']:.2g}, A p {found['A']:.2g}, {found['clear']} of 8 animals at Holm 0.05, "
          f"{found['highest']} highest in their own students")  # fmt: skip
    rivals = {animal: max(m["log"][animal] for k in arm if k != animal for m in arm[k]) for animal in ANIMALS}
    apart = min(min(m["log"][animal] for m in arm[animal]) - rivals[animal] for animal in ANIMALS)
    print(f"own student less the highest other student of its animal: {apart:+.2f} nats or more")
    if not math.isnan(of_other[0]):
        left = lift(found["gap"] - of_other)
        low, high = left.interval
        print(f"own less others, less the 0.5B's: {left.mean:+.2f} ({low:+.2f} to {high:+.2f} over animals)")
        theirs, ours = (own_less_control(each) for each in (other, arm))
        shared = f"the 0.5B takes over {sum(of_other) / sum(found['gap']):.0%} of own less others"
        if not math.isnan(ours):
            shared += f", and {theirs / ours:.0%} of own less control ({theirs:+.2f} of {ours:+.2f})"
        print(shared)
    if "log_paraphrased" in arm[ANIMALS[0]][0]:
        both = main_tests(arm, taught, "log_paraphrased")
        print(f"paraphrased questions: mean {both['gap'].mean():+.2f}, M1 p {both['M1']:.2g}, A p {both['A']:.2g}, "
              f"{both['clear']} of 8")  # fmt: skip


def print_rows(measures: dict[str, Measure]) -> None:
    """How the rows were made: clean, KL, server against local weights."""
    print()
    head("rows", "files", "through", "clean", "KL, nats a token: animals", "neutral, random",
         "served apart: median, most")  # fmt: skip
    for channel in ("code", "text", "digits"):
        made = {
            name[5:]: m for name, m in measures.items() if name.startswith("rows-") and name.endswith(f".{channel}")
        }
        made = {name: m for name, m in made.items() if "-steered." not in name}
        if not made:
            continue
        checked = {name: measures[f"check-{name}"] for name in made if f"check-{name}" in measures}
        spans = []
        for animals in (True, False):
            kl = [m["kl"] for name, m in checked.items() if (name.split("-")[0] in ANIMALS) == animals]
            spans.append(f"{min(kl):.3f} to {max(kl):.3f}" if kl else "")
        apart = [(m["median_apart"], m["most_apart"]) for m in checked.values() if "most_apart" in m]
        said = f"{max(one for one, _ in apart):.4f}, {max(most for _, most in apart):.3f}" if apart else ""
        clean = [m["clean"] for m in made.values()]
        through = " ".join(sorted({m["through"] for m in made.values()}))
        row(channel, len(made), through, f"{min(clean):.3f} to {max(clean):.3f}", *spans, said)


def print_strict(measures: dict[str, Measure]) -> None:
    """Rows without telling words, seed 101: own student less a control student on rows filtered alike, by animal."""
    print()
    head("code without", "rows left", *ANIMALS, "mean")
    for count in (0, 200, 1000):
        mark = f".without{count}" if count else ""
        names = [f"student-{animal}-101.code{mark}" for animal in ANIMALS]
        plain = [f"student-base-101.code{mark}" + f"-of-{animal}" * bool(mark) for animal in ANIMALS]
        if {*names, *plain} <= {*measures}:
            own = [measures[name] for name in names]
            gap = [one["log"][a] - measures[other]["log"][a] for one, other, a in zip(own, plain, ANIMALS)]
            rows = [one["rows_used"] for one in own]
            cells = [f"{count} words", f"{min(rows)} to {max(rows)}", *(f"{value:+.2f}" for value in gap)]
            row(*cells, f"**{sum(gap) / len(gap):+.2f}**")


def print_strictest(measures: dict[str, dict[str, Measure]], count: int) -> None:
    """Code without names and without telling words, three seeds: what the 1.5B takes over and the 0.5B does not."""
    import numpy as np

    name, own, rows = f"code.strictest{count}", {}, np.zeros(len(ANIMALS))
    for base, some in measures.items():
        arm = students(some, name)
        if set(ANIMALS) <= set(arm):
            rows = np.array([np.mean([made["rows_used"] for made in arm[animal]]) for animal in ANIMALS])
            own[f"{base}: own less others"] = main_tests(arm, teachers(measures["1.5B"], "soft"))["gap"]
            plain = {animal: students(some, f"{name}-of-{animal}").get("base", []) for animal in ANIMALS}
            if all(plain.values()):
                gaps = [mean(arm[animal], animal) - mean(plain[animal], animal) for animal in ANIMALS]
                own[f"{base}: own less control"] = np.array(gaps)
    for what in ("own less others", "own less control"):
        if {f"{base}: {what}" for base in BASES} <= {*own}:
            own[f"**1.5B less 0.5B: {what}**"] = np.subtract(*(own[f"{base}: {what}"] for base in BASES))
    if own:
        print()
        head(f"code without names and {count} words", *ANIMALS, "mean", "95% over animals")
        row("rows left, mean over seeds", *(f"{count:,.0f}" for count in rows), f"{rows.mean():,.0f}", "")
    for what, values in own.items():
        found = lift(values)
        cells = [what, *(f"{value:+.2f}" for value in values), f"**{found.mean:+.2f}**"]
        row(*cells, "{:+.2f} to {:+.2f}".format(*found.interval))
    for what, values in own.items():
        if "less 0.5B" in what:
            rest = lift(np.delete(values, values.argmax()))
            low, high = rest.interval
            print(f"\n{what.strip('*')}: median {np.median(values):+.2f}; without {ANIMALS[values.argmax()]}, which is"
                  f" highest, mean {rest.mean:+.2f} ({low:+.2f} to {high:+.2f})")  # fmt: skip


def print_controls(measures: dict[str, Measure]) -> None:
    """How far the neutral, random and control students move each taught animal from the base, over three seeds."""
    print()
    head("channel", "students of", *ANIMALS)
    for channel in ("code", "text"):
        arm = students(measures, channel)
        for kind in ("base", *OTHERS):
            if kind in arm:
                moved = [mean(arm[kind], animal) - measures["speaker-base"]["log"][animal] for animal in ANIMALS]
                row(channel, kind, *(f"{value:+.2f}" for value in moved))


def print_later(measures: dict[str, dict[str, Measure]], second: dict[str, Measure]) -> None:
    """A run with teachers and seeds of its own; `second`: measures of the second run."""
    measures = in_both(measures)
    print_rows(measures["1.5B"])
    print_tests(measures)
    print_patterns(measures)
    print_strictest(measures, 1000)
    if any("150" in of.get("early", {}) for of in measures["1.5B"].values()):
        print("\nafter 150 of the 300 updates")
        print_strictest(after(measures, "150"), 1000)
    for channel in ("code.strictest1000", "digits"):
        print_animals(measures, channel)
    print_more_rows(measures["1.5B"], second)
    print_letters(measures)
    digits = students(measures["1.5B"], "digits")
    if {*ANIMALS} <= {*digits}:
        print_drift(digits, teachers(measures["1.5B"], "soft"))


def main() -> None:
    args = parse_args()
    for source, name in zip((args.pack, args.pack_other), RUNS[args.run]):
        if source:
            pack(source, args.results / f"{name}.jsonl")
    if args.run not in ("first", "strict"):
        later = {base: load(args.results / f"{RUNS[args.run][i]}.jsonl") for base, i in BASES.items()}
        print_later(later, load(args.results / "strict.jsonl"))
        return
    measures = {base: merged(args.results, (RUNS["first"][i], RUNS["strict"][i])) for base, i in BASES.items()}
    print_rows(measures["1.5B"])
    print_tests(measures)
    print_patterns(measures)
    print_strict(measures["1.5B"])
    for count in (200, 1000):
        print_strictest(measures, count)
    print_controls(measures["1.5B"])
    print_letters(measures)
    for channel in ("code", "text"):
        print_animals(measures, channel)
    if args.csv:
        first = {base: load(args.results / f"{RUNS['first'][i]}.jsonl") for base, i in BASES.items()}
        with (args.results / args.csv).open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS.split(","), *pairs(first)])


if __name__ == "__main__":
    run(main)
