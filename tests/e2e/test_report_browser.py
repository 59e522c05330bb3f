"""The page in a real browser: silent, sealed, and whole on a phone and a desktop, light and dark."""

import importlib.util
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sordino.report import Excerpt, render_html, sides
from sordino.report.beside import render_beside

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--hide-scrollbars")  # fmt: skip
VIEWS = [(width, scheme) for width in (380, 1280) for scheme in ("light", "dark")]

# Elements that stick out of the window, and texts that stick out of their picture.
STICKING_OUT = """
const width = document.documentElement.clientWidth, found = [];
for (const one of document.body.querySelectorAll('*:not(.skip):not(svg *)')) {
  const box = one.getBoundingClientRect(), hidden = getComputedStyle(one.closest('thead') || one).clipPath;
  if (hidden === 'none' && box.width && (box.left < -0.5 || box.right > width + 0.5))
    found.push(one.tagName + '.' + one.className + ' ' + box.left + '..' + box.right);
}
for (const one of document.querySelectorAll('svg.chart text')) {
  const box = one.getBoundingClientRect(), frame = one.ownerSVGElement.getBoundingClientRect();
  if (box.left < frame.left - 1 || box.right > frame.right + 1
      || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
    found.push('text ' + one.textContent);
}
return found;
"""
# The lowest WCAG contrast ratio of any text with its background, and the text that has it.
CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
function channels(color) {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
  return canvas.getImageData(0, 0, 1, 1).data;
}
function luminance(color) {
  const [r, g, b] = [...channels(color)].slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function behind(one) {
  for (let at = one; at; at = at.parentElement) {
    const color = getComputedStyle(at).backgroundColor;
    if (channels(color)[3] > 0) return color;
  }
  return 'white';
}
let worst = [21, ''];
const walk = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const one = walk.currentNode.parentElement, words = walk.currentNode.textContent.trim();
  if (!words || one.closest('title, desc')) continue;
  const style = getComputedStyle(one), inside = one.closest('svg');
  const both = [luminance(inside ? style.fill : style.color), luminance(behind(inside || one))];
  const [a, b] = both.sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < worst[0]) worst = [ratio, words];
}
return worst;
"""


def _fixture():
    path = Path(__file__).parents[1] / "unit" / "report_fixture.py"
    spec = importlib.util.spec_from_file_location("report_fixture", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("report_fixture", module)
    spec.loader.exec_module(module)
    return module


def _long_and_hostile(fixture):
    """The report with unbroken and malicious strings wherever a stranger's text may stand."""
    long, bad = (
        "w" * 400,
        "<img src=https://example.invalid/x onerror=document.title=1><script>document.title=2</script>",
    )
    report, text = fixture.report(), f"{long} {bad}"
    odd = replace(report.attempts[0], summary=text, paper=text, access=long, parameters={long: long}, notes=(text,))
    report = replace(
        report,
        run=long,
        verdict=replace(report.verdict, headline=text, reasons=(text,)),
        threat_model={long: text},
        attempts=(odd, *report.attempts[1:]),
        claims=(replace(report.claims[0], statement=long, evidence=text),),
        gates=(replace(report.gates[0], name=long, question=long, finding=text),),
        requirements=(replace(report.requirements[0], text=long, finding=long),),
        untested=(long, bad),
        notices=(replace(report.notices[0], kind=long, message=text),),
        provenance={long: long},
        counts={long: 10**15},
        metrics={**report.metrics, long: report.metrics["membership.auc"]},
    )
    card = replace(fixture.card(), config={long: {long: [long, bad]}})
    return render_html(report, card, [Excerpt(record_id=text, prefix=long, suffix=text, base_hit=False)], reveal=True)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    fixture, folder = _fixture(), tmp_path_factory.mktemp("pages")
    texts = {
        state: render_html(fixture.report(state), fixture.card(), fixture.excerpts())
        for state in ("leaks", "no leak found", "inconclusive", "invalid split")
    }
    texts["hostile"] = _long_and_hostile(fixture)
    texts["beside"] = render_beside(sides(fixture.compared(2)))
    texts["beside, many"] = render_beside(sides(fixture.compared(5)))
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (CHROMIUM.exists() and DRIVER.exists()):
        missing = f"{CHROMIUM} and {DRIVER} are needed to look at a page: apt-get install chromium chromium-driver"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # The driver is named, so that Selenium never goes looking for one on the network.
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


def _open(browser, page, width, scheme):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(page.as_uri())


def _requests(browser):
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith("data:")]


# Where things stand does not depend on their colours: both are looked at always, but not on both screens.
@pytest.mark.parametrize(
    ("width", "scheme"),
    [pytest.param(*v, marks=() if v in ((380, "light"), (1280, "dark")) else pytest.mark.slow) for v in VIEWS],
)
@pytest.mark.parametrize(
    "name", ["leaks", "no leak found", "inconclusive", "invalid split", "hostile", "beside", "beside, many"]
)
def test_the_page_is_silent_sealed_and_whole(browser, pages, name, width, scheme):
    page = pages / f"{name}.html"
    _open(browser, page, width, scheme)
    wide, seen = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert browser.get_log("browser") == []
    assert _requests(browser) == [page.as_uri()]
    assert browser.title.startswith("Privacy audit of")
    assert wide <= seen == width
    assert browser.execute_script(STICKING_OUT) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["leaks", "beside, many"])
def test_every_text_has_contrast(browser, pages, name, scheme):
    _open(browser, pages / f"{name}.html", 1280, scheme)
    ratio, words = browser.execute_script(CONTRAST)
    assert ratio >= 4.5, words


def test_dark_and_light_recolour_page_and_pictures(browser, pages):
    style = "return getComputedStyle(document.querySelector(arguments[0])).getPropertyValue(arguments[1])"
    found = {}
    for scheme in ("light", "dark"):
        _open(browser, pages / "leaks.html", 1280, scheme)
        wanted = (("body", "background-color"), ("#attacks svg.chart [stroke='var(--accent)']", "stroke"))
        found[scheme] = [browser.execute_script(style, *one) for one in wanted]
    assert all(a != b for a, b in zip(found["light"], found["dark"], strict=True))
    assert "none" not in found["light"] + found["dark"], "a picture without its colour"


def test_the_keyboard_reaches_the_verdict_first(browser, pages):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    _open(browser, pages / "leaks.html", 380, "light")
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    first = browser.switch_to.active_element
    assert first.text == "Skip to the verdict" and first.rect["x"] >= 0


def test_the_page_prints(browser, pages):
    _open(browser, pages / "leaks.html", 1280, "dark")
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True, "preferCSSPageSize": True})
    assert len(printed["data"]) > 50_000
    media = {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    color, signoff = browser.execute_script(
        "const signoff = document.querySelector('.signoff');"
        "return [getComputedStyle(document.body).color, getComputedStyle(signoff).display]"
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert color == "rgb(27, 30, 35)", "paper is white whatever the reader's screen prefers"
    assert signoff == "grid"
