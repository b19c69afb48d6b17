"""How alike the masks of batches and categories are, and how their union grows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from dist_moe.report.page.blocks import Section, joined, paragraph
from dist_moe.report.page.charts import Line, line_chart
from dist_moe.report.page.contents import RunContents
from dist_moe.report.page.matrix import matrix
from dist_moe.stats.overlap import jaccard_matrix
from dist_moe.stats.specificity import union_growth
from dist_moe.store.read import MaskStore

MOST_BATCHES = 300
MOST_POINTS = 400
"""Of a line."""


def overlap(run: RunContents, key: str) -> Section | None:
    """None: there are no masks, or only one."""
    if run.masks is None or len(run.masks.batches) < 2:
        return None
    masks, num_batches = run.masks, len(run.masks.batches)
    categories = np.array(masks.categories, dtype=object)
    names = sorted(set(run.masks.categories))
    parts = [
        paragraph(
            "Jaccard index: of the experts that are in either of two masks, the share that is in both. 1: the same "
            "experts; 0: none in common."
        )
    ]
    if num_batches <= MOST_BATCHES:
        order = np.argsort(categories.astype(str), kind="stable")
        labels = [(str(index), categories[index]) for index in order.tolist()]
        parts.append(matrix(jaccard_matrix(masks.masks[:][order]), labels, "batches, by category", f"{key}-batches"))
    if 1 < len(names) <= MOST_BATCHES:
        unions_CLE = _unions(masks, categories, names)
        labels = [(str(number), name) for number, name in enumerate(names, 1)]
        parts.append(matrix(jaccard_matrix(unions_CLE), labels, "categories (union of each)", f"{key}-categories"))
    parts.append(_growth(masks.masks[:], f"{key}-growth"))
    if num_batches > MOST_BATCHES:
        parts.append(paragraph(f"For all pairs of {num_batches} batches see dist-moe inspect with the view overlap."))
    body = Markup('<div class="charts">{}</div>').format(joined(parts[1:]))
    return Section("overlap", "How alike the masks are", joined([parts[0], body]))


def _unions(masks: MaskStore, categories: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """bool [categories, L, E]: experts of at least one of a category's batches; reads some batches at a time."""
    unions_CLE = np.zeros((len(names), *masks.masks.shape[1:]), np.bool_)
    for start, stop in masks.masks.blocks(0, len(masks.masks)):
        some_BLE = masks.masks[start:stop]
        for number, name in enumerate(names):
            unions_CLE[number] |= some_BLE[categories[start:stop] == name].any(axis=0)
    return unions_CLE


def _growth(masks_BLE: np.ndarray, key: str) -> Markup:
    found = union_growth(masks_BLE)
    numbers_N = np.unique(np.linspace(1, len(masks_BLE), MOST_POINTS).round().astype(int))
    stored = np.logical_or.accumulate(masks_BLE.reshape(len(masks_BLE), -1), axis=0).sum(axis=1)
    low, high = found.mean_B - found.deviation_B, found.mean_B + found.deviation_B
    total = masks_BLE[0].size
    lines = [
        Line("mean of all choices, and one standard deviation", numbers_N.tolist(),
             *(values_B[numbers_N - 1].tolist() for values_B in (found.mean_B, low, high))),
        Line("in the order of the batches", numbers_N.tolist(), stored[numbers_N - 1].tolist()),
    ]  # fmt: skip
    description = (
        f"One batch has {found.mean_B[0]:.1f} experts in the mean, all {len(masks_BLE)} together have "
        f"{int(stored[-1])} of the model's {total}."
    )
    title = f"Experts in the union of the first batches, of {total}"
    chart = line_chart(key, title, description, lines, "number of batches", zero=True)
    return Markup('<div>{}<p class="small">{}</p></div>').format(chart, description)
