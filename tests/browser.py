"""Open pages of the suite in a real browser: Playwright with a Chromium of the machine, and axe-core.

`page_problems` looks at a page at three widths, light and dark, and as it is printed, and returns what is wrong with it
in words.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

WIDTHS = (360, 768, 1280)
LEAST_FONT = 10  # pixels as shown
PRINTED = 703  # CSS pixels: A4 less the margins of style.css


def chromium() -> str | None:
    """The path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def missing() -> str | None:
    """What is missing to open pages, in words; None if nothing is."""
    wanted = [name for name in ("playwright", "axe_playwright_python") if find_spec(name) is None]
    if wanted:
        return f"pages are not opened: {', '.join(wanted)} not installed; run make setup, then .ci/run"
    return None if chromium() else "pages are not opened: no Chromium here; on Debian and Ubuntu: apt install chromium"


@contextmanager
def open_browser() -> Iterator[Any]:
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


# Every text that is shown: its size in pixels, and for SVG its contrast to the page (axe-core leaves SVG out).
TEXTS = """() => {
  const channel = value => { value /= 255; return value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4 };
  const light = rgb => 0.2126 * channel(rgb[0]) + 0.7152 * channel(rgb[1]) + 0.0722 * channel(rgb[2]);
  const numbers = color => color.match(/[0-9.]+/g).map(Number);
  const paper = light(numbers(getComputedStyle(document.body).backgroundColor));
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!text || ["STYLE", "SCRIPT"].includes(element.tagName) || !element.getClientRects().length) continue;
    const style = getComputedStyle(element), svg = element.closest("text");
    const scale = svg ? Math.hypot(svg.getScreenCTM().a, svg.getScreenCTM().b) : 1;
    const one = {text: text.slice(0, 30), size: parseFloat(style.fontSize) * scale, contrast: 21};
    if (svg && !svg.closest("[id^=on-cell]")) {
      const ink = light(numbers(style.fill));
      one.contrast = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    }
    found.push(one);
  }
  return found;
}"""
# What reaches beyond the page: whole elements, and what a container that cannot scroll in print would cut.
CUT = """width => [...document.querySelectorAll("table, figure, pre, .scroll")].filter(
  one => one.getClientRects().length && (one.getBoundingClientRect().right > width + 1
  || one.scrollWidth > one.clientWidth + 1)).map(one => one.tagName + " " + one.innerText.slice(0, 40))"""
# Looking at every cell of 36 animals by 50 questions takes minutes, and axe-core a second for each hundred cells: rows
# that are alike are looked at in their first ones. What is folded twice is pruned first.
PRUNE_FOLDED = "() => document.querySelectorAll('details details tr:nth-child(n+9)').forEach(one => one.remove())"
PRUNE = "() => document.querySelectorAll('tr:nth-child(n+6), .row:nth-of-type(n+9)').forEach(one => one.remove())"
OPEN_ALL = "() => document.querySelectorAll('details').forEach(one => one.open = true)"


def page_problems(browser: Any, path: Path, schemes: tuple[str, ...] = ("light", "dark")) -> list[str]:
    """What is wrong with a page, one line each: at every width, light and dark, printed."""
    problems: list[str] = []
    page = browser.new_page()
    page.on("console", lambda said: problems.append(f"console: {said.text}") if said.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.evaluate(OPEN_ALL)
    page.evaluate(PRUNE_FOLDED)
    for scheme in schemes:
        page.emulate_media(color_scheme=scheme)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            problems += [f"{width} px, {scheme}: {one}" for one in screen_problems(page, width)]
    problems += print_problems(page)
    page.emulate_media(media="screen")
    page.evaluate(PRUNE)
    for scheme in schemes:
        page.emulate_media(color_scheme=scheme)
        problems += [f"{scheme}: {one}" for one in accessibility_problems(page)]
    page.close()
    return problems + [f"request: {url}" for url in asked[1:]]


def print_problems(page: Any) -> list[str]:
    """What the printed page cuts."""
    page.emulate_media(media="print", color_scheme="light")
    page.set_viewport_size({"width": PRINTED, "height": 1000})
    problems = [f"print: cut: {one}" for one in page.evaluate(CUT, PRINTED)]
    if not page.pdf(prefer_css_page_size=True).startswith(b"%PDF"):
        problems.append("print: no PDF")
    return problems


def screen_problems(page: Any, width: int) -> list[str]:
    """Overflow, small texts, and texts of figures that are hard to see."""
    wide = page.evaluate("document.documentElement.scrollWidth")
    problems = [f"the page is {wide} px wide"] if wide > width else []
    texts = page.evaluate(TEXTS)
    problems += [f"{one['text']!r} is {one['size']:.1f} px" for one in texts if one["size"] < LEAST_FONT - 0.05]
    return problems + [f"{one['text']!r} has contrast {one['contrast']:.1f}" for one in texts if one["contrast"] < 4.5]


def accessibility_problems(page: Any) -> list[str]:
    """What axe-core finds against WCAG 2 A and AA, contrast included."""
    from axe_playwright_python.sync_playwright import Axe

    rules = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa"]}, "resultTypes": ["violations"]}
    found = Axe().run(page, options=rules).response["violations"]
    return [f"{one['id']}: {node['html'][:80]}" for one in found for node in one["nodes"][:3]]
