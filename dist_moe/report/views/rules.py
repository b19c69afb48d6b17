"""Views that compare a store's masks with those that another rule, or other counts, would give."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dist_moe.errors import UserError
from dist_moe.report.views.compare import differences
from dist_moe.report.views.view import View
from dist_moe.rules import Rule
from dist_moe.selection.choose import TABLES, evidence_for, mask_plan, population_of, settings_of, sums_of
from dist_moe.selection.stored import stored_rule
from dist_moe.selection.words import changed_rule
from dist_moe.store.read import MaskStore


def diff_rule(store: MaskStore, words: Mapping[str, str]) -> View:
    """Compare the stored masks with those that another rule selects from the same counts, as `dist-moe select` would.

    Args:
        store: a mask store whose counts are available.
        words: parameters of the rule as text, such as threshold: "0.02"; with `name` another rule.

    Raises:
        UserError: there is no such rule or parameter, or the rule needs something that was not measured.
    """
    rule = changed_rule(stored_rule(store), words)
    return _against(store, rule, {"first": store.selection_rule, "second": rule.facts})


def prefill(store: MaskStore) -> View:
    """Compare the masks, selected from the model's answers, with those that the same rule selects from reading the
    prompts.

    Args:
        store: masks of an analysis with `tokens: generated`.

    Raises:
        UserError: it is another kind of analysis, or its rule needs more than the counts.
    """
    if "prefill_counts" not in store.counts.table_names:
        raise UserError(
            f"{store.path} has no separate counts for prompts and answers: only analysis.tokens = generated has both"
        )
    rule = stored_rule(store)
    if lacking := sorted(rule.needs & TABLES.keys()):
        raise UserError(f"the rule {rule.name} needs {lacking[0]}, which are measured for answers only")
    return _against(store, rule, {"first": "answers", "second": "prompts", "rule": rule.facts}, prefix="prefill_")


def _against(store: MaskStore, rule: Rule, facts: dict[str, Any], *, prefix: str = "") -> View:
    """Compare the stored masks with others of the same batches."""
    counts, settings = store.counts, settings_of(store)
    mask_plan(counts, rule, settings)  # for its errors
    population = None
    if rule.needs & {"population", "union"}:
        population = population_of(sums_of(counts, batches, rule, prefix=prefix) for batches in counts.steps())
    batches, experts = [], []
    for start, stop in store.masks.slabs(0, len(store.masks)):
        each = evidence_for(rule, counts, settings, range(start, stop), population, prefix=prefix)
        others_BLE, risk_diff_BLE = (
            np.array(found) for found in zip(*((rule.select(one), one.risk_diff_LE) for one in each), strict=True)
        )
        if prefix:
            risk_diff_BLE = counts.risk_diff[start:stop]
        of_batches, of_experts = differences(store, range(start, stop), store.masks[start:stop], others_BLE)
        where = of_experts["batch"] - start, of_experts["layer"], of_experts["expert"]
        batches.append(of_batches)
        experts.append(of_experts.assign(risk_diff=risk_diff_BLE[where]))
    by_batch, by_expert = (pd.concat(tables, ignore_index=True) for tables in (batches, experts))
    facts |= {
        "batches_with_other_masks": int((by_batch["jaccard"] < 1).sum()),
        "experts_that_differ": len(by_expert),
        "mean_jaccard": float(by_batch["jaccard"].mean()),
    }
    return View(facts, {"batches": by_batch, "experts that differ": by_expert})
