"""Compare students trained on parts of the tokens: the arms of experiments/divergence.sh, over several runs.

A run is a folder of one seed, with its own teachers, numbers and students: tokens-ANIMAL.jsonl (divergence_tokens.py),
numbers-ANIMAL-ARM.jsonl (select_by_divergence.py), exact-ANIMAL-ARM.jsonl and exact-base.jsonl (eval.py --exact). An
arm is *all*, or a definition and what was done with it: gap-only, gap-random, ... The arms of one run have the same
teacher and numbers, so they are subtracted within each run, as log odds of the animal's share in nats. (Margins are not
used: in a student of few tokens they depend on noise in rare animals.) Intervals are over runs and questions
(eval/compare/intervals.py).

Usage:
    python eval/divergence/compare_divergence_arms.py output/divergence-seed-42 output/divergence-seed-7 \\
        output/divergence-seed-1 \\
        --output experiments/results/divergence/arms.json
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from eval.compare.read_results import FEWEST_SEEDS
from eval.compare.statistics_as_text import percent_with_interval
from eval.divergence.arm_effects import (
    Correlation,
    DivergenceArm,
    PairedDifference,
    RunTokens,
    arms_of,
    correlations,
    tokens_of,
)
from eval.divergence.plot_divergence_arms import arms_figure, densities_figure
from eval.divergence.read_divergence_runs import animals_in, inputs_of
from util.cli import UserError, make_parser, output_name, run
from util.jsonl.divergence_row import DEFINITIONS
from util.jsonl.manifest import provenance, write_atomically, write_json
from util.terminal import closing, say, table

COLUMNS = ("animal", "arm", "runs", "rows", "tokens with loss", "share", "share low", "share high",
           "shift", "shift low", "shift high", "control", "minus control", "control low", "control high",
           "minus all", "all low", "all high", "minus other animal", "other low", "other high")  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--output", type=output_name(".json"), default=Path("output/divergence-arms.json"),
                        help="JSON file; tables (.csv, .md) and figures (.png) get the same name")  # fmt: skip
    parser.default_folder("--output", Path("output"))
    return parser.parse_args()


# --- tables ------------------------------------------------------------------------------------------


def columns_of(arm: DivergenceArm) -> list[Any]:
    """The values of `COLUMNS`: shares as fractions, differences of log odds in nats; "" where there is none."""

    def three(found: PairedDifference | None) -> list[Any]:
        return [round(found.mean, 4), *(round(end, 4) for end in found.interval)] if found else ["", "", ""]

    return [
        arm.animal, arm.arm, len(arm.runs), round(arm.rows), round(arm.tokens_with_loss),
        *(f"{value:.6f}" for value in (arm.share, *arm.interval)), *three(arm.shift), arm.control or "",
        *three(arm.minus_control), *three(arm.minus_all), *three(arm.minus_other),
    ]  # fmt: skip


def as_csv(arms: Sequence[DivergenceArm]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(map(columns_of, arms))
    return text.getvalue()


def as_markdown(arms: Sequence[DivergenceArm]) -> str:
    """A Markdown table: shares with those of the runs, and paired differences of log odds with their intervals."""
    heading = ("animal", "arm", "tokens with loss", "share (runs)", "log odds minus base", "minus control",
               "minus other animal")  # fmt: skip
    lines = [heading, ["---"] * len(heading)]
    for arm in arms:
        by_run = ", ".join(f"{100 * share:.1f}" for share in arm.shares)
        share = f"{100 * arm.share:.1f}% ({by_run})"
        differences = [nats(one) for one in (arm.shift, arm.minus_control, arm.minus_other)]
        lines.append([arm.animal, arm.arm, f"{arm.tokens_with_loss:,.0f}", share, *differences])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def nats(found: PairedDifference | None) -> str:
    """A difference with its interval; with fewer than three runs, the number of runs instead."""
    if found is None:
        return ""
    runs = len(found.by_run)
    if runs < FEWEST_SEEDS:
        return f"{found.mean:+.2f} ({runs} run{'s' * (runs > 1)})"
    return "{:+.2f} ({:.2f} to {:.2f})".format(found.mean, *found.interval)


def show(arms: Sequence[DivergenceArm], tokens: Sequence[RunTokens], related: dict[str, Correlation]) -> None:
    """Print the tables."""
    fractions = [
        (one.animal, one.run,
         *(percent_with_interval(*one.fraction[name]) if name in one.fraction else "" for name in DEFINITIONS),
         ", ".join(f"{name} {by['digits']:.3f}" for name, by in one.detector_auc.items() if "digits" in by))
        for one in tokens
    ]  # fmt: skip
    print(f"{table(('divergence tokens', 'run', *DEFINITIONS, 'detector AUC (digits)'), fractions)}\n")
    lines = [
        (arm.animal, arm.arm, len(arm.runs), f"{arm.tokens_with_loss:,.0f}",
         percent_with_interval(arm.share, *arm.interval), nats(arm.shift), nats(arm.minus_control),
         nats(arm.minus_all), nats(arm.minus_other))
        for arm in arms
    ]  # fmt: skip
    heading = ("animal", "arm", "runs", "tokens", "share", "log odds - base", "- control", "- all", "- other animal")
    print(f"{table(heading, lines)}\n")
    correlated = [
        (name, one.points, "" if one.r is None else f"{one.r:+.2f}",
         "{:+.2f} to {:+.2f}".format(*one.interval) if one.interval else "")
        for name, one in related.items()
    ]  # fmt: skip
    print(f"{table(('density against shift', 'students', 'r', '95% interval'), correlated)}\n")
    if any(len(arm.runs) < FEWEST_SEEDS for arm in arms):
        say(f"some arms have fewer than {FEWEST_SEEDS} runs: they have no interval over runs")


def main() -> None:
    args = parse_args()
    arms = arms_of(args.runs)
    if not arms:
        raise UserError(f"no exact-ANIMAL-ARM.jsonl in {', '.join(map(str, args.runs))}; run experiments/divergence.sh")
    tokens = [one for animal in animals_in(args.runs) for one in tokens_of(animal, args.runs)]
    related = correlations(arms)
    show(arms, tokens, related)
    found = {
        "arms": [asdict(arm) for arm in arms],
        "tokens": [asdict(one) for one in tokens],
        "density_against_shift": {name: one.to_json() for name, one in related.items()},
        "manifest": provenance(inputs_of(args.runs)),
    }
    write_json(args.output, found)
    write_atomically(args.output.with_suffix(".csv"), as_csv(arms).encode())
    write_atomically(args.output.with_suffix(".md"), as_markdown(arms).encode())
    r = {name: one.r for name, one in related.items() if one.r is not None}
    figures = {args.output.with_suffix(".png"): arms_figure(arms),
               args.output.with_suffix(".density.png"): densities_figure(arms, r)}  # fmt: skip
    for path, figure in figures.items():
        write_atomically(path, figure.png())
    closing({"wrote": args.output, "figures": ", ".join(map(str, figures))})


if __name__ == "__main__":
    run(main)
