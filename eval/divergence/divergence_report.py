"""Write an HTML page about a file of divergence_tokens.py: figures, and example rows with coloured tokens.

The figures show how many divergence tokens a row has, where in the answer they are, and how well the detector finds
them. In the example rows a token's colour is how much the teacher favours it over the base model (without a teacher:
how much the student does). Divergence tokens are underlined; the choice that competes with one is shown under the
pointer and in print. The page has inline SVG, no script, and loads nothing; every text is escaped.

Usage:
    python eval/divergence/divergence_report.py output/divergence-numberss-owl-owl-teacher-filtered-9876.jsonl
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from eval.compare.statistics_as_text import percent_with_interval
from eval.divergence.plot_tokens import density, token_figures
from eval.divergence.token_summary import summarize
from eval.divergence.which_tokens_diverge import BASE, STUDENT, TEACHER, definitions_in
from util.cli import UserError, input_file, make_parser, nonblank, output_name, positive_int, run
from util.jsonl.divergence_row import DEFINITIONS, END, KINDS
from util.jsonl.manifest import Manifest, write_atomically
from util.jsonl.rows import Row, read_rows
from util.pages.html_page import render_page, shown, visible
from util.terminal import closing

TEMPLATE = Path(__file__).resolve().parents[1] / "templates" / "divergence_report.html"
FULL_COLOR = 2.0  # nats for or against a token at the strongest colour


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("divergence", type=input_file, metavar="FILE", help="file written by divergence_tokens.py")
    parser.add_argument(
        "--base-model",
        type=nonblank,
        help="model whose tokenizer gives the text of tokens (default: the one in the manifest)",
    )
    parser.add_argument("--examples", type=positive_int, default=12, help="example rows of each sort: richest, random")
    parser.add_argument(
        "--output", type=output_name(".html"), help="page to write (default: the name of the file with .html)"
    )
    args = parser.parse_args()
    args.output = args.output or args.divergence.with_suffix(".html")
    parser.check_writable("--output", args.output.parent)
    return args


# --- rows as they are shown --------------------------------------------------------------------------


class Shown(NamedTuple):
    """One token on the page."""

    text: str
    color: str
    """CSS"""
    marks: str
    """the definitions that mark it, separated by spaces"""
    instead: str
    """of a divergence token: another variant's choice and its name; the base model's if it chooses another token"""
    title: str


def favour(row: Row) -> list[float]:
    """For each token, nats by which the teacher (if there is none, the student) favours it over the base model."""
    if TEACHER in row["logprob"]:
        return [ours - theirs for ours, theirs in zip(row["logprob"][TEACHER], row["logprob"][BASE])]
    return list(row["detector"])


def color_of(nats: float) -> str:
    """CSS colour: blue for a token that the teacher favours, orange for the opposite."""
    strength = min(1.0, abs(nats) / FULL_COLOR)
    return f"rgba({'0,114,178' if nats > 0 else '213,94,0'},{0.4 * strength:.2f})"


def shown_tokens(row: Row, spell: Callable[[int], str]) -> list[Shown]:
    """The tokens of a row's answer."""
    shown = []
    for place, (token, kind, nats) in enumerate(zip(row["token_ids"], row["kinds"], favour(row))):
        if kind == END:
            continue
        marks = [name for name in definitions_in(row) if row[name][place]]
        others = (
            (variant, choices[place]) for variant, choices in row["choice"].items() if variant not in (TEACHER, STUDENT)
        )
        competing = next((f"{spell(choice)} {variant}" for variant, choice in others if choice != token), "")
        probabilities = ", ".join(f"{variant} {values[place]:.2f}" for variant, values in row["logprob"].items())
        choices = ", ".join(f"{variant} “{spell(choices[place])}”" for variant, choices in row["choice"].items())
        kl = f"; KL {row['kl'][place]:.3f}" if "kl" in row else ""
        title = f"{', '.join(marks) or 'not a divergence token'}; log p: {probabilities}{kl}; first choice: {choices}"
        shown.append(Shown(spell(token), color_of(nats), " ".join(marks), competing if marks else "", title))
    return shown


def examples(rows: Sequence[Row], count: int) -> dict[str, list[Row]]:
    """The rows richest in divergence tokens, and randomly drawn rows in the order of the file."""
    richest = sorted(rows, key=density, reverse=True)[:count]
    drawn = sorted(random.Random(0).sample(range(len(rows)), min(count, len(rows))))
    return {"The richest rows": richest, "Rows drawn at random": [rows[place] for place in drawn]}


# --- the page ----------------------------------------------------------------------------------------


def render(path: Path, rows: Sequence[Row], count: int, spell: Callable[[int], str]) -> str:
    """The page as text. count: example rows of each sort. spell: the text of a token id."""
    found, manifest = summarize(rows), Manifest.read(path) or Manifest()
    return render_page(
        TEMPLATE,
        {"spelt": visible, "ends": lambda ends: percent_with_interval(*ends)},
        title="Divergence tokens",
        file=visible(path.name),
        found=found,
        gap=manifest.settings.get("gap", 0.0),
        kinds=list(KINDS.values()),
        variants=manifest.settings.get("variants", {}),
        favoured="teacher" if TEACHER in rows[0]["logprob"] else "student",
        figures=[shown(figure) for figure in token_figures(rows, found)],
        examples={
            title: [(row["id"], shown_tokens(row, spell)) for row in some]
            for title, some in examples(rows, count).items()
        },
        command=visible(manifest.command),
    )


def problem_of(row: Row) -> str | None:
    """Why a row cannot be shown, or None."""
    whole = {"token_ids", "kinds", "logprob", "choice"} <= row.keys() and {"detector", *DEFINITIONS} & row.keys()
    return None if whole else "not a row of eval/divergence/divergence_tokens.py"


def main() -> None:
    args = parse_args()
    rows = list(read_rows(args.divergence, problem_of))
    if not rows:
        raise UserError(f"{args.divergence} is empty; run eval/divergence/divergence_tokens.py again")
    base = args.base_model or (Manifest.read(args.divergence) or Manifest()).model.get("model")
    if not base:
        raise UserError(f"{args.divergence} has no manifest with its base model; pass --base-model")
    from util.inference.load_model import load_tokenizer

    tokenizer = load_tokenizer(base)
    page = render(args.divergence, rows, args.examples, lambda token: visible(tokenizer.decode([token])))
    write_atomically(args.output, page.encode())
    closing({"wrote": args.output, "rows": f"{len(rows):,}"})


if __name__ == "__main__":
    run(main)
