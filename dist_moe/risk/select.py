"""Which experts are unsafe: sort by risk_diff first, then the threshold, then at most top_k over all layers.

The order of these steps is the definition. Cutting to top_k before sorting would keep the first layers' experts,
whatever their risk.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dist_moe.errors import UserError
from dist_moe.risk.masks import ExpertMasks


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionRule:
    """How masks were made from risk_diff; stored beside the masks."""

    name: Literal["threshold_top_k"] = "threshold_top_k"
    threshold: float
    """An expert is unsafe when its risk_diff is above this."""
    top_k: int
    """At most this many experts a batch, over all layers."""


def selection_order(risk_diff_LE: np.ndarray) -> np.ndarray:
    """All experts, riskiest first, as int [L*E] positions `layer * E + expert`.

    Equal risk_diff: lower layer first, then lower expert.
    """
    return np.argsort(-risk_diff_LE.ravel(order="C"), kind="stable")


def unsafe_experts(risk_diff_LE: np.ndarray, threshold: float, top_k: int) -> list[tuple[int, int]]:
    """The unsafe experts as (layer, expert), riskiest first: `risk_diff > threshold`, at most `top_k`."""
    num_experts = risk_diff_LE.shape[1]
    order = selection_order(risk_diff_LE)
    chosen = order[risk_diff_LE.ravel()[order] > threshold][:top_k]
    return [divmod(int(position), num_experts) for position in chosen]


def masks_from(risk_diff_BLE: np.ndarray, rule: SelectionRule) -> ExpertMasks:
    """Each batch's mask by `rule`. A batch may get an empty mask; all batches may not.

    Raises:
        UserError: no expert of any batch is above the threshold.
    """
    masks_BLE = np.zeros(risk_diff_BLE.shape, np.bool_)
    for mask_LE, risk_diff_LE in zip(masks_BLE, risk_diff_BLE, strict=True):
        for layer, expert in unsafe_experts(risk_diff_LE, rule.threshold, rule.top_k):
            mask_LE[layer, expert] = True
    if not masks_BLE.any():
        raise UserError(
            f"no expert of any batch has a risk_diff above analysis.threshold = {rule.threshold}: the largest is "
            f"{risk_diff_BLE.max():.6g}; set analysis.threshold below that"
        )
    return ExpertMasks(masks_BLE)
