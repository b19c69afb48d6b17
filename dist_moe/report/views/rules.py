"""A store's masks against those that would be selected otherwise: by another rule, or from other counts."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from dist_moe.errors import UserError
from dist_moe.report.views.compare import BATCH_COLUMNS, difference
from dist_moe.report.views.view import View
from dist_moe.rules import Rule
from dist_moe.selection.choose import TABLES, mask_plan, masks_by, population_of, settings_of, sums_of
from dist_moe.selection.stored import stored_rule
from dist_moe.selection.words import changed_rule
from dist_moe.store.read import MaskStore


def diff_rule(store: MaskStore, words: Mapping[str, str]) -> View:
    """The stored masks against those of another rule, selected from the counts.

    The same as `dist-moe select` writes.

    Args:
        store: one whose counts are there.
        words: parameters of the rule and their values as text, such as threshold and "0.02"; with `name` another rule.

    Raises:
        UserError: there is no such rule or parameter, or the rule needs what was not measured.
    """
    rule = changed_rule(stored_rule(store), words)
    return _against(store, rule, {"first": store.selection_rule, "second": rule.facts})


def prefill(store: MaskStore) -> View:
    """The masks, which come from the model's answers, against what the same rule selects where it reads the prompts.

    Args:
        store: one of an analysis that counted what the model generated.

    Raises:
        UserError: it is of another analysis, or its rule needs more than the counts.
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
    """The stored masks against others of the same batches."""
    counts, settings = store.counts, settings_of(store)
    mask_plan(counts, rule, settings)  # for its errors
    population = population_of(sums_of(counts, batches, rule, prefix=prefix) for batches in counts.steps())
    lines, tables = [], []
    for start, stop in store.masks.slabs(0, len(store.masks)):
        risk_diff_BLE = counts.risk_diff[start:stop]
        others = masks_by(counts, rule, settings, range(start, stop), population, prefix=prefix).masks_BLE
        for index, (mask_LE, other_LE) in enumerate(zip(store.masks[start:stop], others, strict=True), start):
            line, table = difference(store, index, mask_LE, other_LE)
            table["risk_diff"] = risk_diff_BLE[index - start][table["layer"], table["expert"]]
            lines.append(line)
            tables.append(table)
    by_batch = pd.DataFrame(lines, columns=BATCH_COLUMNS)
    by_expert = pd.concat(tables, ignore_index=True)
    facts |= {
        "batches_with_other_masks": int((by_batch["jaccard"] < 1).sum()),
        "experts_that_differ": len(by_expert),
        "mean_jaccard": float(by_batch["jaccard"].mean()),
    }
    return View(facts, {"batches": by_batch, "experts that differ": by_expert})
