"""A square of indices between 0 and 1, as a picture and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from markupsafe import Markup

from dist_moe.report.page.blocks import details, table
from dist_moe.report.page.charts import cut
from dist_moe.report.page.svg import WIDTH, cells, element, figure, number, text

LEVELS = 10
WRITTEN = 8
"""Lines up to which each square has its number written in it."""
NAMED = 16
"""Lines up to which each has its label beside it, and the names are listed."""
TABLED = 100
"""Lines up to which there is a table."""
LEFT, TOP = 34.0, 20.0


def matrix(index_XX: np.ndarray, labels: Sequence[tuple[str, str]], what: str, key: str) -> Markup:
    """The Jaccard index of each two.

    Args:
        index_XX: symmetric.
        labels: of each line, a short one for the picture, and a name.
        what: what there is a line of.
        key: its address in the page.
    """
    size = float(np.clip((WIDTH - 40) / len(labels), 3, 40))
    apart = index_XX[np.triu_indices(len(labels), 1)]
    description = (
        f"{len(labels)} {what}. Between two of them the index is {apart.mean():.3f} in the mean, {apart.min():.3f} "
        f"to {apart.max():.3f}. {'The table below has every value.' if len(labels) <= TABLED else ''}"
    )
    room = (max(LEFT + size * len(labels) + 6, WIDTH), TOP + size * len(labels) + 6)
    picture = figure(key, f"Similarity of {what}", description, room, _parts(index_XX, labels, size))
    names = [f"{short} {cut(name, 40)}" for short, name in labels]
    listed = f"{'; '.join(names)}." if len(names) <= NAMED else ""
    lines = [[name, *(f"{value:.2f}" for value in row)] for name, row in zip(names, index_XX, strict=True)]
    head = ["", *(short for short, _ in labels)]
    if len(labels) > TABLED:
        return Markup("<div>{}</div>").format(picture)
    values = details("Every value as a table", table(f"Jaccard index of {what}", head, lines, css="values"), css="big")
    return Markup('<div>{}<p class="small">{}</p>{}</div>').format(picture, listed, values)


def _parts(index_XX: np.ndarray, labels: Sequence[tuple[str, str]], size: float) -> Iterator[Markup]:
    levels_XX = np.minimum((index_XX * LEVELS).astype(int), LEVELS - 1)
    levels_XX[index_XX == 0] = -1
    yield element(
        "g",
        element("rect", x=0, y=0, width=len(labels), height=len(labels), class_="ground"),
        *cells(levels_XX, "like level"),
        transform=f"translate({number(LEFT)} {number(TOP)}) scale({number(size)})",
    )
    for place in range(0, len(labels), 1 if len(labels) <= NAMED else 10):
        middle = (place + 0.5) * size
        yield text(labels[place][0], LEFT - 5, TOP + middle + 4, text_anchor="end")
        yield text(labels[place][0], LEFT + middle, TOP - 6, text_anchor="middle")
    if len(labels) <= WRITTEN:
        for (row, column), value in np.ndenumerate(index_XX):
            at = (LEFT + (column + 0.5) * size, TOP + (row + 0.5) * size + 4)
            css = "inside" if levels_XX[row, column] >= LEVELS // 2 else "over"
            yield text(f"{value:.2f}", *at, text_anchor="middle", class_=css)
