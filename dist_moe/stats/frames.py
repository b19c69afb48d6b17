"""Risk tables as pandas tables: one line for each expert, largest risk_diff first.

pandas takes long to import, and not every reader of a store makes a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dist_moe.stats.names import expert_name
from dist_moe.stats.order import selection_order

if TYPE_CHECKING:
    import pandas as pd


def risk_frame(a_safe_n_LE: np.ndarray, a_unsafe_n_LE: np.ndarray, risk_diff_LE: np.ndarray) -> pd.DataFrame:
    """All L*E experts in selection order.

    Columns: layer, expert, Layer_Expert ("L08_E42"), a_safe_n, a_unsafe_n, risk_diff.
    """
    import pandas as pd

    order = selection_order(risk_diff_LE)
    layers, experts = np.divmod(order, risk_diff_LE.shape[1])
    return pd.DataFrame(
        {
            "layer": layers,
            "expert": experts,
            "Layer_Expert": expert_names(layers, experts),
            "a_safe_n": a_safe_n_LE.ravel()[order],
            "a_unsafe_n": a_unsafe_n_LE.ravel()[order],
            "risk_diff": risk_diff_LE.ravel()[order],
        }
    )


def lists_frame(batches: Sequence[Sequence[tuple[int, int]]]) -> pd.DataFrame:
    """Lists of (layer, expert), one line for each batch and expert.

    Columns: batch, rank (place in the list), layer, expert, Layer_Expert.
    """
    import pandas as pd

    rows = [
        (batch, rank, layer, expert, expert_name(layer, expert))
        for batch, pairs in enumerate(batches)
        for rank, (layer, expert) in enumerate(pairs)
    ]
    columns = ["batch", "rank", "layer", "expert", "Layer_Expert"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[:4], "int64"))


def select_head(frame: pd.DataFrame, threshold: float, top_k: int) -> pd.DataFrame:
    """The head of a `risk_frame` above the threshold: the same experts as `unsafe_experts`, in the same order."""
    return frame[frame["risk_diff"] > threshold].head(top_k)


def expert_names(layers: np.ndarray, experts: np.ndarray) -> list[str]:
    """The name of each (layer, expert) pair."""
    return [expert_name(int(layer), int(expert)) for layer, expert in zip(layers, experts, strict=True)]
