"""The order of selection: sort by risk_diff, then apply the threshold, then keep at most top_k over all layers.

This order is part of the definition. Cutting to top_k before sorting would favour the experts of the first layers.
"""

import numpy as np


def selection_order(risk_diff_LE: np.ndarray) -> np.ndarray:
    """All experts, largest risk_diff first, as int [L*E] positions `layer * E + expert`.

    Ties: lower layer first, then lower expert.
    """
    return np.argsort(-risk_diff_LE.ravel(order="C"), kind="stable")


def unsafe_experts(risk_diff_LE: np.ndarray, threshold: float, top_k: int) -> list[tuple[int, int]]:
    """The unsafe experts as (layer, expert), largest risk_diff first: `risk_diff > threshold`, at most `top_k`."""
    num_experts = risk_diff_LE.shape[1]
    order = selection_order(risk_diff_LE)
    chosen = order[risk_diff_LE.ravel()[order] > threshold][:top_k]
    return [divmod(int(position), num_experts) for position in chosen]


def selected(risk_diff_X: np.ndarray, threshold: float, top_k: int) -> np.ndarray:
    """`unsafe_experts` as a mask, bool, of the same shape; sorts only what is above the threshold."""
    flat_X = risk_diff_X.ravel()
    above = np.nonzero(flat_X > threshold)[0]
    mask_X = np.zeros(flat_X.size, np.bool_)
    mask_X[above[np.argsort(-flat_X[above], kind="stable")[:top_k]]] = True
    return mask_X.reshape(risk_diff_X.shape)


def largest(score_LE: np.ndarray, number: int) -> np.ndarray:
    """The `number` largest scores over all layers as a mask, bool [L, E]; equal scores: as `selection_order`."""
    return selected(score_LE.astype(np.float64), -np.inf, number)


def first_of_each_layer(score_LE: np.ndarray, number_L: np.ndarray) -> np.ndarray:
    """The largest scores of each layer as a mask, bool [L, E]; equal scores: the lower expert first."""
    rank_LE = np.argsort(np.argsort(-score_LE, axis=1, kind="stable"), axis=1, kind="stable")
    return rank_LE < number_L[:, None]
