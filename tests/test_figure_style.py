"""The figures: text that can be read on a phone, colours that can be told apart."""

import itertools

import pytest

from util.pages.figure_style import ARMS, DARK, FONT, NARROW, PAPER, SERIES, STYLE, TITLE_FONT

PHONE = 328  # CSS pixels: a screen of 360 less the page's margins
# What people with the two common forms of colour blindness see, for linear RGB (Machado et al. 2009, severity 1).
BLINDNESS = {
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
}  # fmt: skip


def linear(color):
    values = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]


def light(color):
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear(color)))


def contrast(one, other):
    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def lab(color, seen):
    """CIELAB of a colour as it is seen."""
    rgb = [max(0.0, min(1.0, sum(a * b for a, b in zip(row, linear(color))))) for row in seen]
    to_xyz = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [sum(a * b for a, b in zip(row, rgb)) / white for row, white in zip(to_xyz, (0.9505, 1, 1.089))]
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def test_text_is_at_least_10_px_on_a_phone():
    sizes = [value for name, value in STYLE.items() if name.endswith("size") and name != "lines.markersize"]
    assert min(*sizes, FONT, TITLE_FONT) * PHONE / (NARROW * 72) >= 10


def test_every_colour_can_be_read_on_a_light_and_on_a_dark_page():
    for look in (*ARMS.values(), *SERIES):
        assert contrast(look.color, PAPER) >= 4.5, look
        assert contrast(DARK[look.color], DARK[PAPER]) >= 4.5, look


@pytest.mark.parametrize("seen", BLINDNESS)
def test_the_arms_can_be_told_apart_by_colour_and_by_mark(seen):
    for one, other in itertools.combinations(ARMS.values(), 2):
        apart = sum((a - b) ** 2 for a, b in zip(*(lab(look.color, BLINDNESS[seen]) for look in (one, other)))) ** 0.5
        assert apart > 12, f"{one.title} and {other.title}: {apart:.0f}"
    assert len({look.mark for look in ARMS.values()}) == len(ARMS)
    assert len({look.mark for look in SERIES}) == len({look.color for look in SERIES}) == len(SERIES)
