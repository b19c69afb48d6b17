"""The page in Chromium: at three widths, dark and light, it fits, complains of nothing and asks nobody for anything."""

import dataclasses

import pytest

from tests.browser import Browser
from tests.reported import ATTACK, made_evaluation, made_run, text_of

pytestmark = pytest.mark.long

CONTRAST = """
(() => {
  const parts = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let each = node; each; each = each.parentElement) {
      const found = parts(getComputedStyle(each).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const weak = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const parent = node.parentElement;
    if (!node.data.trim() || ["SCRIPT", "STYLE", "TITLE", "DESC", "title", "desc"].includes(parent.tagName)) continue;
    const inside = parent.closest("svg");
    if (inside && parent.classList.contains("inside")) continue;
    const front = parts(getComputedStyle(parent)[inside ? "fill" : "color"]);
    const [a, b] = [light(front), light(behind(parent))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) weak.push([node.data, front, behind(parent)]);
  }
  return weak;
})()
"""
WIDTHS = (360, 768, 1280)


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path / "profile") as found:
        yield found


@pytest.fixture
def run(tmp_path):
    return made_run(tmp_path)


@pytest.fixture
def place(run, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(text_of(run), encoding="utf-8")
    return file


def test_it_fits_is_legible_and_keeps_to_itself(browser, place):
    grounds = set()
    for dark in (False, True):
        for width in WIDTHS:
            browser.open(place, width, dark=dark)
            browser.of("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
            assert browser.of("document.documentElement.scrollWidth") <= width, (width, dark)
            assert browser.of(CONTRAST) == [], (width, dark)
            assert browser.complaints == []
            assert browser.requests == [place.resolve().as_uri()]
            assert not any(each.startswith("http") for each in browser.requests)
        grounds.add(browser.of("getComputedStyle(document.documentElement).backgroundColor"))
    assert grounds == {"rgb(255, 255, 255)", "rgb(20, 23, 26)"}


def test_on_a_phone_a_long_name_leaves_room_for_the_numbers(browser, run, tmp_path):
    file = tmp_path / "long.html"
    category = "some-suite/" + "discrimination_" * 8
    file.write_text(text_of(dataclasses.replace(run, evaluation=made_evaluation(category))), encoding="utf-8")
    browser.open(file, 360)
    widths = browser.of(
        "[...document.querySelectorAll('tbody th')].filter((each) => each.textContent.includes('discrimination_'))"
        ".map((each) => each.getBoundingClientRect().width)"
    )
    assert widths
    assert max(widths) <= 9 * 16 + 1


def test_the_pointer_shows_the_value_under_it(browser, place):
    browser.open(place, 1280)
    browser.of("document.querySelector('.heat svg').scrollIntoView()")
    box = browser.of(
        "(() => { const b = document.querySelector('.heat .ground').getBoundingClientRect();"
        " return [b.left, b.top, b.width, b.height]; })()"
    )
    browser.point(box[0] + box[2] * 2.5 / 4, box[1] + box[3] * 0.5 / 2)
    assert browser.of("document.querySelector('.under-pointer').textContent") == (
        "L00_E02: risk_diff +0.3000 ●, in 2 masks"
    )


def test_without_its_script_it_is_whole(browser, place):
    texts = []
    for script in (True, False):
        browser.open(place, 768, script=script)
        document = browser.send("DOM.getDocument")["root"]["nodeId"]
        main = browser.send("DOM.querySelector", nodeId=document, selector="main")["nodeId"]
        texts.append(browser.send("DOM.getOuterHTML", nodeId=main)["outerHTML"])
    assert texts[0].replace("Point at a square for its value.", "") == texts[1]


def test_a_screen_reader_is_told_of_every_picture_and_table(browser, place):
    browser.open(place, 768)
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]

    def of(role):
        return [node for node in nodes if not node["ignored"] and node["role"]["value"] == role]

    pictures = of("image")
    assert len(pictures) > 5
    assert all(node["name"]["value"] and node["description"]["value"] for node in pictures)
    assert all(node["name"]["value"] for node in of("table"))
    assert len(of("main")) == len(of("navigation")) == 1


def test_it_can_be_printed(browser, place):
    browser.open(place, 768)
    assert len(browser.send("Page.printToPDF")["data"]) > 10_000


def test_an_answer_cannot_start_anything(browser, run, tmp_path):
    file = tmp_path / "attacked.html"
    file.write_text(text_of(dataclasses.replace(run, evaluation=made_evaluation(ATTACK))), encoding="utf-8")
    browser.open(file, 768)
    assert browser.complaints == []
    assert browser.requests == [file.resolve().as_uri()]
    assert browser.of("document.querySelectorAll('img').length") == 0
