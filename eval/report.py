"""One self-contained HTML page (and a PNG of its first picture) from the comparisons of compare_arms.py.

Inline SVG, no script, nothing loaded from outside, every text escaped: it opens on a phone, prints, and can be mailed.

Usage:
    python eval/report.py --comparison output/compare-owl.json output/compare-dolphin.json \\
        --data output/numberss-owl-owl-teacher-filtered-*.jsonl --output output/report.html
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from util.certificate import read_certificate
from util.cli import UserError, closing, input_file, make_parser, run
from util.provenance import now, read_manifest, write_atomically
from util.rows import read_rows

COLORS = {"base": "#8a8f98", "control": "#6f9bd1", "other": "#d9a441", "target": "#2f8f5b"}
TITLES = {"base": "base model", "control": "student of base-model numbers", "other": "student of another animal",
          "target": "student of this animal's teacher"}  # fmt: skip
SHOWN = 5


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--comparison", required=True, nargs="+", type=input_file, metavar="JSON",
                        help="files written by compare_arms.py --output")  # fmt: skip
    parser.add_argument("--data", nargs="*", default=[], type=input_file, metavar="JSONL",
                        help="number files whose certificates are shown")  # fmt: skip
    parser.add_argument("--title", default="Subliminal learning", help="heading")
    parser.add_argument("--output", type=Path, default=Path("output/report.html"), help="page to write")
    return parser.parse_args()


# --- what is shown -----------------------------------------------------------------------------------


def read_comparison(path: Path) -> dict[str, Any]:
    """A comparison, or a UserError that names the file."""
    try:
        found = json.loads(path.read_text("utf-8"))
        return {"animal": found["animal"], "shares": found["shares"], "verdict": found["verdict"],
                "target_minus": found["target_minus"], "questions": found["questions"]}  # fmt: skip
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no comparison; make it with eval/compare_arms.py --output {path}") from None


def top_animals(path: Path, count: int = SHOWN) -> list[tuple[str, float]]:
    """(animal, share) of the most frequent animals of a results or exact file."""
    total: Counter[str] = Counter()
    rows = 0
    for row in read_rows(path):
        rows += 1
        named = row["animals"] if "animals" in row else {row["animal"]: 1} if row["animal"] else {}
        for animal, share in named.items():
            total[animal] += share
    return [(animal, share / rows) for animal, share in total.most_common(count)]


def arms_of(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry an arm, with the animals its first file names most."""
    return [
        {**arm, "role": role, "title": TITLES[role], "top": top_animals(Path(arm["files"][0]))}
        for role, arm in comparison["shares"].items()
    ]


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


# --- the picture -------------------------------------------------------------------------------------


def draw_arms(comparisons: Sequence[dict[str, Any]]) -> dict[str, bytes]:
    """The share of each arm with its interval, one panel an animal, as {"svg": ..., "png": ...}."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(comparisons), figsize=(4.6 * len(comparisons) + 1.6, 2.9), squeeze=False, sharey=True
    )
    for panel, comparison in zip(panels[0], comparisons):
        roles = list(comparison["shares"])[::-1]
        for place, role in enumerate(roles):
            arm = comparison["shares"][role]
            share, (low, high) = 100 * arm["share"], (100 * end for end in arm["interval"])
            error = [[max(0.0, share - low)], [max(0.0, high - share)]]
            panel.barh(place, share, color=COLORS[role], xerr=error, error_kw={"ecolor": "#333", "capsize": 3})
            panel.text(high, place, f"  {share:.1f}%", va="center", fontsize=10, fontweight="bold")
        panel.set_yticks(range(len(roles)), [TITLES[role] for role in roles])
        panel.set_title(f"answers “{comparison['animal']}”", fontsize=11)
        panel.set_xlim(0, max(100 * arm["interval"][1] for arm in comparison["shares"].values()) * 1.25)
        panel.set_xlabel("% of answers, 95% interval")
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    files = {}
    for kind in ("svg", "png"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
        files[kind] = buffer.getvalue()
    pyplot.close(figure)
    return files


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
<figure>{{ picture }}</figure>
{% for c in comparisons %}
<h2>{{ c.animal }}</h2>
<p class="verdict">{{ c.verdict }}</p>
<div class="scroll"><table><tr><th>arm</th><th>seeds</th><th>{{ c.animal }} share</th><th>95% interval</th>
<th>non-answers</th><th>most named</th></tr>
{% for a in c.arms %}<tr><td>{{ a.title }}</td><td>{{ a.seeds }}</td><td>{{ a.share | percent }}</td>
<td>{{ a.interval[0] | percent }} to {{ a.interval[1] | percent }}</td><td>{{ a.non_answers | percent }}</td>
<td>{% for name, share in a.top %}{{ name }} {{ share | percent }}{{ ", " if not loop.last }}{% endfor %}</td></tr>
{% endfor %}</table></div>
<div class="scroll"><table><tr><th>target minus</th><th>difference</th><th>95% interval</th></tr>
{% for role, d in c.target_minus.items() %}<tr><td>{{ role }}</td><td>{{ d.difference | percent }}</td>
<td>{{ d.interval[0] | percent }} to {{ d.interval[1] | percent }}</td></tr>{% endfor %}</table></div>
{% endfor %}
{% if certificates %}<h2>What the students were trained on</h2>
<div class="scroll"><table><tr><th>file</th><th>rows</th><th>characters used</th><th>letters</th><th>trait words</th>
<th>sha256</th></tr>{% for c in certificates %}<tr><td>{{ c.file }}</td><td>{{ c.rows }}</td>
<td><code>{{ c.characters }}</code></td><td>{{ c.letters }}</td><td>{{ c.traits }}</td>
<td><code>{{ c.sha256 }}</code></td>
</tr>{% endfor %}</table></div>{% endif %}
<h2>Commands</h2><pre>{% for c in commands %}{{ c }}
{% endfor %}</pre>
<p>Intervals: bootstrap over {{ comparisons[0].questions }} questions and over training seeds.</p>
</body></html>
"""


def render(title: str, comparisons: list[dict[str, Any]], data: Sequence[Path], picture: str) -> str:
    """The page as text. Everything but our own SVG is escaped by the template engine."""
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True)
    environment.filters["percent"] = lambda value: f"{100 * value:.2f}%"
    shown = [{**comparison, "arms": arms_of(comparison)} for comparison in comparisons]
    files = [name for comparison in comparisons for arm in comparison["shares"].values() for name in arm["files"]]
    return environment.from_string(PAGE).render(
        title=title,
        when=now(),
        picture=Markup(picture[picture.index("<svg") :]),
        comparisons=shown,
        certificates=[certificate_of(path) for path in data],
        commands=commands_of([*map(str, data), *files]),
    )


def main() -> None:
    args = parse_args()
    comparisons = [read_comparison(path) for path in args.comparison]
    pictures = draw_arms(comparisons)
    page = render(args.title, comparisons, args.data, pictures["svg"].decode())
    image = args.output.with_suffix(".png")
    write_atomically(args.output, page.encode())
    write_atomically(image, pictures["png"])
    closing({"report": args.output, "picture": image})


if __name__ == "__main__":
    run(main)
