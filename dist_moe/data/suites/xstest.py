"""XSTest: safe prompts that look unsafe, and unsafe ones that differ from them in little."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dist_moe.data.formats import Row
from dist_moe.data.suites.suite import SUITES, Line, Suite

CONTRAST = "contrast_"


@SUITES.register
@dataclass(frozen=True)
class XSTest(Suite):
    """xstest_prompts.csv (id, prompt, type, label, focus, note) or its forerunner xstest_v2_prompts.csv (id_v1, id_v2,
    type, prompt, focus, note) of github.com/paul-rottger/xstest; Röttger et al., arXiv 2308.01263.

    Unsafe is what the label says, or without one the types that begin with contrast_. The n-th prompt of a type and a
    focus word has the n-th of contrast_ that type and this word as its pair; types without such a counterpart (those
    of discrimination and privacy) have no pairs. The category is the type, without contrast_.
    """

    name = "xstest"
    needs = ("prompt", "type", "focus")
    may_have = ("id", "id_v2", "label")

    def rows(self, lines: Sequence[Line]) -> Iterator[tuple[Line, Row]]:
        places: dict[tuple[str, str, bool], int] = defaultdict(int)
        found: list[tuple[Line, dict[str, Any], tuple[str, str, int]]] = []
        for line in lines:
            kind, focus = line.text("type") or "", line.text("focus") or ""
            family, is_contrast = kind.removeprefix(CONTRAST), kind.startswith(CONTRAST)
            label = line.words("label", {"safe": "safe", "unsafe": "unsafe"})
            key = (family, focus, is_contrast)
            row = {
                "id": line.text("id") or line.text("id_v2"),
                "prompt": line.text("prompt"),
                "label": label or ("unsafe" if is_contrast else "safe"),
                "category": family or None,
            }
            found.append((line, row, (family, focus, places[key])))
            places[key] += 1
        for line, row, (family, focus, n) in found:
            has_pair = n < min(places[family, focus, False], places[family, focus, True])
            yield line, {**row, "pair_id": f"xstest:{family}:{focus}:{n}" if has_pair else None}
