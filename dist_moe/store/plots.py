"""Pictures of a mask store, each as PNG and SVG: risk and selection by layer and expert, overlap, union growth.

matplotlib is optional and is imported when something is drawn. Colours are told apart with any colour vision: cividis
for amounts, orange to purple for signed ones. The same store gives the same SVG.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dist_moe.errors import UserError
from dist_moe.risk.overlap import jaccard_matrix
from dist_moe.store.read import MaskStore
from dist_moe.store.views.overlap import MOST_BATCHES, growth

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_ORDERS = 50


def write_plots(store: MaskStore, out: Path) -> list[Path]:
    """Draw all pictures into `out`, which is made if need be; files of the same name are replaced.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("plots need matplotlib: pip install 'dist_moe[plots]'") from None
    figures = {
        "risk_diff": risk_figure(store),
        "selected": selected_figure(store),
        "overlap": overlap_figure(store),
        "union_growth": growth_figure(store),
    }
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context({"svg.hashsalt": "dist_moe"}):
        for name, figure in figures.items():
            figure.savefig(out / f"{name}.png", dpi=150)
            figure.savefig(out / f"{name}.svg", metadata={"Date": None})
            written += [out / f"{name}.png", out / f"{name}.svg"]
    return written


def risk_figure(store: MaskStore) -> Figure:
    """Pooled risk_diff of every expert; those that the selection rule picks from it are framed."""
    frame = store.aggregated
    values_LE = np.zeros(store.masks.shape[1:])
    values_LE[frame["layer"], frame["expert"]] = frame["risk_diff"]
    chosen = store.global_unsafe_experts()
    limit = float(np.abs(values_LE).max()) or 1.0
    figure, axes = _experts_figure(store, "risk_diff over all prompts (framed: selected from it)")
    image = axes.imshow(values_LE, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    _frame_cells(axes, chosen["layer"].to_numpy(), chosen["expert"].to_numpy())
    figure.colorbar(image, ax=axes, label="a_unsafe_n - a_safe_n", pad=0.01)
    return figure


def selected_figure(store: MaskStore) -> Figure:
    """In what share of the batches each expert is selected."""
    num_LE = np.zeros(store.masks.shape[1:])
    for start, stop in store.masks.slabs(0, len(store.masks)):
        num_LE += store.masks[start:stop].sum(axis=0)
    figure, axes = _experts_figure(store, f"share of {len(store.masks)} batches that select an expert (white: none)")
    values_LE = np.where(num_LE > 0, num_LE / len(store.masks), np.nan)
    image = axes.imshow(values_LE, cmap="cividis_r", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of batches", pad=0.01)
    return figure


def overlap_figure(store: MaskStore) -> Figure:
    """Jaccard index of every two batches, ordered by category; of every two categories where batches are too many."""
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
    """Experts in the union of the first batches, in the stored order and in the mean over random orders."""
    table = growth(store).tables["union growth"]
    numbers = np.arange(1, len(table) + 1)
    figure, axes = _figure(store, "union of the first batches' unsafe experts", 7, 4.2)
    axes.plot(numbers, table["union_experts"], color="#0072B2", linewidth=2, label="order of the store")
    if len(table) <= MOST_BATCHES:
        mean = _mean_growth(store.masks[:])
        axes.plot(numbers, mean, color="#D55E00", linestyle="--", label=f"mean of {NUM_ORDERS} random orders")
    axes.set_xlabel("number of batches")
    axes.set_ylabel(f"experts in the union (of {store.masks.shape[1] * store.masks.shape[2]})")
    axes.set_xlim(left=1)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def _mean_growth(masks_BLE: np.ndarray) -> np.ndarray:
    generator = np.random.default_rng(0)
    flat_BX = masks_BLE.reshape(len(masks_BLE), -1)[:, masks_BLE.any(axis=0).ravel()]
    # An expert joins the union with the first batch that has it, so its place in an order is all that counts.
    total = np.zeros(len(masks_BLE))
    for _ in range(NUM_ORDERS):
        first_X = flat_BX[generator.permutation(len(flat_BX))].argmax(axis=0)
        total += np.bincount(first_X, minlength=len(flat_BX)).cumsum()
    return total / NUM_ORDERS


def _experts_figure(store: MaskStore, title: str) -> tuple[Figure, Any]:
    _, num_layers, num_experts = store.masks.shape
    width = float(np.clip(2.5 + 0.09 * num_experts, 7, 24))
    figure, axes = _figure(store, title, width, float(np.clip(1.8 + 0.13 * num_layers, 3, 16)))
    axes.set_xlabel("expert")
    axes.set_ylabel("MoE layer")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.get_major_locator().set_params(integer=True)
    return figure, axes


def _figure(store: MaskStore, title: str, width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"{_short_name(store)}: {title}", fontsize=10, loc="left")
    return figure, axes


def _short_name(store: MaskStore) -> str:
    """The last two parts of its path: a run directory tells stores apart, which are all called masks.zarr."""
    return "/".join(str(store.path).rstrip("/").split("/")[-2:])


def _frame_cells(axes: Any, layers: np.ndarray, experts: np.ndarray) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    cells = [Rectangle((e - 0.5, layer - 0.5), 1, 1) for layer, e in zip(layers, experts, strict=True)]
    axes.add_collection(PatchCollection(cells, facecolor="none", edgecolor="black", linewidth=0.9))
