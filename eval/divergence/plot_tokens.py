"""The figures of divergence_report.py: divergence tokens by row and by position, and distance from the base model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from eval.divergence.token_summary import TokenSummary
from eval.divergence.which_tokens_diverge import definitions_in
from util.jsonl.divergence_row import of_answer
from util.jsonl.rows import Row
from util.pages.figure_style import SERIES, Figure, Look, key_above, new_panels

LOOKS = dict(zip(("schrodi", "pair", "gap"), SERIES))


def density(row: Row) -> float:
    """How rich a row is: its divergence tokens, summed over the definitions; without a teacher, its mean detector."""
    named = definitions_in(row)
    if named:
        return float(sum(sum(of_answer(row, row[name])) for name in named))
    scores = of_answer(row, row["detector"])
    return sum(scores) / max(1, len(scores))


def token_figures(rows: Sequence[Row], found: TokenSummary) -> list[Figure]:
    """The figures that the rows have data for."""
    if not found.definitions:
        mean = sum(map(density, rows)) / len(rows)
        title = f"The student favours the tokens of a row by {mean:+.3f} nats each, on average"
        return [Figure(lambda width: draw_detector(rows, width), title,
                       "Histogram over rows of the mean of log p(student) - log p(base).")]  # fmt: skip
    most = max(found.definitions, key=lambda name: found.definitions[name].rows_with_any)
    with_any = found.definitions[most].rows_with_any
    kl = [mean_kl(row) for row in rows]
    by_position = found.definitions[most].by_position
    place = by_position.index(max(by_position))
    return [
        Figure(lambda width: draw_counts(rows, width), f"{with_any:.0%} of the rows have a {most} token or more",
               "Share of the rows with so many divergence tokens, by definition."),
        Figure(lambda width: draw_kl(kl, width), f"A row is {sum(kl) / len(kl):.3f} nats a token from the base model,"
               " on average", "Histogram over rows of the mean KL(teacher || base) of the answer's tokens."),
        Figure(lambda width: draw_positions(found, width), f"Most {most} tokens are at position {place}:"
               f" {max(by_position):.1%} of the tokens there", "Share of divergence tokens by position in the answer."),
    ]  # fmt: skip


def mean_kl(row: Row) -> float:
    """Mean KL(teacher || base) of a row's answer, nats per token."""
    values = of_answer(row, row["kl"])
    return sum(values) / max(1, len(values))


def name_definitions(panel: Any, names: Sequence[str]) -> None:
    """Name the definitions above a panel, each in its colour."""
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], marker=look.mark, linestyle="", color=look.color) for look in looks_of(names)]
    key_above(panel, list(zip(marks, names)), len(names))


def looks_of(names: Sequence[str]) -> list[Look]:
    return [LOOKS[name] for name in names]


def draw_counts(rows: Sequence[Row], width: float) -> Any:
    """Share of the rows by their number of divergence tokens, one line a definition."""
    figure, (panel,) = new_panels(width, [2.8])
    names = definitions_in(rows[0])
    for name, look in zip(names, looks_of(names)):
        counts = Counter(sum(of_answer(row, row[name])) for row in rows)
        shares = [100 * counts[count] / len(rows) for count in range(max(counts) + 1)]
        panel.plot(range(len(shares)), shares, marker=look.mark, color=look.color)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.set_xlabel("divergence tokens in a row")
    panel.set_ylabel("% of rows")
    name_definitions(panel, names)
    return figure


def draw_histogram(values: Sequence[float], label: str, width: float) -> Any:
    figure, (panel,) = new_panels(width, [2.4])
    panel.hist(values, bins=40, weights=[100 / len(values)] * len(values), color=SERIES[1].color)
    panel.set_xlabel(label)
    panel.set_ylabel("% of rows")
    return figure


def draw_detector(rows: Sequence[Row], width: float) -> Any:
    return draw_histogram([density(row) for row in rows], "mean of log p(student) - log p(base), nats", width)


def draw_kl(means: Sequence[float], width: float) -> Any:
    return draw_histogram(means, "mean KL(teacher || base), nats per token", width)


def draw_positions(found: TokenSummary, width: float) -> Any:
    """Fraction of divergence tokens by position in the answer, one line a definition."""
    figure, (panel,) = new_panels(width, [2.8])
    for name, by in found.definitions.items():
        values = [100 * value for value in by.by_position]
        panel.plot(values, marker=LOOKS[name].mark, color=LOOKS[name].color)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.set_xlabel("position in the answer, tokens")
    panel.set_ylabel("% divergence tokens")
    panel.set_ylim(bottom=0)
    name_definitions(panel, list(found.definitions))
    return figure
