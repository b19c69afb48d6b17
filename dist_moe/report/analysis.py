"""The report that an analysis prints: experts of each batch against chance, top experts, similarity within
categories."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from dist_moe.selection.choose import seed_of, share_selected, unselected
from dist_moe.selection.evidence import can_be_pooled, pooled_evidence
from dist_moe.selection.statistics import add_statistics
from dist_moe.selection.stored import stored_rule
from dist_moe.selection.structure import overall
from dist_moe.stats.settings import StatisticsConfig
from dist_moe.stats.specificity import category_specificity, union_growth
from dist_moe.store.read import MaskStore

MOST_BATCHES = 1000
"""Up to this number, every batch is listed and all pairs are compared; for more, use `dist-moe inspect`."""
MANY_EMPTY = 0.1
"""From this share of batches without an expert on, a warning says why."""
HARDLY = 0.5
"""If a control and its rule share more of their experts, a warning says so."""

COLUMNS = {
    "Layer_Expert": "{}",
    "risk_diff": "{:.4f}",
    "interval": "{}",
    "q_value": "{:.4f}",
    "stability": "{:.2f}",
    "a_safe_n": "{:.4f}",
    "a_unsafe_n": "{:.4f}",
}


def report(store: MaskStore, settings: StatisticsConfig) -> Iterator[str]:
    """The report, line by line: experts of each batch, top 10 over all prompts, top 5 of the first batch of each
    category. If there are few enough prompts, all of them are also tested together."""
    counts, seed = store.counts, seed_of(store.counts)
    yield "Per-batch unsafe experts count:"
    yield from _counts(store)
    if store.statistics and "smallest_p_value" in store.statistics:
        smallest = store.statistics["smallest_p_value"][:]
        ends = dict.fromkeys(f"{value:.2g}" for value in (smallest.min(), smallest.max()))
        yield f"Smallest p-value that is possible in a batch: {' to '.join(ends)}"
    if len(store.batches) > 1:
        yield from _overlap(store, seed)
    selected = len(overall(store))
    table = counts.aggregated
    if settings.permutations and can_be_pooled(counts.index, settings):
        pooled = pooled_evidence(counts.index, counts.of_batches(range(len(counts.index)), tables=()), settings, seed)
        table = add_statistics(table, pooled, stored_rule(store))
    yield (f"Global unsafe experts (by threshold and top_k, all prompts pooled): {selected}; top 10 by risk_diff:")
    yield _table(table, 10)
    first = {batch.category: batch for batch in reversed(store.batches)}
    for batch in sorted(first.values(), key=lambda batch: batch.index):
        yield f"Top 5 of {batch.name}:"
        yield _table(store.batch_table(batch.index), 5)
    yield from empty_lines(store)
    yield from control_lines(store)


def empty_lines(masks: MaskStore) -> Iterator[str]:
    """A warning, with the cause, if many batches have no expert; nothing otherwise."""
    seen = unselected(masks, masks.counts)
    if seen is not None and seen.num_empty >= MANY_EMPTY * seen.num_batches:
        why = stored_rule(masks).counted_as.none_selected(seen)
        yield (
            f"WARNING: {seen.num_empty} of {seen.num_batches} batches have no expert, so their steps train none: {why}"
        )


def control_lines(masks: MaskStore) -> Iterator[str]:
    """How far a control's masks are those of the rule that it is a control for; nothing for any other rule."""
    share = share_selected(masks, masks.counts)
    if share is not None:
        itself = stored_rule(masks).counted_as.name
        line = f"{share:.0%} of the experts in the masks of this control are also in those of {itself}"
        hardly = "they hardly differ, so it shows nothing; where a layer has few experts, random draws from all layers"
        yield f"WARNING: {line}: {hardly}" if share > HARDLY else line


def sizes_line(masks: MaskStore) -> str:
    """How many experts a mask set has, in a line."""
    sizes, name = masks.signs_B3.sum(axis=1), masks.selection_rule["name"]
    spread = f"Min {sizes.min()}, Max {sizes.max()}, Mean {sizes.mean():.1f}"
    return f"Unsafe experts per batch by {name}: {spread}; {masks.union().sum()} in the union"


def _counts(store: MaskStore) -> Iterator[str]:
    has_null = "null_high" in store.statistics
    mean_B, high_B = (store.statistics[name][:] if has_null else np.empty(0) for name in ("null_mean", "null_high"))
    weak = {batch.index for batch in store.batches if has_null and batch.num_unsafe_experts <= high_B[batch.index]}
    for batch in store.batches[:MOST_BATCHES]:
        line = f"  Batch {batch.index} ({batch.category}): {batch.num_unsafe_experts}"
        if has_null:
            line += f" (with permuted labels: mean {mean_B[batch.index]:.1f}, 95 % quantile {high_B[batch.index]:.0f})"
        yield f"{line} NOT ABOVE CHANCE" if batch.index in weak else line
    if len(store.batches) > MOST_BATCHES:
        yield f"  ... and {len(store.batches) - MOST_BATCHES} more, which dist-moe inspect {store.path} lists"
    if weak:
        yield (
            f"WARNING: {len(weak)} of {len(store.batches)} batches have no more experts than the 95 % quantile with "
            "permuted labels: their masks may be noise. Use larger batches or a stricter rule (docs/statistics.md)"
        )


def _overlap(store: MaskStore, seed: int) -> Iterator[str]:
    masks_BLE = store.masks[:]
    found = category_specificity(masks_BLE, store.categories, 1000, np.random.default_rng([seed, *b"specificity"]))
    if found is not None:
        of = f"{found.num_batches} batches drawn, " if found.num_batches < len(masks_BLE) else ""
        yield (
            f"Similarity of the batches' masks ({of}mean Jaccard): {found.within:.3f} within categories, "
            f"{found.between:.3f} between; p = {found.p:.3g} with permuted categories"
        )
    growth = union_growth(masks_BLE)
    steps = sorted({min(len(masks_BLE), 2**power) for power in range(len(masks_BLE).bit_length() + 1)})
    sizes = (f"{n}: {growth.mean_B[n - 1]:.0f} (sd {growth.deviation_B[n - 1]:.0f})" for n in steps)
    yield f"Experts in the union of n batches (mean and standard deviation over all choices of n): {', '.join(sizes)}"


def _table(frame: pd.DataFrame, num_lines: int) -> str:
    shown = frame.head(num_lines).copy()
    if "interval_low" in shown:
        ends = zip(shown["interval_low"], shown["interval_high"], strict=True)
        shown["interval"] = [f"[{low:.4f}, {high:.4f}]" for low, high in ends]
    columns = [name for name in COLUMNS if name in shown]
    return shown[columns].to_string(index=False, formatters={name: COLUMNS[name].format for name in columns})
