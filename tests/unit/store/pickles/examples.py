"""Older pickles as the older code wrote them, from values that are easy to compute by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PROTOCOLS = (2, 3, 4, 5)


def write_pickle(path: Path, value: Any, protocol: int = 4) -> Path:
    # pandas pickles anything; the older code used it too.
    pd.to_pickle(value, path, protocol=protocol)
    return path


def activations(*, reverse: bool = False, ratio: bool = False) -> pd.DataFrame:
    """2 layers of 3 experts: how often two arms used each (a1, a2) and did not (d1, d2)."""
    table = pd.DataFrame(
        {
            "layer": [0, 0, 0, 1, 1, 1],
            "expert": [0, 1, 2, 0, 1, 2],
            "a1": [8.0, 2.0, 10.0, 5.0, 5.0, 10.0],
            "a2": [4.0, 8.0, 8.0, 6.0, 9.0, 5.0],
            "d1": [12.0, 18.0, 10.0, 15.0, 15.0, 10.0],
            "d2": [16.0, 12.0, 12.0, 14.0, 11.0, 15.0],
        }
    )
    if ratio:
        risk_diff = table["a1"] / table["d1"] - table["a2"] / table["d2"]
    else:
        risk_diff = table["a1"] / 20 - table["a2"] / 20
    return table.assign(risk_diff=-risk_diff if reverse else risk_diff)


def logits(generator: np.random.Generator) -> np.ndarray:
    """float16 [2 layers, 5 tokens, 4 experts], all values different."""
    return generator.permuted(np.tile(np.arange(4, dtype=np.float16), (2, 5, 1)), axis=2)


def analysis() -> dict[str, Any]:
    """3 batches of 2 safe and 2 unsafe prompts; lists cut to 2 before any sort, as the older code did."""
    generator = np.random.default_rng(0)
    data, tables, lists, masks = [], [], [], []
    for batch in range(3):
        arms = [[logits(generator) for _ in range(2)] for _ in range(2)]
        used = [np.mean([_top_2(prompt).mean(axis=1) for prompt in arm], axis=0) for arm in arms]
        table = pd.DataFrame(
            [
                {"batch_idx": batch, "layer": layer, "expert": expert, "a_safe_n": used[0][layer, expert]}
                | {"a_unsafe_n": used[1][layer, expert]}
                for layer in range(2)
                for expert in range(4)
            ]
        )
        table["risk_diff"] = table["a_unsafe_n"] - table["a_safe_n"]
        cut = table[table["risk_diff"] > 0].head(2)
        pairs = [(int(layer), int(expert)) for layer, expert in zip(cut["layer"], cut["expert"], strict=True)]
        mask = np.zeros((2, 4), np.float32)
        for layer, expert in pairs:
            mask[layer, expert] = 1
        data.append({"batch_idx": batch, "safe_routings": arms[0], "unsafe_routings": arms[1]})
        tables.append(table)
        lists.append(pairs)
        masks.append(mask)
    aggregated = pd.concat(tables).groupby(["layer", "expert"])[["a_safe_n", "a_unsafe_n", "risk_diff"]].mean()
    aggregated = aggregated.reset_index().sort_values("risk_diff", ascending=False).reset_index(drop=True)
    aggregated["Layer_Expert"] = [
        f"L{layer:02d}_E{expert:02d}" for layer, expert in zip(aggregated["layer"], aggregated["expert"], strict=True)
    ]
    return {
        "batch_data_list": data,
        "batch_risk_diffs": tables,
        "batch_unsafe_experts": lists,
        "batch_expert_masks": masks,
        "aggregated_risk_diff": aggregated,
        "global_unsafe_experts": [(0, 1)],
        "num_layers": np.int64(2),
        "n_experts": 4,
        "num_experts_per_tok": 2,
    }


def _top_2(logits_LTE: np.ndarray) -> np.ndarray:
    return logits_LTE >= 2
