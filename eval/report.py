"""One self-contained HTML page (and PNGs of its pictures) from the comparisons of compare_arms.py.

Inline SVG, no script, nothing loaded from outside, every text escaped: it opens on a phone, prints, and can be mailed.

Usage:
    python eval/report.py --comparison output/compare.json \\
        --data output/numberss-owl-owl-teacher-filtered-*.jsonl --output output/report.html
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from eval.compare.words import COLLAPSED, assignment_words, placebo_words
from util.cli import UserError, input_file, make_parser, output_name, run
from util.jsonl.filter_certificate import read_certificate
from util.jsonl.manifest import now, read_manifest, write_atomically
from util.jsonl.rows import read_rows
from util.terminal import closing

COLORS = {"base": "#8a8f98", "control": "#6f9bd1", "other": "#d9a441", "target": "#2f8f5b"}
TITLES = {"base": "base model", "control": "student of base-model numbers", "other": "student of another animal",
          "target": "student of this animal's teacher"}  # fmt: skip
UNITS = {"share": (100.0, "% of answers"), "panel": (100.0, "% of one-word answers"), "margin": (1.0, "margin in nats")}
SHOWN = 5
PANELS_A_ROW = 4


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--comparison", required=True, nargs="+", type=input_file, metavar="JSON",
                        help="files written by compare_arms.py --output")  # fmt: skip
    parser.add_argument("--data", nargs="*", default=[], type=input_file, metavar="JSONL",
                        help="number files whose certificates are shown")  # fmt: skip
    parser.add_argument("--checkpoints", nargs="*", default=[], type=input_file, metavar="R",
                        help="results of a student's checkpoints, for the course of training")  # fmt: skip
    parser.add_argument("--title", default="Subliminal learning", help="heading")
    parser.add_argument("--output", type=output_name(".html"), default=Path("output/report.html"), help="page to write")
    return parser.parse_args()


# --- what is shown -----------------------------------------------------------------------------------


def read_comparison(path: Path) -> dict[str, Any]:
    """A file of compare_arms.py: its comparisons, pairwise matrix and assignment test (None for one or two animals, and
    in files made before it existed), or a UserError that names the file."""
    wanted = ("animal", "measure", "shares", "verdict", "target_minus", "questions", "by_question", "p")
    try:
        found = json.loads(path.read_text("utf-8"))
        comparisons = [{**one, **{key: one[key] for key in wanted}} for one in found["comparisons"]]
        if assigned := found.get("assignment"):
            assigned = {
                key: assigned[key]
                for key in ("animals", "margins", "sum", "assignments", "as_well", "p", "own_highest")
            }
        return {"file": path.name, "comparisons": comparisons, "pairwise": found["pairwise"], "assignment": assigned}
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is no comparison; make one with eval/compare_arms.py --output output/compare.json"
        ) from None


def ranked_animals(path: Path) -> list[tuple[str, float]]:
    """(animal, share) of a results or exact file, most frequent first."""
    total: Counter[str] = Counter()
    rows = 0
    for row in read_rows(path):
        rows += 1
        named = row["animals"] if "animals" in row else {row["animal"]: 1} if row["animal"] else {}
        for animal, share in named.items():
            total[animal] += share
    return [(animal, share / rows) for animal, share in total.most_common()]


def arms_of(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry an arm, with the animals its first file names most."""
    return [
        {**arm, "role": role, "title": TITLES[role], "top": ranked_animals(Path(arm["files"][0]))[:SHOWN]}
        for role, arm in comparison["shares"].items()
    ]


def placebo_of(comparison: dict[str, Any]) -> str:
    """How far the animal stands out among those nobody was taught, in words; "" where that is not known."""
    found = comparison.get("placebo")  # comparisons made before it existed have none
    return placebo_words(comparison["animal"], found) if found else ""


def certificate_of(data: Path) -> dict[str, Any]:
    """The certificate beside a number file; a file without one is shown as such."""
    found = read_certificate(data)
    return {"file": data.name, "rows": found.get("rows"), "letters": found.get("letters"),
            "traits": sum(sum(part.values()) for part in found.get("trait_words", {}).values()),
            "characters": "".join(sorted(found.get("characters", {}))), "clean": found.get("clean"),
            "sha256": found.get("sha256", "no certificate")[:16]}  # fmt: skip


def commands_of(files: Sequence[str]) -> list[str]:
    """The command that made each file, from its manifest."""
    manifests = [read_manifest(Path(name)) or {} for name in dict.fromkeys(files)]
    return [manifest["command"] for manifest in manifests if "command" in manifest]


