"""Write shares, intervals and p-values as text, the same way in every table and page."""

from __future__ import annotations


def percent(value: float) -> str:
    """A share: 0.0123 -> 1.23%."""
    return f"{100 * value:.2f}%"


def percent_with_interval(share: float, low: float, high: float) -> str:
    """A share and its interval: 1.23% (0.90 to 1.60)."""
    return f"{100 * share:.2f}% ({100 * low:.2f} to {100 * high:.2f})"


def p_value(value: float) -> str:
    """A p-value with four decimals, or only a bound if it is very small or above 0.1."""
    return "below 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.1 else "above 0.1"
