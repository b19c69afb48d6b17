"""How training went: the loss and each of its terms, the gradient's norm, the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup

from dist_moe.report.page.blocks import Section, joined, paragraph
from dist_moe.report.page.charts import Line, line_chart, thinned
from dist_moe.report.page.contents import RunContents
from dist_moe.training.steps import Step

MOST_POINTS = 300


def curves(run: RunContents, key: str) -> Section | None:
    """None: there was no step."""
    steps = run.steps
    if not steps:
        return None
    marks = [(float(b.step), f"masks r{b.mask_revision}") for a, b in pairwise(steps)
             if b.mask_revision != a.mask_revision]  # fmt: skip
    names = list(dict.fromkeys(name for step in steps for name in step.terms))
    losses = [_line("objective", [(step, step.loss) for step in steps])]
    if len(names) > 1:
        losses += [_line(name, [(s, s.terms[name].mean) for s in steps if name in s.terms]) for name in names]
    charts = [
        _chart(f"{key}-loss", "Loss under the batch's mask" if _is_route(run) else "Loss", losses, marks),
        _chart(f"{key}-norm", "Gradient norm before clipping", [_line("", [(s, s.grad_norm) for s in steps])], marks),
        _chart(f"{key}-lr", "Learning rate", [_line("", [(s, s.lr) for s in steps])], marks),
    ]
    told = "A point is a step, and a step a batch; batches differ, so single steps go up and down."
    if len(steps) > MOST_POINTS:
        told = f"Each of {MOST_POINTS} points is the mean of some {len(steps) // MOST_POINTS} of {len(steps)} steps."
    if len(names) > 1:
        told += " The objective is the sum of its terms, each times its weight; the terms are drawn without theirs."
    drawn = Markup('<div class="charts">{}</div>').format(joined(charts))
    return Section("curves", "How training went", joined([paragraph(told), drawn]))


def _is_route(run: RunContents) -> bool:
    return run.config is not None and run.config.train.mode == "route"


def _line(name: str, points: Sequence[tuple[Step, float]]) -> Line:
    x, y = thinned([float(step.step) for step, _ in points], [value for _, value in points], MOST_POINTS)
    return Line(name, x, y)


def _chart(key: str, title: str, lines: Sequence[Line], marks: Sequence[tuple[float, str]]) -> Markup:
    ends = [f"{line.name} from {line.y[0]:.4g} to {line.y[-1]:.4g}".strip() for line in lines]
    return line_chart(key, title, "; ".join(ends), lines, "step", zero=True, marks=marks)
