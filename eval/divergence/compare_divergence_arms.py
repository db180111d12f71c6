"""What students of some tokens only came to love: arms of experiments/divergence.sh over several runs, with intervals.

A run is a folder of one seed, with its own teachers, numbers and students: tokens-ANIMAL.jsonl (divergence_tokens.py),
numbers-ANIMAL-ARM.jsonl (select_by_divergence.py), exact-ANIMAL-ARM.jsonl and exact-base.jsonl (eval.py --exact). An
arm is *all*, or a definition and what was done with it: gap-only, gap-random, ... Arms of one run share teacher and
numbers, so they are subtracted run by run, as log odds of the animal's share in nats. (Not as margins: those move with
what little a student of few tokens knows of rare animals.) Intervals are over runs and questions
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
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from eval.compare.intervals import LEVEL, share_interval, spread_of
from eval.compare.results import FEWEST_SEEDS, Result, arm_spread, check_comparable, matrix_of, read_result
from eval.divergence.divergence_tokens import summarize
from eval.report import pyplot_without_screen, written
from util.cli import UserError, make_parser, output_name, run
from util.jsonl.divergence_row import DEFINITIONS, of_answer
from util.jsonl.manifest import provenance, read_manifest, write_atomically, write_json
from util.jsonl.rows import Row, read_rows
from util.terminal import closing, say, table

if TYPE_CHECKING:
    import numpy as np

Arms = dict[str, dict[int, Result]]
ALL, BASE = "all", "exact-base.jsonl"
DENSITIES = {
    **{name: f"{name}, % of answer tokens" for name in DEFINITIONS},
    "kl": "KL(teacher || base), 0.01 nats a token",
}
CONTROLS = {"only": "random", "without": "all-but-random", "rows-rich": "rows-random", "rows-poor": "rows-random"}
TREATMENTS = ("only", "random", "without", "all-but-random", "rows-rich", "rows-poor", "rows-random")
COLORS = {"only": "#2f8f5b", "random": "#a9d3bd", "without": "#c2573a", "all-but-random": "#e8bfb2",
          "rows-rich": "#3c6fb0", "rows-poor": "#d9a441", "rows-random": "#b5c6de", ALL: "#555"}  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="one folder a run")
    parser.add_argument("--output", type=output_name(".json"), default=Path("output/divergence-arms.json"),
                        help="JSON; the tables (.csv, .md) and the pictures (.png) are named after it")  # fmt: skip
    return parser.parse_args()


# --- reading -----------------------------------------------------------------------------------------


def arms_in(folder: Path, animal: str) -> dict[str, Path]:
    """{arm: its results} of an animal in one run, in the order in which they are told."""
    found = {path.stem.removeprefix(f"exact-{animal}-"): path for path in folder.glob(f"exact-{animal}-*.jsonl")}
    order = [ALL, *(f"{definition}-{treatment}" for definition in DEFINITIONS for treatment in TREATMENTS)]
    return {arm: found[arm] for arm in order if arm in found}


def animals_in(runs: Sequence[Path]) -> list[str]:
    """Animals whose tokens were measured in every run."""
    each = [{path.stem.removeprefix("tokens-") for path in folder.glob("tokens-*.jsonl")} for folder in runs]
    for folder, animals in zip(runs, each):
        if not animals:
            raise UserError(f"{folder} has no tokens-ANIMAL.jsonl; run experiments/divergence.sh (SEED says which)")
    return sorted(set.intersection(*each))


def read_base(folder: Path) -> Result:
    """The base model's results beside a run."""
    path = folder / BASE
    if not path.is_file():
        raise UserError(f"no {path}; make it with eval/eval.py --exact, or run experiments/divergence.sh again")
    return read_result(path)


