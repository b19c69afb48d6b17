"""Plots of a mask store as PNG and SVG: risk_diff and selection by layer and expert, overlap, growth of the union.

matplotlib is optional, and imported when something is drawn. The colours can be told apart with any colour vision:
cividis for amounts, orange to purple for signed values. The same store gives the same SVG.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dist_moe.errors import UserError
from dist_moe.files import replacing_files
from dist_moe.report.views.overlaps import MOST_BATCHES
from dist_moe.report.views.sizes import growth
from dist_moe.selection.structure import overall
from dist_moe.stats.overlap import jaccard_matrix
from dist_moe.store.read import MaskStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_plots(store: MaskStore, out: Path) -> list[Path]:
    """Draw all plots into `out`, which is created if needed; files of the same names are replaced.

    Raises:
        UserError: matplotlib is not installed, or `out` cannot be written; then no file has changed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("plots need matplotlib: pip install matplotlib") from None
    figures = {
        "risk_diff": risk_figure(store),
        "selected": selected_figure(store),
        "overlap": overlap_figure(store),
        "union_growth": growth_figure(store),
    }
    pictures: dict[str, bytes] = {}
    with matplotlib.rc_context({"svg.hashsalt": "dist_moe"}):
        for name, figure in figures.items():
            pictures[f"{name}.png"] = _drawn(figure, format="png", dpi=150)
            pictures[f"{name}.svg"] = _drawn(figure, format="svg", metadata={"Date": None})
    with replacing_files(out) as partial:
        for name, data in pictures.items():
            (partial / name).write_bytes(data)
    return [out / name for name in pictures]


def _drawn(figure: Figure, **options: Any) -> bytes:
    stream = BytesIO()
    figure.savefig(stream, **options)
    return stream.getvalue()


def risk_figure(store: MaskStore) -> Figure:
    """risk_diff of every expert, all prompts pooled; experts that the selection rule selects from it are framed."""
    frame = store.counts.aggregated
    values_LE = np.zeros(store.masks.shape[1:])
    values_LE[frame["layer"], frame["expert"]] = frame["risk_diff"]
    chosen = overall(store)
    limit = float(np.abs(values_LE).max()) or 1.0
    figure, axes = _experts_figure(store, "risk_diff over all prompts (framed: selected from it)")
    image = axes.imshow(values_LE, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    _frame_cells(axes, chosen["layer"].to_numpy(), chosen["expert"].to_numpy())
    figure.colorbar(image, ax=axes, label="a_unsafe_n - a_safe_n", pad=0.01)
    return figure


def selected_figure(store: MaskStore) -> Figure:
    """Fraction of the batches that select each expert."""
    num_LE = store.times_LE
    figure, axes = _experts_figure(store, f"share of {len(store.masks)} batches that select an expert (white: none)")
    values_LE = np.where(num_LE > 0, num_LE / len(store.masks), np.nan)
    image = axes.imshow(values_LE, cmap="cividis_r", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of batches", pad=0.01)
    return figure


def overlap_figure(store: MaskStore) -> Figure:
    """Jaccard index of all pairs of batches, ordered by category; of all pairs of categories if there are too many
    batches."""
    categories = np.array(store.categories, dtype=object)
    names = sorted(set(store.categories))
    if len(categories) <= MOST_BATCHES:
        order = np.argsort(categories.astype(str), kind="stable")
        values = jaccard_matrix(store.masks[:][order])
        sizes = np.array([(categories == name).sum() for name in names])
        what = "batches, by category"
    else:
        masks_BLE = store.masks[:]
        values = jaccard_matrix(np.stack([masks_BLE[categories == name].any(axis=0) for name in names]))
        sizes, what = np.ones(len(names), int), "categories"
    ends = np.cumsum(sizes)
    figure, axes = _figure(store, f"Jaccard index of {what}", 6 + 0.12 * len(names), 5 + 0.12 * len(names))
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    for end in ends[:-1] - 0.5:
        axes.axhline(end, color="white", linewidth=0.8)
        axes.axvline(end, color="white", linewidth=0.8)
    middles = ends - sizes / 2 - 0.5
    labels = [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
    axes.set_yticks(middles, labels)
    axes.set_xticks(middles, labels, rotation=90 if len(names) > 4 else 0)
    axes.set_xlabel(f"{len(values)} {what}")
    axes.set_ylabel("category")
    figure.colorbar(image, ax=axes, label="experts in both / in either", pad=0.02)
    return figure


def growth_figure(store: MaskStore) -> Figure:
    """Experts in the union of the first batches, in the stored order and in the mean over all orders."""
    union_B = np.array(growth(store).tables["union growth"]["union_experts"])
    numbers_B = np.arange(1, len(union_B) + 1)
    num_LE = store.times_LE
    figure, axes = _figure(store, "union of the first batches' unsafe experts", 7, 4.2)
    axes.plot(numbers_B, union_B, color="#0072B2", linewidth=2, label="order of the store")
    mean_B = mean_growth(num_LE[num_LE > 0], len(union_B))
    axes.plot(numbers_B, mean_B, color="#D55E00", linestyle="--", label="mean over all orders")
    axes.set_xlabel("number of batches")
    axes.set_ylabel(f"experts in the union (of {num_LE.size})")
    axes.set_xlim(left=1)
    axes.set_ylim(bottom=0)
    _whole_numbers(axes)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def mean_growth(num_X: np.ndarray, num_batches: int) -> np.ndarray:
    """Size of the union of the first 1, 2, ... batches, in the mean over all orders of the batches.

    Of B batches, c of which select an expert, none of the first n does in the share (B-c)! (B-n)! / ((B-c-n)! B!) of
    the orders.

    Args:
        num_X: how many batches select each expert.
        num_batches: B.

    Returns:
        float64 [B].
    """
    before_B = np.arange(num_batches)
    total_B = np.zeros(num_batches)
    for num, times in zip(*np.unique(num_X, return_counts=True), strict=True):
        none_yet_B = np.cumprod(np.maximum(num_batches - num - before_B, 0) / (num_batches - before_B))
        total_B += times * (1 - none_yet_B)
    return total_B


def _experts_figure(store: MaskStore, title: str) -> tuple[Figure, Any]:
    _, num_layers, num_experts = store.masks.shape
    width = float(np.clip(2.5 + 0.09 * num_experts, 7, 24))
    figure, axes = _figure(store, title, width, float(np.clip(1.8 + 0.13 * num_layers, 3, 16)))
    axes.set_xlabel("expert")
    axes.set_ylabel("MoE layer")
    _whole_numbers(axes)
    return figure, axes


def _whole_numbers(axes: Any) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)


def _figure(store: MaskStore, title: str, width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"{_short_name(store)}: {title}", fontsize=10, loc="left")
    return figure, axes


def _short_name(store: MaskStore) -> str:
    """The last two parts of the path: stores are all called masks.zarr, so the run directory tells them apart."""
    return "/".join(str(store.path).rstrip("/").split("/")[-2:])


def _frame_cells(axes: Any, layers: np.ndarray, experts: np.ndarray) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    cells = [Rectangle((e - 0.5, layer - 0.5), 1, 1) for layer, e in zip(layers, experts, strict=True)]
    axes.add_collection(PatchCollection(cells, facecolor="none", edgecolor="black", linewidth=0.9))
