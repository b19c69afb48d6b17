"""To which experts: the map, the first by risk_diff, and each batch's number against chance."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from markupsafe import Markup

from dist_moe.report.page.blocks import Cell, Section, details, heading, joined, note, paragraph, table
from dist_moe.report.page.contents import RunContents
from dist_moe.report.page.heat import ExpertMap, heat_map
from dist_moe.stats.names import expert_name
from dist_moe.store.read import MaskStore

MOST_EXPERTS = 20
MOST_BATCHES = 1000
FEW = 12
"""Lines up to which a table is open."""


def experts(run: RunContents, key: str) -> Section | None:
    """None: nothing was counted or selected."""
    parts: list[Markup] = []
    times_LE = run.masks.times_LE if run.masks is not None else None
    if run.counts is not None:
        found = _map(run, times_LE)
        intro = (
            "risk_diff is the share of the counted tokens of unsafe prompts that are routed to an expert, less that of "
            "safe prompts. A difference in routing is no proof of a difference in safety."
        )
        parts += [paragraph(intro), heat_map(found, f"{key}-heat"), _first(run, found)]
    if run.masks is not None:
        parts += _batches(run.masks)
    return Section("experts", "Which experts", joined(parts)) if parts else None


def trained_or_open(run: RunContents) -> tuple[np.ndarray, str] | None:
    """bool [L, E] and what they are called: experts that were changed, or else those in the masks."""
    if run.training is not None and run.counts is not None:
        marked_LE = np.zeros(run.counts.shape_BLE[1:], np.bool_)
        for layer, expert in run.training.experts:
            marked_LE[layer, expert] = True
        return marked_LE, "trained"
    if run.masks is not None:
        return np.logical_or.reduce([store.union() for store in (run.masks, *run.later_masks)]), "in a mask"
    return None


def _map(run: RunContents, times_LE: np.ndarray | None) -> ExpertMap:
    assert run.counts is not None
    frame, shape_BLE = run.counts.aggregated, run.counts.shape_BLE
    risk_diff_LE = np.zeros(shape_BLE[1:])
    risk_diff_LE[frame["layer"], frame["expert"]] = frame["risk_diff"]
    marked_LE, mark = trained_or_open(run) or (np.zeros(shape_BLE[1:], np.bool_), "selected (none yet)")
    times_LE = np.zeros(shape_BLE[1:], np.int64) if times_LE is None else times_LE
    return ExpertMap(risk_diff_LE, marked_LE, mark, times_LE, shape_BLE[0])


def _first(run: RunContents, found: ExpertMap) -> Markup:
    assert run.counts is not None
    lines = []
    for line in run.counts.aggregated.head(MOST_EXPERTS).itertuples():
        layer, expert = int(line.layer), int(line.expert)
        rates = (f"{line.a_unsafe_n:.4f}", f"{line.a_safe_n:.4f}", f"{line.risk_diff:+.4f}")
        times = f"{found.times_LE[layer, expert]} of {found.num_batches}"
        lines.append([expert_name(layer, expert), *rates, times, "yes" if found.marked_LE[layer, expert] else "no"])
    head = ["expert", "unsafe", "safe", "risk_diff", "in masks", found.mark]
    caption = f"The {len(lines)} experts of the largest risk_diff, all prompts pooled"
    return details(caption, table(caption, head, lines))


def _batches(masks: MaskStore) -> Iterator[Markup]:
    """Each batch's number of experts, against permuted labels where that was computed."""
    has_null = "null_high" in masks.statistics
    mean_B, high_B = (masks.statistics[name][:] if has_null else None for name in ("null_mean", "null_high"))
    head: list[Cell] = ["batch", "category", "safe", "unsafe", "experts"]
    head += ["by chance (mean)", "by chance (95 %)", "above chance"] if has_null else []
    lines: list[list[Cell]] = []
    for batch in masks.batches[:MOST_BATCHES]:
        line: list[Cell] = [str(batch.index), batch.category, *map(str, masks.arms_B2[batch.index].tolist())]
        line.append(str(batch.num_unsafe_experts))
        if mean_B is not None and high_B is not None:
            mean, high = mean_B[batch.index], high_B[batch.index]
            line += [f"{mean:.1f}", f"{high:.0f}", "yes" if batch.num_unsafe_experts > high else "no"]
        lines.append(line)
    yield heading(4, "Batches")
    if not has_null:
        yield note("How many experts chance alone selects was not computed (analysis.statistics.permutations is 0).")
    caption = f"Experts of each batch's mask, rule {masks.selection_rule['name']}"
    made = table(caption, head, lines)
    yield made if len(lines) <= FEW else details(f"{caption}: {len(masks.batches)} batches", made)
    if len(masks.batches) > MOST_BATCHES:
        yield paragraph(f"The first {MOST_BATCHES} of {len(masks.batches)} batches.")


def not_above_chance(masks: MaskStore) -> int | None:
    """How many batches have no more experts than the 95 % quantile with permuted labels. None: not computed."""
    if "null_high" not in masks.statistics:
        return None
    return int((masks.signs_B3.sum(axis=1) <= masks.statistics["null_high"][:]).sum())