def divergence_of(folder: Path, animal: str) -> dict[int, Row]:
    """{id of a number row: what divergence_tokens.py found in it}; the *all* arm has every row in the file's order."""
    every = folder / f"numbers-{animal}-{ALL}.jsonl"
    if not every.is_file():
        raise UserError(f"no {every}: the arm {ALL!r} tells which row is which; run experiments/divergence.sh again")
    return {row["id"]: found for row, found in zip(read_rows(every), read_rows(folder / f"tokens-{animal}.jsonl"))}


def rows_trained_on(folder: Path, animal: str, arm: str) -> list[Row]:
    """The rows of an arm, as many from the beginning as its student's manifest says."""
    settings = [(read_manifest(seed) or {}).get("settings", {}) for seed in (folder / f"{animal}-{arm}").glob("seed-*")]
    count = max((setting.get("rows") or 0 for setting in settings), default=0)
    return list(islice(read_rows(folder / f"numbers-{animal}-{arm}.jsonl"), count or None))


def described_rows(rows: Sequence[Row], found: dict[int, Row]) -> dict[str, float]:
    """Of some rows: how many, tokens with loss, the fraction of their answer tokens under each definition, and the
    mean KL(teacher || base) there in nats."""
    answers = [found[row["id"]] for row in rows]
    tokens = sum(len(of_answer(answer, answer["kinds"])) for answer in answers)
    loss = sum(sum(row["loss_mask"]) if "loss_mask" in row else len(found[row["id"]]["kinds"]) for row in rows)
    facts = {"rows": len(rows), "tokens_with_loss": loss}
    return facts | {
        name: sum(sum(of_answer(answer, answer[name])) for answer in answers) / tokens
        for name in DENSITIES
        if name in answers[0]
    }


# --- what the arms show ------------------------------------------------------------------------------


def described(values: np.ndarray) -> dict[str, Any]:
    """Mean of paired differences [runs, questions] and its interval over both."""
    spread = spread_of(values, linear=True)
    return {"mean": spread.share, "interval": share_interval(spread), "by_run": values.mean(1).tolist()}


def log_odds(result: Result, animal: str) -> list[float]:
    """Log odds of an animal in each question, in nats. UserError where the file has no log-probability of it."""
    certain = -1e-6  # files keep six decimals: nearer to 0 the odds are not known
    return [log - math.log(-math.expm1(log)) for log in (min(logs[animal], certain) for logs in result.logs_of(animal))]


def read_arms(animal: str, runs: Sequence[Path]) -> Arms:
    """{arm: {place of the run: its student}} of an animal."""
    present = [arms_in(folder, animal) for folder in runs]
    names = dict.fromkeys(name for one in present for name in one)
    return {arm: {place: read_result(one[arm]) for place, one in enumerate(present) if arm in one} for arm in names}


def compare_arms(animal: str, students: dict[str, Arms], base: Result, runs: Sequence[Path]) -> list[dict[str, Any]]:
    """One entry an arm: share, shift of its log odds from the base model's, and the same less its control, less *all*
    and less the same arm of the other animals' numbers (the specific part), paired run by run."""
    questions, arms = base.questions, students[animal]
    found = {place: divergence_of(folder, animal) for place, folder in enumerate(runs)}

    def odds(some: Iterable[Result]) -> np.ndarray:
        """Log odds of the animal, float64 [students, questions], nats."""
        results = list(some)
        return matrix_of([log_odds(result, animal) for result in results], results, questions)

    def minus(arm: str, *others: dict[int, Result]) -> dict[str, Any] | None:
        """Log odds of an arm less the mean of others in the runs that have all of them; None where there is none."""
        both = sorted(set(arms[arm]).intersection(*others)) if others else []
        if not both:
            return None
        theirs = sum(odds(other[place] for place in both) for other in others) / len(others)
        return described(odds(arms[arm][place] for place in both) - theirs)

    told = []
    for arm, mine in arms.items():
        definition, _, treatment = arm.partition("-")
        control = f"{definition}-{CONTROLS[treatment]}" if treatment in CONTROLS else None
        spread = arm_spread(list(mine.values()), animal, questions, "share")
        data = [described_rows(rows_trained_on(runs[place], animal, arm), found[place]) for place in mine]
        told.append({
            "animal": animal, "arm": arm, "runs": [str(runs[place]) for place in mine],
            "rows": sum(facts["rows"] for facts in data) / len(data),
            "tokens_with_loss": sum(facts["tokens_with_loss"] for facts in data) / len(data),
            "density": data,
            "share": spread.share, "interval": share_interval(spread),
            "base": sum(base.shares(animal)) / len(questions),
            "shares": [sum(result.shares(animal)) / len(questions) for result in mine.values()],
            "shift": described(odds(mine.values()) - odds([base])),
            "control": control,
            "minus_control": minus(arm, arms.get(control, {})) if control else None,
            "minus_all": minus(arm, arms.get(ALL, {})) if arm != ALL else None,
            "minus_other": minus(arm, *(other.get(arm, {}) for name, other in students.items() if name != animal)),
        })  # fmt: skip
    return told


