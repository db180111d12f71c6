"""See the divergence tokens: a page with pictures and example rows, from what divergence_tokens.py wrote.

How many a row has, where in the answer they are, how well the detector finds them, and rows whose tokens are coloured
by how far the teacher favours them over the base model (without a teacher: the student). A divergence token is
underlined; the choice that competes with it is shown under the pointer and in print. Inline SVG, no script,
nothing loaded from outside, every text escaped.

Usage:
    python eval/divergence/divergence_report.py output/divergence-numberss-owl-owl-teacher-filtered-9876.jsonl
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from eval.divergence.divergence_tokens import definitions_in, summarize
from eval.divergence.scoring import BASE, STUDENT, TEACHER
from eval.report import pyplot_without_screen, svg_of, written
from util.cli import UserError, input_file, make_parser, output_name, positive_int, run
from util.jsonl.divergence_row import DEFINITIONS, END, KINDS, of_answer
from util.jsonl.manifest import now, read_manifest, write_atomically
from util.jsonl.rows import Row, read_rows
from util.terminal import closing

COLORS = {"schrodi": "#2f8f5b", "pair": "#3c6fb0", "gap": "#d9a441"}
FULL_COLOR = 2.0  # nats by which a token is favoured, or the opposite, at the strongest colour


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("divergence", type=input_file, help="what divergence_tokens.py wrote")
    parser.add_argument("--base-model", help="whose tokenizer spells the tokens (default: the file's own)")
    parser.add_argument("--examples", type=positive_int, default=12, help="rows shown of each sort: richest, any")
    parser.add_argument(
        "--output", type=output_name(".html"), help="page to write (default: the file's name with .html)"
    )
    return parser.parse_args()


# --- rows as they are shown --------------------------------------------------------------------------


class Shown(NamedTuple):
    """One token on the page."""

    text: str
    color: str
    """CSS"""
    marks: str
    """definitions under which it is a divergence token"""
    instead: str
    """of a divergence token: the choice that competes with it, of the base model where that is another"""
    title: str


def spelt(text: str) -> str:
    """The text with everything that cannot be seen spelt out: a newline as \\\\n, U+202E as \\\\u202e."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def favour(row: Row) -> list[float]:
    """For each token, nats by which the teacher favours it over the base model; the student where there is none."""
    if TEACHER in row["logprob"]:
        return [ours - theirs for ours, theirs in zip(row["logprob"][TEACHER], row["logprob"][BASE])]
    return list(row["detector"])


def color_of(nats: float) -> str:
    """Green where the teacher favours the token, red where it does the opposite."""
    strength = min(1.0, abs(nats) / FULL_COLOR)
    return f"rgba({'47,143,91' if nats > 0 else '194,87,58'},{0.75 * strength:.2f})"


def shown_tokens(row: Row, spell: Callable[[int], str]) -> list[Shown]:
    """The tokens of a row's answer."""
    told = []
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
        title = f"{', '.join(marks) or 'no divergence token'}; log p: {probabilities}{kl}; would write: {choices}"
        told.append(Shown(spell(token), color_of(nats), " ".join(marks), competing if marks else "", title))
    return told


def density(row: Row) -> float:
    """How rich a row is: its divergence tokens under all definitions; without a teacher, its mean detector."""
    named = definitions_in(row)
    if named:
        return float(sum(sum(of_answer(row, row[name])) for name in named))
    scores = of_answer(row, row["detector"])
    return sum(scores) / max(1, len(scores))


def examples(rows: Sequence[Row], count: int) -> dict[str, list[Row]]:
    """The rows richest in divergence tokens, and rows drawn at random in the file's order."""
    richest = sorted(rows, key=density, reverse=True)[:count]
    drawn = sorted(random.Random(0).sample(range(len(rows)), min(count, len(rows))))
    return {"The richest rows": richest, "Rows drawn at random": [rows[place] for place in drawn]}


# --- pictures ----------------------------------------------------------------------------------------


