"""Pages and figures as a reader sees them: opened in a browser on a phone and a laptop, light, dark and printed."""

import pytest
from browser import missing, open_browser, page_problems

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=missing() or "")]


@pytest.fixture(scope="module")
def browser():
    with open_browser() as found:
        yield found


BAD = """<!doctype html><html lang="en"><head><title>x</title></head><body style="margin: 0; background: white">
<p style="font-size: 9px">small</p><p style="color: #bbb">pale</p><table><tr><td style="min-width: 900px">wide</td></tr>
</table><svg role="img" aria-label="x" width="100" viewBox="0 0 200 50"><text y="20" fill="#ccc" font-size="12">thin
</text></svg><img src="x.png" alt="x"></body></html>"""


def test_a_bad_page_is_found_out(browser, tmp_path):
    (tmp_path / "bad.html").write_text(BAD)
    found = "\n".join(page_problems(browser, tmp_path / "bad.html"))
    for problem in ("the page is 90", "'small' is 9.0 px", "'thin' is 6.0 px", "'thin' has contrast 1.6",
                    "color-contrast", "request: file:", "print: cut: TABLE"):  # fmt: skip
        assert problem in found