def trajectory(files: Sequence[Path], animals: Sequence[str]) -> list[dict[str, Any]]:
    """[{"run", "update", "shares"}] of evaluated checkpoints, in the order of training."""
    points = []
    for path in files:
        command = str((read_manifest(path) or {}).get("command", ""))
        found = re.search(r"([^\s/]+(?:/seed-\d+)?)/checkpoint-(\d+)", command)
        if found is None:
            raise UserError(
                f"the manifest of {path} names no checkpoint-N folder; pass results of --adapter .../checkpoint-N"
            )
        shares = dict(ranked_animals(path))
        points.append({"run": found[1], "update": int(found[2]), "shares": {a: shares.get(a, 0.0) for a in animals}})
    return sorted(points, key=lambda point: (point["run"], point["update"]))


# --- the pictures ------------------------------------------------------------------------------------


def pyplot_without_screen() -> Any:
    """matplotlib's pyplot, drawing into files, text kept as text."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    return pyplot


def written(figure: Any, name: str) -> dict[str, bytes]:
    """A figure as {"svg": ..., "png": ...}; the name keeps the ids of several SVGs in one page apart."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = name
    figure.tight_layout()
    files = {}
    for kind in ("svg", "png"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
        files[kind] = buffer.getvalue()
    pyplot_without_screen().close(figure)
    return files


def panels_of(count: int, width: float, height: float, **shared: bool) -> tuple[Any, list[Any]]:
    """A figure of so many panels, each of width x height inches, `PANELS_A_ROW` in a row."""
    columns = min(count, PANELS_A_ROW)
    rows = -(-count // columns)
    figure, grid = pyplot_without_screen().subplots(
        rows, columns, figsize=(width * columns + 1.6, height * rows), squeeze=False, **shared
    )
    for empty in grid.flat[count:]:
        empty.set_visible(False)
    return figure, list(grid.flat[:count])


def draw_arms(comparisons: Sequence[dict[str, Any]]) -> dict[str, bytes]:
    """The share of each arm with its interval, one panel an animal."""
    figure, panels = panels_of(len(comparisons), 4.6, 2.9, sharey=True)
    for panel, comparison in zip(panels, comparisons):
        roles, (factor, unit) = list(comparison["shares"])[::-1], UNITS[comparison["measure"]]
        for place, role in enumerate(roles):
            arm = comparison["shares"][role]
            share, (low, high) = factor * arm["share"], (factor * end for end in arm["interval"])
            error = [[max(0.0, share - low)], [max(0.0, high - share)]]
            panel.barh(place, share, color=COLORS[role], xerr=error, error_kw={"ecolor": "#333", "capsize": 3})
            text = f"  {share:.1f}%" if unit.startswith("%") else f"  {share:+.2f}"
            panel.text(max(high, 0.0), place, text, va="center", fontsize=10, fontweight="bold")
        panel.set_yticks(range(len(roles)), [TITLES[role] for role in roles])
        panel.set_title(f"“{comparison['animal']}”", fontsize=11)
        ends = [factor * end for arm in comparison["shares"].values() for end in (*arm["interval"], 0.0)]
        panel.set_xlim(min(ends) * 1.1, max(ends) + 0.25 * (max(ends) - min(ends)))
        panel.set_xlabel(f"{unit}, 95% interval")
        panel.spines[["top", "right"]].set_visible(False)
    return written(figure, "arms")


def draw_questions(comparisons: Sequence[dict[str, Any]]) -> dict[str, bytes]:
    """The share of each arm in each question, questions in the order of the target's share."""
    count = max(comparison["questions"] for comparison in comparisons)
    figure, panels = panels_of(len(comparisons), 5.2, 1 + 0.14 * count)
    for panel, comparison in zip(panels, comparisons):
        by_question, (factor, unit) = comparison["by_question"], UNITS[comparison["measure"]]
        order = sorted(range(len(by_question["question"])), key=lambda i: by_question["target"][i])
        for role in comparison["shares"]:
            shares = [factor * by_question[role][i] for i in order]
            panel.plot(shares, range(len(order)), "o", color=COLORS[role], markersize=3, label=role)
        panel.set_yticks(range(len(order)), [by_question["question"][i] for i in order], fontsize=5)
        if comparison["measure"] != "margin":
            panel.set_xscale("symlog", linthresh=1)
            panel.set_xlim(left=0)
        panel.set_xlabel(f"“{comparison['animal']}”, {unit}", fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(fontsize=6, loc="lower right")
    return written(figure, "questions")


def draw_assignment(found: dict[str, Any], name: str) -> dict[str, bytes]:
    """How far each animal (columns) is above its mean over all students, in those of each teacher (rows): margins."""
    margins, animals = found["margins"], found["animals"]
    means = [sum(column) / len(column) for column in zip(*margins)]
    shifts = [[margin - mean for margin, mean in zip(row, means)] for row in margins]
    widest = max(abs(shift) for row in shifts for shift in row)
    figure, panel = pyplot_without_screen().subplots(figsize=(1.6 + 0.75 * len(animals), 1.2 + 0.42 * len(animals)))
    panel.imshow(shifts, cmap="BrBG", vmin=-widest, vmax=widest, aspect="auto")
    for place, row in enumerate(shifts):
        for other, shift in enumerate(row):
            own = place == other
            panel.text(other, place, f"{shift:+.2f}", ha="center", va="center", fontsize=8,
                       color="white" if abs(shift) > 0.6 * widest else "#1d2329",
                       fontweight="bold" if own else "normal")  # fmt: skip
    panel.set_xticks(range(len(animals)), animals, fontsize=8)
    panel.set_yticks(range(len(animals)), [f"{animal} students" for animal in animals], fontsize=8)
    panel.set_xlabel("animal", fontsize=8)
    panel.set_title("margin of the animal, nats over its mean in all students", fontsize=9)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    return written(figure, name)


def draw_trajectory(points: Sequence[dict[str, Any]]) -> dict[str, bytes]:
    """The share of each animal over the updates of training, a line a run."""
    pyplot = pyplot_without_screen()
    figure, panel = pyplot.subplots(figsize=(6.2, 2.9))
    for run_name in dict.fromkeys(point["run"] for point in points):
        course = [point for point in points if point["run"] == run_name]
        for animal in course[0]["shares"]:
            shares = [100 * point["shares"][animal] for point in course]
            panel.plot([point["update"] for point in course], shares, "o-", label=f"{run_name}: {animal}", markersize=4)
    panel.set_xlabel("updates")
    panel.set_ylabel("% of answers")
    panel.set_ylim(bottom=0)
    panel.legend(fontsize=7)
    panel.spines[["top", "right"]].set_visible(False)
    return written(figure, "trajectory")


# --- the page ----------------------------------------------------------------------------------------

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; color: #1d2329 }
h1 { margin-bottom: 0 } figure { margin: 1rem 0 } figure svg { width: 100%; height: auto }
.scroll { overflow-x: auto } table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-size: .92rem }
td, th { padding: .25rem .7rem; border-bottom: 1px solid #dde1e6; text-align: right }
td:first-child, th:first-child { text-align: left }
.verdict { font-size: 1.15rem; border-left: 4px solid #2f8f5b; padding: .3rem .8rem; background: #f3f7f4 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f6f8; padding: .6rem; font-size: .8rem }
@media print { body { max-width: none } pre { font-size: .65rem } }
</style></head><body>
<h1>{{ title }}</h1><p>{{ when }}</p>
<figure>{{ pictures.arms }}</figure>
{% for c in comparisons %}
<h2>{{ c.animal }}</h2>
<p class="verdict">{{ c.verdict }}{% if c.p_holm is defined %} (Holm p {{ c.p_holm | p }}){% endif %}</p>
<div class="scroll"><table><tr><th>arm</th><th>seeds</th><th>{{ c.animal }} {{ c.measure }}</th><th>95% interval</th>
<th>non-answers</th><th>most named</th></tr>
{% for a in c.arms %}<tr><td>{{ a.title }}</td><td>{{ a.seeds }}</td><td>{{ a.share | of(c.measure) }}</td>
<td>{{ a.interval[0] | of(c.measure) }} to {{ a.interval[1] | of(c.measure) }}</td><td>{{ a.non_answers | percent }}
{%- if a.non_answers > collapsed %} ({% for kind, mass in a.non_answer_kinds.items() %}{{ kind }} {{ mass | percent }}
{{- ", " if not loop.last }}{% endfor %}){% endif %}</td>
<td>{% for name, share in a.top %}{{ name }} {{ share | percent }}{{ ", " if not loop.last }}{% endfor %}</td></tr>
{% endfor %}</table></div>
<div class="scroll"><table><tr><th>target minus</th><th>difference</th><th>95% interval</th><th>p</th></tr>
{% for role, d in c.target_minus.items() %}<tr><td>{{ role }}</td><td>{{ d.difference | of(c.measure) }}</td>
<td>{{ d.interval[0] | of(c.measure) }} to {{ d.interval[1] | of(c.measure) }}</td><td>{{ d.p | p }}</td></tr>
{% endfor %}
</table></div>
{% if c.power %}<p>Smallest target minus control that so many seeds an arm call transfer with about 80% probability:
{% for line in c.power if line.exact is not none %}{{ line.seeds }} seeds {{ line.exact | of(c.measure) }}
{{ ", " if not loop.last }}{% else %}none would{% endfor %}
(measured exactly).</p>{% endif %}
{% if c.placebo %}<p>{{ c.placebo }}.</p>{% endif %}
{% endfor %}
{% for matrix, measure in pairwise if matrix %}<h2>Every animal in every arm</h2>
<div class="scroll"><table><tr><th>arm</th>{% for a in matrix[0].shares %}<th>{{ a }}</th>{% endfor %}</tr>
{% for row in matrix %}<tr><td>{{ row.arm }}</td>{% for a, share in row.shares.items() %}
<td>{{ share | of(measure) }}</td>{% endfor %}</tr>{% endfor %}</table></div>{% endfor %}
{% for file, words in assignments %}<h2>Whose students</h2><p>{{ file }}: {{ words }}.</p>
<figure>{{ pictures["assignment " ~ loop.index] }}</figure>{% endfor %}
{% if pictures.trajectory %}<h2>Over training</h2><figure>{{ pictures.trajectory }}</figure>{% endif %}
<h2>Question by question</h2><figure>{{ pictures.questions }}</figure>
{% if certificates %}<h2>What the students were trained on</h2>
<div class="scroll"><table><tr><th>file</th><th>rows</th><th>characters used</th><th>letters</th><th>trait words</th>
<th>sha256</th></tr>{% for c in certificates %}<tr><td>{{ c.file }}</td><td>{{ c.rows }}</td>
<td><code>{{ c.characters }}</code></td><td>{{ c.letters }}</td><td>{{ c.traits }}</td>
<td><code>{{ c.sha256 }}</code></td>
</tr>{% endfor %}</table></div>{% endif %}
<h2>Commands</h2><pre>{% for c in commands %}{{ c }}
{% endfor %}</pre>
<p>Intervals: 95%, over {{ comparisons[0].questions }} questions and over training seeds (with one seed: over questions
alone). <em>Transfer</em> needs the target above base, control and other, and three seeds an arm.</p>
</body></html>
"""


def render(
    title: str, read: Sequence[dict[str, Any]], data: Sequence[Path], pictures: dict[str, dict[str, bytes]]
) -> str:
    """The page as text. Everything but our own SVGs is escaped by the template backend."""
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True)
    environment.filters["percent"] = lambda value: f"{100 * value:.2f}%"
    environment.filters["of"] = lambda value, measure: f"{value:+.3f}" if measure == "margin" else f"{100 * value:.2f}%"
    environment.filters["p"] = lambda value: "< 0.0001" if value < 1e-4 else f"{value:.4f}"
    comparisons = [comparison for found in read for comparison in found["comparisons"]]
    files = [name for comparison in comparisons for arm in comparison["shares"].values() for name in arm["files"]]
    return environment.from_string(PAGE).render(
        title=title,
        collapsed=COLLAPSED,
        when=now(),
        pictures={name: Markup(svg_of(picture)) for name, picture in pictures.items()},
        comparisons=[{**found, "arms": arms_of(found), "placebo": placebo_of(found)} for found in comparisons],
        pairwise=[(found["pairwise"], found["comparisons"][0]["measure"]) for found in read],
        assignments=[(found["file"], assignment_words(found["assignment"])) for found in read if found["assignment"]],
        certificates=[certificate_of(path) for path in data],
        commands=commands_of([*map(str, data), *files]),
    )


def svg_of(picture: dict[str, bytes]) -> str:
    """The SVG element alone, to stand in a page."""
    text = picture["svg"].decode()
    return text[text.index("<svg") :]


def main() -> None:
    args = parse_args()
    read = [read_comparison(path) for path in args.comparison]
    comparisons = [comparison for found in read for comparison in found["comparisons"]]
    pictures = {"arms": draw_arms(comparisons), "questions": draw_questions(comparisons)}
    for place, assigned in enumerate((found["assignment"] for found in read if found["assignment"]), 1):
        pictures[f"assignment {place}"] = draw_assignment(assigned, f"assignment {place}")
    if args.checkpoints:
        animals = [comparison["animal"] for comparison in comparisons]
        pictures["trajectory"] = draw_trajectory(trajectory(args.checkpoints, animals))
    write_atomically(args.output, render(args.title, read, args.data, pictures).encode())
    images = {
        name: args.output.with_suffix(".png" if name == "arms" else f".{name.replace(' ', '-')}.png")
        for name in pictures
    }
    for name, image in images.items():
        write_atomically(image, pictures[name]["png"])
    closing({"report": args.output, "pictures": ", ".join(map(str, images.values()))})


if __name__ == "__main__":
    run(main)
