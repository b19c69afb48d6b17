"""Refusals of unsafe and of safe prompts with a share of what training has changed (`dist-moe evaluate --alphas`)."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from dist_moe.evaluation.curve import alpha_name
from dist_moe.evaluation.measures import REFUSED_SAFE, REFUSED_UNSAFE
from dist_moe.evaluation.rows import before_noun
from dist_moe.report.evaluation import IN_GROUPS
from dist_moe.report.page.blocks import Cell, Section, heading, joined, paragraph, table
from dist_moe.report.page.compared import picture
from dist_moe.report.page.contents import RunContents
from dist_moe.report.page.numbers import shown
from dist_moe.report.page.results import ends
from dist_moe.stats.measured import Estimate


def shares(run: RunContents, key: str) -> Section | None:
    """None: no share was evaluated."""
    if run.curve is None:
        return None
    parts = [
        paragraph(
            "The experts with a share alpha of their change: base + alpha x (trained - base). Alpha 0 is the base. All "
            "are scored on the same prompts; an alpha that was chosen on these rows must be judged on others."
        )
    ]
    for kind in run.curve.kinds:
        parts += [heading(4, f"Rows: {kind}"), *_kind(run.curve.points(kind), f"{key}-shares-{before_noun(kind)}")]
    return Section("shares", "Less of the change", joined(parts))


def _kind(points: Mapping[float, Mapping[str, Estimate]], key: str) -> list[Markup]:
    drawn = [
        (f"alpha {alpha_name(alpha)}", ends(found.get(REFUSED_SAFE)), ends(found.get(REFUSED_UNSAFE)))
        for alpha, found in points.items()
    ]
    names = [name for name in IN_GROUPS if any(name in found for found in points.values())]
    lines: list[list[Cell]] = [
        [f"{number} alpha {alpha_name(alpha)}", *(shown(name, found.get(name)) for name in names)]
        for number, (alpha, found) in enumerate(points.items(), 1)
    ]
    return [*picture(drawn, key), table("Shares of the change", ["", *names], lines)]
