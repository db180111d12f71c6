"""Draw the table of known cases: how far the rows moved, how wide they are, and what students took over.

Usage:
    python experiments/data_signal/plot_known_cases.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from eval.data_signal.known_cases import TRANSFER, Case, Rule, fit, left_one_out, read_cases
from eval.save_figures import pyplot_without_screen, written
from util.cli import REPO, make_parser, output_name, run
from util.jsonl.manifest import write_atomically
from util.terminal import closing

COLORS = {"text": "#2f8f5b", "code": "#3c6fb0", "numbers": "#d9a441", "number words": "#a05fb0", "digits": "#b3452c"}
DEFAULT = REPO / "experiments" / "results" / "data_signal" / "known-cases.png"


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--output", type=output_name(".png"), default=DEFAULT, help="picture to write")
    return parser.parse_args()


def draw(cases: Sequence[Case], rule: Rule, correlations: dict[str, float]) -> bytes:
    """The picture: effect against KL and against width."""
    pyplot = pyplot_without_screen()
    figure, panels = pyplot.subplots(1, 2, figsize=(9.6, 3.8), sharey=True)
    for panel, name, label in zip(panels, ("kl", "width"), ("KL(teacher || base), nats a token", "effective tokens")):
        for channel, color in COLORS.items():
            some = [case for case in cases if case.channel == channel]
            panel.scatter([getattr(case, name) for case in some], [case.effect for case in some], color=color,
                          label=channel, s=34, alpha=0.85)  # fmt: skip
        panel.set_xscale("log")
        panel.axvline(getattr(rule, name), color="#8a8f98", linestyle=":")
        panel.axhline(TRANSFER, color="#8a8f98", linewidth=0.8)
        panel.set_xlabel(f"{label} (Spearman {correlations[name]:.2f})")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("own less other students, nats")
    panels[0].legend(frameon=False, fontsize=8)
    return written(figure, "known-cases")["png"]


def main() -> None:
    args = parse_args()
    from scipy.stats import spearmanr

    cases = read_cases()
    rule, right = fit(cases), left_one_out(cases)
    effects = [case.effect for case in cases]
    correlations = {
        name: float(spearmanr([getattr(case, name) for case in cases], effects).statistic) for name in ("kl", "width")
    }
    write_atomically(args.output, draw(cases, rule, correlations))
    closing({
        "cases": len(cases),
        "limits": f"KL {rule.kl:.4f} nats a token, {rule.width:.1f} effective tokens",
        "left one out": f"{sum(right)} of {len(right)} right",
        "wrong": "; ".join(str(case) for case, is_right in zip(cases, right) if not is_right),
        "Spearman": f"KL {correlations['kl']:.2f}, width {correlations['width']:.2f}",
        "picture": args.output,
    })  # fmt: skip


if __name__ == "__main__":
    run(main)