def draw_rows(rows: Sequence[Row]) -> dict[str, bytes]:
    """Histogram of divergence tokens per row (share of the rows), a line a definition; without a teacher, of the
    detector's mean."""
    pyplot = pyplot_without_screen()
    figure, panel = pyplot.subplots(figsize=(6.2, 2.7))
    names = definitions_in(rows[0])
    for place, name in enumerate(names):
        counts = Counter(sum(of_answer(row, row[name])) for row in rows)
        most = max(counts)
        at = [count + 0.27 * (place - (len(names) - 1) / 2) for count in range(most + 1)]
        panel.bar(at, [100 * counts[count] / len(rows) for count in range(most + 1)], 0.25, color=COLORS[name],
                  label=name)  # fmt: skip
    if names:
        panel.set_xlabel("divergence tokens in a row")
        panel.legend()
    else:
        panel.hist([density(row) for row in rows], bins=40, weights=[100 / len(rows)] * len(rows), color="#3c6fb0")
        panel.set_xlabel("mean of log p_student - log p_base in a row, nats")
    panel.set_ylabel("% of rows")
    panel.spines[["top", "right"]].set_visible(False)
    return written(figure, "rows")


def draw_kl(rows: Sequence[Row]) -> dict[str, bytes]:
    """Histogram over the rows of the mean KL(teacher || base) of a row's answer tokens."""
    pyplot = pyplot_without_screen()
    figure, panel = pyplot.subplots(figsize=(6.2, 2.4))
    means = [sum(kl) / max(1, len(kl)) for kl in (of_answer(row, row["kl"]) for row in rows)]
    panel.hist(means, bins=40, weights=[100 / len(rows)] * len(rows), color="#6f9bd1")
    panel.set_xlabel("KL(teacher || base) of a row, nats a token")
    panel.set_ylabel("% of rows")
    panel.spines[["top", "right"]].set_visible(False)
    return written(figure, "kl")


def draw_positions(found: dict[str, Any]) -> dict[str, bytes]:
    """Fraction of divergence tokens by their place in the answer, a line a definition."""
    pyplot = pyplot_without_screen()
    figure, panel = pyplot.subplots(figsize=(6.2, 2.7))
    for name, by in found["definitions"].items():
        panel.plot([100 * value for value in by["by_position"]], "o-", color=COLORS[name], label=name, markersize=3)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.set_xlabel("place in the answer, tokens")
    panel.set_ylabel("% divergence tokens")
    panel.set_ylim(bottom=0)
    panel.legend()
    panel.spines[["top", "right"]].set_visible(False)
    return written(figure, "positions")


