"""How far two numbers of the same things rise together."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def rank_correlation(one_N: np.ndarray, other_N: np.ndarray) -> float | None:
    """Spearman's: the correlation of ranks, ties with their mean rank. None: one of the two has one value only."""
    one, other = (rankdata(values) - (len(values) + 1) / 2 for values in (one_N, other_N))
    scale = np.sqrt((one**2).sum() * (other**2).sum())
    return float((one * other).sum() / scale) if scale > 0 else None
