"""Before and after, by batch or category: the same rows scored twice."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dist_moe.data.index import BatchIndex
from dist_moe.evaluation.score import RowScore

MEASURES = ("refusal loss (unsafe)", "answer loss (safe)", "refused (unsafe)", "refused (safe)")


def score_frame(scores: Sequence[RowScore], index: BatchIndex) -> pd.DataFrame:
    """One line a row: batch, category, unsafe, loss_sum, num_loss_tokens, refused, answer."""
    return pd.DataFrame(
        {
            "batch": index.batch_of_P,
            "category": [index.categories[batch] for batch in index.batch_of_P],
            "unsafe": index.unsafe_P,
            "loss_sum": [s.loss_sum for s in scores],
            "num_loss_tokens": [s.num_loss_tokens for s in scores],
            "refused": [s.refused for s in scores],
            "answer": [s.answer for s in scores],
        }
    )


def summary(frame: pd.DataFrame, by: str | None) -> pd.DataFrame:
    """The four `MEASURES` for each value of a column (batch, category), or over all rows (None).

    Losses are means over response tokens (NaN where no row has a response), refusals are shares of rows.
    """
    groups = frame.groupby(by, sort=True) if by else [("all", frame)]
    lines = {}
    for key, group in groups:
        line = []
        for unsafe in (True, False):
            arm = group[group["unsafe"] == unsafe]
            num_tokens = arm["num_loss_tokens"].sum()
            line.append((arm["loss_sum"].sum() / num_tokens if num_tokens else float("nan"), arm["refused"].mean()))
        (refusal_loss, refused_unsafe), (answer_loss, refused_safe) = line
        lines[key] = (refusal_loss, answer_loss, refused_unsafe, refused_safe)
    return pd.DataFrame.from_dict(lines, orient="index", columns=list(MEASURES))


def before_after(before: pd.DataFrame, after: pd.DataFrame, by: str | None) -> pd.DataFrame:
    """Two scored frames of the same rows side by side: columns (measure, before | after)."""
    parts = {"before": summary(before, by), "after": summary(after, by)}
    joined = pd.concat(parts, axis=1).swaplevel(axis=1)
    return joined[[(measure, when) for measure in MEASURES for when in parts]]
