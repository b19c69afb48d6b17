"""Checks that stored measurements are possible, before they are used."""

from collections.abc import Mapping

import numpy as np

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
    for name, values, wrong in (
        ("tokens", tokens_P, tokens_P < 0),
        ("counts", counts_PLE, (counts_PLE < 0) | (counts_PLE > tokens_P[:, None, None])),
        *((name, values, ~np.isfinite(values) | (values < 0)) for name, values in tables.items()),
    ):
        if wrong.any():
            prompt, *expert = np.argwhere(wrong)[0].tolist()
            of = f", {expert_name(*expert)}" if expert else ""
            tokens = f" of {tokens_P[prompt]} tokens" if name == "counts" else ""
            return name, prompt, f"{values[(prompt, *expert)]}{tokens}{of},"
    sums_PL = counts_PLE.sum(axis=2)
    wrong = sums_PL > experts_per_token * tokens_P[:, None]
    if wrong.any():
        prompt, layer = np.argwhere(wrong)[0].tolist()
        most = f"{experts_per_token} experts a token and {tokens_P[prompt]} tokens"
        return "counts", prompt, f"{sums_PL[prompt, layer]} in layer {layer}, at {most},"
    return None
