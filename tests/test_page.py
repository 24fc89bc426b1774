"""The page in headless Chromium: quiet console, no request, readable on a desk and on a telephone, by day and by night."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_probes
import fake_run
import pytest

from pivot.report import page

pytestmark = pytest.mark.browser

WIDTHS = (1280, 390)
THEMES = ("light", "dark")

# Every text on the page: how large it is drawn, and its contrast with what it stands on (WCAG 2).
TEXTS = """
const light = c => { const [r, g, b] = c.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                     return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const parse = c => c.match(/[\\d.]+/g).map(Number);
const under = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] !== 0) return c; } };
const found = [];
for (const e of document.querySelectorAll('body *')) {
  const says = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  if (!says || e.closest('title, .reading') || !e.getClientRects().length) continue;
  const style = getComputedStyle(e), drawn = e.ownerSVGElement;
  const scale = drawn ? drawn.getBoundingClientRect().width / drawn.viewBox.baseVal.width : 1;
  const [a, b] = [light(parse(drawn ? style.fill : style.color)), light(under(e))];
  found.push([e.textContent.trim().slice(0, 40), parseFloat(style.fontSize) * scale, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
}
return found;
"""
FETCHED = "return performance.getEntriesByType('resource').map(e => e.name).filter(name => !name.startsWith('data:'))"
OVERFLOWING = """
const wide = document.documentElement.clientWidth;
return [document.documentElement.scrollWidth - wide, ...[...document.querySelectorAll('body *')]
  .filter(e => !e.closest('.scroll, pre, svg') && e.getBoundingClientRect().right > wide + 1).map(e => e.outerHTML.slice(0, 80))];
"""


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arms of every kind, one response, two, and their own; as many as there are tones."""
    arms = ("original", "sft", "dpo", "grpo", "ppo", "mpo", "kto", "orpo")
    return page.write(fake_run.make(tmp_path_factory.mktemp("honest") / "demo", arms=arms, size=24))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few arms, and everything that shows how encoders see."""
    return page.write(fake_run.make(tmp_path_factory.mktemp("seen") / "demo", size=24, probes=tuple(fake_probes.MAKERS)))


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same under attack, and without the policy that would stop what got through."""
    written = page.write(fake_run.evil(tmp_path_factory.mktemp("evil") / "demo"))
    text = written.read_text(encoding="utf-8")
    assert "Content-Security-Policy" in text
    written.write_text(text.replace("Content-Security-Policy", "X-None"), encoding="utf-8")
    return written


def visit(browser: Any, file: Path, width: int, theme: str) -> list[str]:
    """Open the page and return what its loading asked the network for."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]})
    browser.get_log("performance")
    browser.get(file.as_uri())
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


@pytest.mark.parametrize("which", ["honest", "seen", "evil"])
def test_the_page_is_quiet_and_alone_and_fits(browser: Any, request: pytest.FixtureRequest, which: str) -> None:
    file = request.getfixturevalue(which)
    for width in WIDTHS:
        asked = visit(browser, file, width, "light")
        assert [url for url in asked if not url.startswith("data:image/png;base64,")] == [file.as_uri()]
        assert browser.execute_script(FETCHED) == []
        assert browser.get_log("browser") == []
        assert browser.execute_script(OVERFLOWING) == [0]
    assert browser.execute_script("return document.images.length") > 5
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.execute_script("return document.querySelectorAll('script, iframe, object, [onload], [onerror], #evil').length") == 0


@pytest.mark.parametrize("theme", THEMES)
def test_every_text_is_large_and_clear_enough(browser: Any, honest: Path, seen: Path, theme: str) -> None:
    grounds = set()
    for file, width in ((honest, 1280), *((seen, width) for width in WIDTHS)):
        visit(browser, file, width, theme)
        texts = browser.execute_script(TEXTS)
        assert len(texts) > 500
        assert [text for text in texts if text[1] < 9] == []
        assert [text for text in texts if text[2] < 4.5] == []
        grounds.add(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    (ground,) = grounds
    assert (sum(int(part) for part in ground[4:-1].split(",")) > 384) == (theme == "light")


def test_pointing_at_a_curve_shows_its_values(browser: Any, honest: Path) -> None:
    from selenium.webdriver import ActionChains

    visit(browser, honest, 1280, "light")
    readings = browser.find_elements("css selector", "#curves svg .reading")
    reading = readings[len(readings) // 2]
    shown = [one.value_of_css_property("visibility") for one in reading.find_elements("css selector", "text")]
    assert set(shown) == {"hidden"}
    ActionChains(browser).scroll_to_element(reading).move_to_element(reading.find_element("css selector", ".hit")).perform()
    texts = reading.find_elements("css selector", "text")
    assert {one.value_of_css_property("visibility") for one in texts} == {"visible"} and texts[0].text.startswith("step ")


def test_wide_tables_scroll_in_a_box_of_their_own(browser: Any, honest: Path) -> None:
    visit(browser, honest, 390, "light")
    boxes = browser.execute_script("return [...document.querySelectorAll('.scroll')].map(e => [e.scrollWidth, e.clientWidth])")
    assert any(inside > outside for inside, outside in boxes) and all(outside <= 390 for _, outside in boxes)


def test_pictures_of_items_are_drawn_whole(browser: Any, seen: Path) -> None:
    """Cells that use another one's picture have it, in the picture's own shape."""
    visit(browser, seen, 1280, "dark")
    boxes = browser.execute_script("return [...document.querySelectorAll('svg.map use')].map(e => [e.getBBox().width, e.getBBox().height])")
    shown = fake_probes.SHOWN
    assert len(boxes) == shown * (1 + 3) + shown * 2 and {tuple(box) for box in boxes} == {(100, 100)}


def test_every_entry_of_the_contents_leads_somewhere(browser: Any, honest: Path) -> None:
    visit(browser, honest, 1280, "light")
    ids = browser.execute_script("return [...document.querySelectorAll('nav a')].map(a => document.querySelector(a.hash)?.tagName)")
    assert len(ids) > 6 and set(ids) == {"SECTION"}
