"""The whole page: its sections in order, with style and script inside, so that it needs nothing else.

The page may run its own script and style, known by their hashes, and nothing else: what a model has answered can start
nothing, and nothing is fetched.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from markupsafe import Markup

from dist_moe.report.page.adjusted import adjusted
from dist_moe.report.page.answers import answers
from dist_moe.report.page.blocks import ENVIRONMENT, Section
from dist_moe.report.page.compared import comparison, runs_compared
from dist_moe.report.page.contents import PageContents, RunContents
from dist_moe.report.page.curves import curves
from dist_moe.report.page.exactness import exactness
from dist_moe.report.page.experts import experts
from dist_moe.report.page.limits import limits, limits_of_comparison
from dist_moe.report.page.missing import missing
from dist_moe.report.page.overlap import overlap
from dist_moe.report.page.rates import learning_rates
from dist_moe.report.page.results import results
from dist_moe.report.page.shares import shares
from dist_moe.report.page.what import what
from dist_moe.version import __version__

GENERATOR = '<meta name="generator" content="dist-moe report">'
"""By this a page is known as one of ours."""
OF_RUN = (what, missing, experts, overlap, results, shares, curves, adjusted, answers, exactness, limits)


def page(contents: PageContents) -> str:
    """The page as HTML; the same contents give the same page."""
    parts: list[tuple[str, str, Sequence[Section]]] = []
    for number, found in enumerate(contents.comparisons, 1):
        sections = [comparison(found, f"comparison-{number}"), learning_rates(found), limits_of_comparison(found)]
        parts.append((f"comparison-{number}", f"Comparison {found.name}", [each for each in sections if each]))
    side_by_side = runs_compared(contents.runs, "runs")
    if side_by_side is not None:
        parts.append(("runs", "All runs", [side_by_side]))
    for number, run in enumerate(contents.runs, 1):
        parts.append((f"run-{number}", f"Run {run.name}", _sections(run, f"run-{number}")))
    names = [*(found.name for found in contents.comparisons), *(run.name for run in contents.runs)]
    style, script = (Markup(ENVIRONMENT.get_template(name).render()) for name in ("page.css.jinja", "page.js.jinja"))
    html = ENVIRONMENT.get_template("page.html.jinja").render(
        title=f"Report: {', '.join(names)}",
        generator=Markup(GENERATOR),
        parts=parts,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        version=__version__,
    )
    return f"{html}\n"


def _sections(run: RunContents, key: str) -> Sequence[Section]:
    return [section for make in OF_RUN if (section := make(run, key)) is not None]


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
