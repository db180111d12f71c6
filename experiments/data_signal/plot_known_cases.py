"""Draw the table of known cases: how far the rows moved, how wide they are, and what students took over.

Usage:
    python experiments/data_signal/plot_known_cases.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from eval.data_signal.known_cases import TRANSFER, Case, Rule, left_one_out, middles, read_cases, rule_of, wrong
from util.cli import REPO, make_parser, output_name, run
from util.jsonl.manifest import write_atomically
from util.pages.figure_style import MUTED, SERIES, Figure, key_above, new_panels
from util.terminal import closing

LOOKS = dict(zip(("text", "code", "numbers", "number words", "digits"), SERIES))
TICKS = {"kl": (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3), "width": (10, 30, 100, 300, 1000)}
DEFAULT = REPO / "experiments" / "results" / "data_signal" / "known-cases.png"


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--output", type=output_name(".png"), default=DEFAULT, help="picture to write")
    return parser.parse_args()


def draw(cases: Sequence[Case], rule: Rule, correlations: dict[str, float], width: float) -> Any:
    """The picture: effect against KL and against width."""
    figure, panels = new_panels(width, [2.9, 2.5])
    for panel, name, axis in zip(panels, ("kl", "width"), ("KL(teacher || base), nats a token", "effective tokens")):
        for channel, look in LOOKS.items():
            some = [case for case in cases if case.channel == channel]
            panel.plot([getattr(case, name) for case in some], [case.effect for case in some], look.mark,
                       color=look.color, label=channel)  # fmt: skip
        panel.set_xscale("log")
        panel.set_xticks(TICKS[name], [f"{tick:g}" for tick in TICKS[name]])
        panel.minorticks_off()
        panel.axvline(getattr(rule, name), color=MUTED, linestyle=":")
        panel.axhline(TRANSFER, color=MUTED, linewidth=0.8)
        panel.set_xlabel(f"{axis} (Spearman {correlations[name]:.2f})")
        panel.set_ylabel("own less others, nats")
    key_above(panels[0], [(line, line.get_label()) for line in panels[0].get_lines()[: len(LOOKS)]], 3)
    return figure


def right_by_kl(cases: Sequence[Case]) -> int:
    """How many cases a limit of KL alone judges rightly, each by the limit of the others."""
    right = 0
    for place, case in enumerate(cases):
        others = [*cases[:place], *cases[place + 1 :]]
        rules = (Rule(limit, 0.0) for limit in middles(one.kl for one in others))
        right += not wrong(min(rules, key=lambda rule: (wrong(rule, others), -rule.kl)), [case])
    return right


def main() -> None:
    args = parse_args()
    from scipy.stats import spearmanr

    cases = read_cases()
    rule, right = rule_of(cases, tiny=False), left_one_out(cases)
    effects = [case.effect for case in cases]
    correlations = {
        name: float(spearmanr([getattr(case, name) for case in cases], effects).statistic) for name in ("kl", "width")
    }
    title = "What rows passed on, by how far they move and how wide they are"
    picture = Figure(lambda width: draw(cases, rule, correlations, width), title, "One point is one kind of rows.")
    write_atomically(args.output, picture.png())
    closing({
        "wrote": args.output,
        "limits": f"KL {rule.kl:.4f} nats a token, {rule.width:.1f} effective tokens (tiny models: any width)",
        "left one out": f"{sum(right)} of {len(right)} right, wrong: "
                        + ("; ".join(str(case) for case, is_right in zip(cases, right) if not is_right) or "none"),
        "KL alone": f"{right_by_kl(cases)} of {len(cases)} right with each left out",
        "Spearman": f"KL {correlations['kl']:.2f}, width {correlations['width']:.2f}",
    })  # fmt: skip


if __name__ == "__main__":
    run(main)