# --- the page ----------------------------------------------------------------------------------------

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>Divergence tokens</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; color: #1d2329 }
figure { margin: 1rem 0 } figure svg { width: 100%; max-width: 44rem; height: auto }
.scroll { overflow-x: auto } table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-size: .92rem }
td, th { padding: .25rem .7rem; border-bottom: 1px solid #dde1e6; text-align: right }
td:first-child, th:first-child { text-align: left }
.row { margin: .5rem 0; overflow-wrap: anywhere } .row b { color: #8a8f98; font-weight: normal; margin-right: .6rem }
.t { white-space: pre-wrap; padding: .1rem 0; unicode-bidi: isolate; print-color-adjust: exact;
     -webkit-print-color-adjust: exact }
.m { text-decoration: underline 2px; font-weight: bold }
.t i { display: none; font-weight: normal; font-size: .75rem; background: #fff7d6; margin: 0 .2rem; padding: 0 .2rem }
.t:hover i, .t:focus i { display: inline }
@media print { body { max-width: none } .t i { display: inline } }
</style></head><body>
<h1>Divergence tokens</h1><p>{{ file }}, {{ "{:,}".format(found.rows) }} rows, {{ when }}</p>
<div class="scroll"><table><tr><th>variant</th><th>adapter</th><th>persona</th></tr>
{% for name, variant in variants.items() %}<tr><td>{{ name | spelt }}</td>
<td><code>{{ (variant.adapter_sha256 or "")[:12] }}
</code></td><td>{{ (variant.system or "") | spelt }}</td></tr>{% endfor %}</table></div>
{% if found.definitions %}
<p><em>schrodi</em>: the teacher's most probable token, and not that of some counterfactual variant. <em>pair</em>: the
teacher's most probable token, and not the base model's. <em>gap</em>: log p(teacher) - log p(base) above
{{ "%.3f" | format(gap) }} nats. Intervals: 95%, rows independent.</p>
<div class="scroll"><table><tr><th>definition</th><th>of answer tokens</th>{% for kind in kinds %}<th>{{ kind }}</th>
{% endfor %}<th>rows with any</th></tr>
{% for name, by in found.definitions.items() %}<tr><td>{{ name }}</td><td>{{ by.answer | ends }}</td>
{% for kind in kinds %}<td>{{ by[kind] | ends }}</td>{% endfor %}
<td>{{ "%.1f%%" | format(100 * by.rows_with_any) }}</td></tr>{% endfor %}</table></div>{% endif %}
{% if found.detector_auc %}<p>The detector needs no teacher: log p(student) - log p(base). The chance that it puts a
divergence token above another token:</p>
<div class="scroll"><table><tr><th>definition</th><th>answer tokens</th><th>digits only</th></tr>
{% for name, by in found.detector_auc.items() %}<tr><td>{{ name }}</td><td>{{ "%.3f" | format(by.answer) }}</td>
<td>{{ "%.3f" | format(by.digits) if "digits" in by else "" }}</td></tr>{% endfor %}</table></div>{% endif %}
{% for title, picture in pictures.items() %}<h2>{{ title }}</h2><figure>{{ picture }}</figure>{% endfor %}
{% for title, rows in examples.items() %}<h2>{{ title }}</h2>
<p>Green: favoured by the {{ favoured }} over the base model, red: the opposite. Underlined: a divergence token.</p>
{% for number, tokens in rows %}<div class="row"><b>{{ number }}</b>
{%- for t in tokens %}<span class="t{{ ' m' if t.marks }}"{% if t.marks %} tabindex="0"{% endif %}
 style="background:{{ t.color }}" title="{{ t.title }}">{{ t.text }}
{%- if t.instead %}<i>{{ t.instead }}</i>{% endif %}</span>{%- endfor %}</div>
{% endfor %}{% endfor %}
<p><code>{{ command }}</code></p>
</body></html>
"""


def render(path: Path, rows: Sequence[Row], count: int, spell: Callable[[int], str]) -> str:
    """The page as text. Everything but our own SVGs is escaped by the template backend."""
    from jinja2 import Environment
    from markupsafe import Markup

    found, manifest = summarize(rows), read_manifest(path) or {}
    settings = manifest.get("settings", {})
    pictures = {"Divergence of each row": draw_rows(rows)}
    if found["definitions"]:
        pictures |= {"How far each row is from the base model": draw_kl(rows),
                     "Where in the answer": draw_positions(found)}  # fmt: skip
    environment = Environment(autoescape=True)
    environment.filters["spelt"] = spelt
    environment.filters["ends"] = lambda ends: "{:.2f}% ({:.2f} to {:.2f})".format(*(100 * end for end in ends))
    return environment.from_string(PAGE).render(
        file=spelt(path.name), when=now(), found=found, gap=settings.get("gap", 0.0), kinds=list(KINDS.values()),
        variants=settings.get("variants", {}), favoured="teacher" if TEACHER in rows[0]["logprob"] else "student",
        pictures={title: Markup(svg_of(picture)) for title, picture in pictures.items()},
        examples={title: [(row["id"], shown_tokens(row, spell)) for row in some]
                  for title, some in examples(rows, count).items()},
        command=spelt(manifest.get("command", "")),
    )  # fmt: skip


def problem_of(row: Row) -> str | None:
    """What keeps a row from being shown, or None."""
    whole = {"token_ids", "kinds", "logprob", "choice"} <= row.keys() and {"detector", *DEFINITIONS} & row.keys()
    return None if whole else "not a row of eval/divergence/divergence_tokens.py"


def main() -> None:
    args = parse_args()
    rows = list(read_rows(args.divergence, problem_of))
    if not rows:
        raise UserError(f"{args.divergence} is empty; run eval/divergence/divergence_tokens.py again")
    base = args.base_model or (read_manifest(args.divergence) or {}).get("settings", {}).get("base", {}).get("model")
    if not base:
        raise UserError(f"{args.divergence} has no manifest that names its base model; pass --base-model")
    from util.inference.load_model import load_tokenizer

    tokenizer = load_tokenizer(base)
    page = render(args.divergence, rows, args.examples, lambda token: spelt(tokenizer.decode([token])))
    output = args.output or args.divergence.with_suffix(".html")
    write_atomically(output, page.encode())
    closing({"wrote": output, "rows": f"{len(rows):,}"})


if __name__ == "__main__":
    run(main)
