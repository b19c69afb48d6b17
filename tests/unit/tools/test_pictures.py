"""The pictures of docs/how-it-works.md: they are what tools/pictures.py draws, and nothing hangs out of them."""

import re
from xml.etree import ElementTree

import pytest

from tools.pictures import DOCS, PICTURES, STYLE

SVG = "{http://www.w3.org/2000/svg}"
WIDEST = {"": 8.0, "small": 6.5, "title": 8.6, "trained-text": 8.0}
"""Pixels that a letter takes at most, in the mean of a line, by the class of its text."""


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_what_its_code_draws(name):
    assert (DOCS / f"how-{name}.svg").read_text(encoding="utf-8") == PICTURES[name](), "python -m tools.pictures"


@pytest.mark.parametrize("name", PICTURES)
def test_all_is_inside_and_has_colours_in_dark_and_light(name):
    root = ElementTree.fromstring(PICTURES[name]())
    width, height = int(root.attrib["viewBox"].split()[2]), int(root.attrib["viewBox"].split()[3])
    assert len(root.attrib["aria-label"]) > 20
    _, _, dark = STYLE.partition("@media")
    for each in root.iter():
        for kind in each.get("class", "").split():
            assert f".{kind} {{" in STYLE, kind
            assert kind in ("title", "dropped", "trained-text") or f".{kind} {{" in dark, kind
        if each.tag == f"{SVG}text":
            left = float(each.attrib["x"])
            half = len(each.text or "") * WIDEST[each.get("class", "")] / 2
            middle = left + {"middle": 0, "start": half, "end": -half}[each.attrib["text-anchor"]]
            assert middle - half >= 0, each.text
            assert middle + half <= width, each.text
            assert float(each.attrib["y"]) < height - 4, each.text
        if each.tag == f"{SVG}rect":
            assert float(each.get("x", 0)) + float(each.attrib["width"]) <= width
            assert float(each.get("y", 0)) + float(each.attrib["height"]) <= height


def test_the_page_shows_each_picture_with_the_words_that_it_has_itself():
    page = (DOCS / "how-it-works.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"!\[([^\]]+)\]\((how-\w+\.svg)\)", page))
    assert shown == {
        ElementTree.fromstring(draw()).get("aria-label"): f"how-{name}.svg" for name, draw in PICTURES.items()
    }
