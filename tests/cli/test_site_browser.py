"""The documentation as a site, opened from a disk in Chromium: it asks nobody for anything, and is found, read and
numbered."""

import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.browser import TIMEOUT, Browser
from tests.cli.test_report_browser import CONTRAST, WIDTHS

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
PAGES = ("index", "tutorial", "how-it-works", "configuration", "limits", "results", "formats", "slurm")
OF_THE_THEME = ("Skip to content", "Made with", "Material for MkDocs")  # words on grounds that the check cannot see
SEARCH = """
(() => {
  const field = document.querySelector(".md-search__input");
  field.focus();
  field.value = "WORD";
  field.dispatchEvent(new Event("input", {bubbles: true}));
  field.dispatchEvent(new Event("keyup", {bubbles: true}));
})()
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    assert find_spec("mkdocs"), "these tests build the site: `make site` installs what it needs"
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    subprocess.run(words, cwd=ROOT, check=True, timeout=300)
    return folder


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path / "profile") as found:
        nothing = {"latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        found.send("Network.emulateNetworkConditions", offline=True, **nothing)
        yield found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_fit_are_legible_and_keep_to_themselves(browser, site, dark):
    for name in PAGES:
        for width in WIDTHS:
            browser.open(site / f"{name}.html", width, dark=dark)
            assert browser.of("document.documentElement.scrollWidth") <= width, (name, width)
            weak = [each for each in browser.of(CONTRAST) if each[0].strip().split("\n")[0] not in OF_THE_THEME]
            assert weak == [], (name, width)
            assert browser.complaints == []
            assert [each for each in browser.requests if not each.startswith(("file:", "data:"))] == []
    assert browser.of("document.body.dataset.mdColorScheme") == ("slate" if dark else "default")


def test_it_is_dark_or_light_as_the_system_is_now(browser, site):
    schemes = []
    for dark in (False, True, False):
        browser.open(site / "index.html", 1280, dark=dark)
        schemes.append(browser.of("document.body.dataset.mdColorScheme"))
    assert schemes == ["default", "slate", "default"]


def found(browser, word):
    """The pages that a search finds, as their addresses; whole once they name the word."""
    browser.of(SEARCH.replace("WORD", word))
    end = time.monotonic() + TIMEOUT
    while True:
        links = browser.of("[...document.querySelectorAll('a.md-search-result__link')].map((a) => a.href)")
        if any(f"?h={word.rpartition('-')[2]}" in each for each in links):
            return {Path(each.partition("?")[0]).name for each in links}
        assert browser.complaints == [], word
        assert time.monotonic() < end, (word, links[:3])
        time.sleep(0.2)


def test_search_finds_without_a_network(browser, site):
    """Numbers, too: a search for a digit looks at every word that begins with it."""
    browser.open(site / "index.html", 1280)
    assert "deepspeed.html" in found(browser, "ZeRO-3")
    for digit in "0123456789":
        assert found(browser, digit)
    assert browser.complaints == []


def test_words_in_pictures_can_be_read_on_a_phone(browser, site):
    """They are of 12 px or more at a picture's own width."""
    browser.open(site / "how-it-works.html", 360)
    shares = browser.of("[...document.querySelectorAll('img[src$=\".svg\"]')].map((i) => i.width / i.naturalWidth)")
    assert len(shares) == 4
    assert min(shares) * 12 >= 8


def test_the_steps_of_the_first_page_are_numbered_one_after_another(browser, site):
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## A real model")[2].partition("\n## ")[0]
    steps = re.findall(r"^(\d+)\. ", text, re.MULTILINE)
    assert steps == [str(number) for number in range(1, len(steps) + 1)]
    browser.open(site / "index.html", 1280)
    lists = browser.of("[...document.querySelectorAll('article ol')].map((each) => each.children.length)")
    assert lists == [4, len(steps)]
