"""Checks that stored measurements are possible, before they are used."""

from collections.abc import Mapping

import numpy as np

from dist_moe.stats.counts import layer_sums
from dist_moe.stats.names import expert_name


def wrong_measurement(
    counts_PLE: np.ndarray, tokens_P: np.ndarray, experts_per_token: int, tables: Mapping[str, np.ndarray]
) -> tuple[str, int, str] | None:
    """The first impossible value: name of its table, prompt, and what is wrong; None if there is none.

    Args:
        counts_PLE: int [P, L, E].
        tokens_P: int [P].
        experts_per_token: k.
        tables: further measurements by name, [P, L, E] or [P]: neither NaN nor negative.
    """
    most_P = np.full(len(tokens_P), np.finfo(np.float32).max)
    for name, values, most in (
        ("tokens", tokens_P, most_P),
        ("counts", counts_PLE, tokens_P),
        *((name, values, most_P) for name, values in tables.items()),
    ):
        prompt = _first_outside(values, most)
        if prompt is not None:
            expert = np.argwhere(~((values[prompt] >= 0) & (values[prompt] <= most[prompt])))[0].tolist()
            of = f", {expert_name(*expert)}" if expert else ""
            tokens = f" of {tokens_P[prompt]} tokens" if name == "counts" else ""
            return name, prompt, f"{values[(prompt, *expert)]}{tokens}{of},"
    sums_PL = layer_sums(counts_PLE, tokens_P)
    wrong = sums_PL > experts_per_token * tokens_P[:, None]
    if wrong.any():
        prompt, layer = np.argwhere(wrong)[0].tolist()
        limit = f"{experts_per_token} experts a token and {tokens_P[prompt]} tokens"
        return "counts", prompt, f"{sums_PL[prompt, layer]} in layer {layer}, at {limit},"
    return None


def _first_outside(values: np.ndarray, most_P: np.ndarray) -> int | None:
    """The first prompt with a value that is NaN, below 0 or above the prompt's most."""
    if not values.size:
        return None
    values_PX = values.reshape(len(values), -1)
    right_P = (values_PX.min(axis=1) >= 0) & (values_PX.max(axis=1) <= most_P)
    return None if right_P.all() else int(np.argmin(right_P))
