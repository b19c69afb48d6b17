"""Compares masks: between batches, within a category, across categories."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dist_moe.stats.frames import expert_names


def jaccard_matrix(masks_BLE: np.ndarray) -> np.ndarray:
    """float64 [B, B]: experts in both masks / experts in either; 0 where both are empty."""
    flat_BX = masks_BLE.reshape(len(masks_BLE), -1).astype(np.float64)
    both_BB = flat_BX @ flat_BX.T
    size_B = np.diag(both_BB)
    either_BB = size_B[:, None] + size_B[None, :] - both_BB
    return np.divide(both_BB, either_BB, out=np.zeros_like(both_BB), where=either_BB > 0)


def category_experts(masks_BLE: np.ndarray, categories: Sequence[str]) -> pd.DataFrame:
    """The experts of each category: those in the mask of at least one of its batches.

    Args:
        masks_BLE: bool [B, L, E].
        categories: of the B batches.

    Returns:
        Columns category, layer, expert, Layer_Expert, num_batches (of this category that select the expert) and
        share (of its batches). Sorted by category, then num_batches descending, then layer, then expert.
    """
    category_B = np.asarray(categories, dtype=object)
    parts = []
    for category in sorted(set(categories)):
        of_category_B = category_B == category
        num_batches_LE = masks_BLE[of_category_B].sum(axis=0)
        layers, experts = np.nonzero(num_batches_LE)
        part = pd.DataFrame(
            {
                "category": category,
                "layer": layers,
                "expert": experts,
                "Layer_Expert": expert_names(layers, experts),
                "num_batches": num_batches_LE[layers, experts],
                "share": num_batches_LE[layers, experts] / of_category_B.sum(),
            }
        )
        parts.append(part.sort_values("num_batches", ascending=False, kind="stable"))
    return pd.concat(parts, ignore_index=True)


def shared_experts(by_category: pd.DataFrame) -> pd.DataFrame:
    """The experts of more than one category, from the table of `category_experts`.

    Returns:
        Columns layer, expert, Layer_Expert, num_categories, categories (names joined by ", "), num_batches (of all
        categories). Sorted by num_categories descending, num_batches descending, layer, expert.
    """
    grouped = by_category.groupby(["layer", "expert", "Layer_Expert"], as_index=False).agg(
        num_categories=("category", "size"), categories=("category", ", ".join), num_batches=("num_batches", "sum")
    )
    return (
        grouped[grouped["num_categories"] > 1]
        .sort_values(["num_categories", "num_batches"], ascending=False, kind="stable")
        .reset_index(drop=True)
    )


def expert_history(
    selected_B: np.ndarray, a_safe_n_B: np.ndarray, a_unsafe_n_B: np.ndarray, categories: Sequence[str]
) -> pd.DataFrame:
    """One expert in all batches, in batch order.

    Columns: batch, category, selected, a_safe_n, a_unsafe_n, risk_diff.
    """
    return pd.DataFrame(
        {
            "batch": np.arange(len(selected_B)),
            "category": categories,
            "selected": selected_B,
            "a_safe_n": a_safe_n_B,
            "a_unsafe_n": a_unsafe_n_B,
            "risk_diff": a_unsafe_n_B - a_safe_n_B,
        }
    )