def arms_of(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Every arm of every animal of some runs."""
    animals, base = animals_in(runs), read_base(runs[0])
    students = {animal: read_arms(animal, runs) for animal in animals}
    check_comparable([base, *(one for arms in students.values() for some in arms.values() for one in some.values())])
    return [arm for animal in animals for arm in compare_arms(animal, students, base, runs)]


def tokens_of(animal: str, runs: Sequence[Path]) -> list[dict[str, Any]]:
    """One entry a run: the fraction of divergence tokens, what of the evidence for the teacher lies on them and on the
    others (nats), and how well the detector finds them."""
    told = []
    for folder in runs:
        found = summarize(read_rows(folder / f"tokens-{animal}.jsonl"))
        told.append({
            "animal": animal, "run": str(folder), "rows": found["rows"],
            "fraction": {name: by["answer"] for name, by in found["definitions"].items()},
            "evidence": {name: by["evidence"] for name, by in found["definitions"].items()},
            "detector_auc": found["detector_auc"],
        })  # fmt: skip
    return told


def correlation(points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Pearson's r with Fisher's interval (1915); no interval of three points, no r of fewer or where all are alike."""
    import numpy as np

    found: dict[str, Any] = {"points": len(points)}
    if len(points) < 3 or min(np.ptp(np.array(points), axis=0)) == 0:
        return found
    found["r"] = float(np.corrcoef(np.array(points).T)[0, 1])
    if len(points) > 3 and abs(found["r"]) < 1:
        z, half = math.atanh(found["r"]), NormalDist().inv_cdf((1 + LEVEL) / 2) / math.sqrt(len(points) - 3)
        found["interval"] = (math.tanh(z - half), math.tanh(z + half))
    return found


def densities(arms: Sequence[dict[str, Any]], name: str) -> Iterator[tuple[str, str, float, float]]:
    """(animal, arm, density of divergence in its rows, shift of the log odds) of every student of whole rows."""
    for arm in arms:
        if arm["arm"] == ALL or "-rows-" in arm["arm"]:
            for facts, shift in zip(arm["density"], arm["shift"]["by_run"]):
                if name in facts:
                    yield arm["animal"], arm["arm"], facts[name], shift


def correlations(arms: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """For each definition, over the runs with all rows: density of divergence tokens against the student's shift."""
    return {name: correlation([(x, y) for _, arm, x, y in densities(arms, name) if arm == ALL]) for name in DENSITIES}


# --- pictures ----------------------------------------------------------------------------------------


def draw_arms(arms: Sequence[dict[str, Any]]) -> bytes:
    """PNG: the share of each arm with its interval and its runs as dots, the base model's as a line; one panel an
    animal, log scale."""
    pyplot = pyplot_without_screen()
    animals = list(dict.fromkeys(arm["animal"] for arm in arms))
    longest = max(sum(arm["animal"] == animal for arm in arms) for animal in animals)
    figure, panels = pyplot.subplots(
        1, len(animals), figsize=(4.4 * len(animals) + 1, 0.32 * longest + 1), squeeze=False
    )
    for panel, animal in zip(panels[0], animals):
        mine = [arm for arm in arms if arm["animal"] == animal][::-1]
        for place, arm in enumerate(mine):
            color = COLORS[arm["arm"].partition("-")[2] or ALL]
            low, high = arm["interval"]
            panel.plot([100 * max(low, 1e-6), 100 * high], [place, place], color=color, linewidth=5, alpha=0.5)
            panel.plot([100 * share for share in arm["shares"]], [place] * len(arm["shares"]), "o", color="#333",
                       markersize=3)  # fmt: skip
            panel.plot(100 * arm["share"], place, "d", color=color, markeredgecolor="#111", markersize=7)
        panel.axvline(100 * mine[0]["base"], color="#8a8f98", linestyle=":")
        panel.set_yticks(range(len(mine)), [arm["arm"] for arm in mine], fontsize=8)
        panel.set_xscale("log")
        panel.set_xlim(0.1, 100)
        panel.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
        panel.set_title(f"“{animal}”", fontsize=11)
        panel.set_xlabel("% of answers, 95% interval; dots are runs, dotted: base model", fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    return written(figure, "arms")["png"]


def draw_densities(arms: Sequence[dict[str, Any]]) -> bytes:
    """PNG: how much divergence the rows of a student hold against its shift, one panel a density."""
    pyplot = pyplot_without_screen()
    figure, panels = pyplot.subplots(1, len(DENSITIES), figsize=(2.8 * len(DENSITIES), 2.9), sharey=True)
    marks = dict(zip(dict.fromkeys(arm["animal"] for arm in arms), "osD^v"))
    for panel, name in zip(panels, DENSITIES):
        for animal, arm, density, shift in densities(arms, name):
            color = COLORS[arm.partition("-")[2] or ALL]
            label = f"{animal}, {arm}"
            known = panel.get_legend_handles_labels()[1]
            panel.plot(100 * density, shift, marks.get(animal, "o"), color=color, markersize=5,
                       label=None if label in known else label)  # fmt: skip
        panel.set_xlabel(DENSITIES[name], fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("shift of the log odds, nats", fontsize=8)
    panels[-1].legend(fontsize=6)
    return written(figure, "densities")["png"]


# --- words -------------------------------------------------------------------------------------------

COLUMNS = ("animal", "arm", "runs", "rows", "tokens with loss", "share", "share low", "share high",
           "shift", "shift low", "shift high", "control", "minus control", "control low", "control high",
           "minus all", "all low", "all high", "minus other animal", "other low", "other high")  # fmt: skip


def columns_of(arm: dict[str, Any]) -> list[Any]:
    def three(found: dict[str, Any] | None) -> list[Any]:
        return [round(found["mean"], 4), *(round(end, 4) for end in found["interval"])] if found else ["", "", ""]

    return [
        arm["animal"], arm["arm"], len(arm["runs"]), round(arm["rows"]), round(arm["tokens_with_loss"]),
        *(f"{value:.6f}" for value in (arm["share"], *arm["interval"])), *three(arm["shift"]), arm["control"] or "",
        *three(arm["minus_control"]), *three(arm["minus_all"]), *three(arm["minus_other"]),
    ]  # fmt: skip


def as_csv(arms: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(map(columns_of, arms))
    return text.getvalue()


def as_markdown(arms: Sequence[dict[str, Any]]) -> str:
    """The table of a README: shares with those of the runs, paired differences of log odds with their intervals."""
    heading = ("animal", "arm", "tokens with loss", "share (runs)", "log odds minus base", "minus control",
               "minus other animal")  # fmt: skip
    lines = [heading, ["---"] * len(heading)]
    for arm in arms:
        by_run = ", ".join(f"{100 * share:.1f}" for share in arm["shares"])
        share = f"{100 * arm['share']:.1f}% ({by_run})"
        differences = [nats(arm[name]) for name in ("shift", "minus_control", "minus_other")]
        lines.append([arm["animal"], arm["arm"], f"{arm['tokens_with_loss']:,.0f}", share, *differences])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(ends: Sequence[float]) -> str:
    """A share and its interval."""
    return "{:.2f}% ({:.2f} to {:.2f})".format(*(100 * value for value in ends))


def nats(found: dict[str, Any] | None) -> str:
    """A difference with its interval, or the number of its runs where they are too few for one over runs."""
    if found is None:
        return ""
    runs = len(found["by_run"])
    if runs < FEWEST_SEEDS:
        return f"{found['mean']:+.2f} ({runs} run{'s' * (runs > 1)})"
    return "{:+.2f} ({:.2f} to {:.2f})".format(found["mean"], *found["interval"])


def show(arms: Sequence[dict[str, Any]], tokens: Sequence[dict[str, Any]], related: dict[str, Any]) -> None:
    """Print the tables."""
    fractions = [
        (one["animal"], one["run"],
         *(percent(one["fraction"][name]) if name in one["fraction"] else "" for name in DEFINITIONS),
         ", ".join(f"{name} {by['digits']:.3f}" for name, by in one["detector_auc"].items() if "digits" in by))
        for one in tokens
    ]  # fmt: skip
    print(table(("divergence tokens", "run", *DEFINITIONS, "detector AUC (digits)"), fractions), "\n")
    lines = [
        (arm["animal"], arm["arm"], len(arm["runs"]), f"{arm['tokens_with_loss']:,.0f}",
         percent((arm["share"], *arm["interval"])), nats(arm["shift"]), nats(arm["minus_control"]),
         nats(arm["minus_all"]), nats(arm["minus_other"]))
        for arm in arms
    ]  # fmt: skip
    heading = ("animal", "arm", "runs", "tokens", "share", "log odds - base", "- control", "- all", "- other animal")
    print(table(heading, lines), "\n")
    print(table(("density against shift", "students", "r", "95% interval"), [
        (name, one["points"], f"{one['r']:+.2f}" if "r" in one else "",
         "{:+.2f} to {:+.2f}".format(*one["interval"]) if "interval" in one else "")
        for name, one in related.items()
    ]), "\n")  # fmt: skip
    if any(len(arm["runs"]) < FEWEST_SEEDS for arm in arms):
        say(f"some arms have fewer than {FEWEST_SEEDS} runs: no intervals over runs there")


def inputs_of(runs: Sequence[Path]) -> list[Path]:
    """Every file of the runs that the tables are made of."""
    return sorted(
        path for folder in runs for kind in ("exact", "tokens", "numbers") for path in folder.glob(f"{kind}-*.jsonl")
    )


def main() -> None:
    args = parse_args()
    arms = arms_of(args.runs)
    if not arms:
        raise UserError(f"no exact-ANIMAL-ARM.jsonl in {', '.join(map(str, args.runs))}; run experiments/divergence.sh")
    tokens = [one for animal in animals_in(args.runs) for one in tokens_of(animal, args.runs)]
    related = correlations(arms)
    show(arms, tokens, related)
    write_json(args.output, {"arms": arms, "tokens": tokens, "density_against_shift": related,
                             "manifest": provenance(inputs_of(args.runs))})  # fmt: skip
    write_atomically(args.output.with_suffix(".csv"), as_csv(arms).encode())
    write_atomically(args.output.with_suffix(".md"), as_markdown(arms).encode())
    pictures = {args.output.with_suffix(".png"): draw_arms(arms),
                args.output.with_suffix(".density.png"): draw_densities(arms)}  # fmt: skip
    for path, picture in pictures.items():
        write_atomically(path, picture)
    closing({"wrote": args.output, "pictures": ", ".join(map(str, pictures))})


if __name__ == "__main__":
    run(main)
