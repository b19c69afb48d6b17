"""A store's masks against those that would be selected otherwise: by another rule, or from other counts."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pandas as pd

from dist_moe.config.settings import from_words
from dist_moe.errors import UserError, shown
from dist_moe.report.views.compare import BATCH_COLUMNS, difference
from dist_moe.report.views.view import View
from dist_moe.rules import RULES, Rule
from dist_moe.select.stored import stored_rule
from dist_moe.stats.masks import ExpertMasks
from dist_moe.store.read import MaskStore
from dist_moe.store.recompute import computable, masks_by, stored_counts


def diff_rule(store: MaskStore, words: Mapping[str, str]) -> View:
    """The stored masks against those of another rule, selected from the counts.

    Args:
        store: one whose counts are intact.
        words: parameters of the rule and their values as text, such as threshold and "0.02"; with `name` another rule.

    Raises:
        UserError: there is no such rule or parameter, or the rule needs more than the counts.
    """
    own = stored_rule(store)
    rule = changed_rule(own, words, computable(store.tables))
    facts: dict[str, Any] = {"first": own.facts, "second": rule.facts}
    return _against(store, lambda batches: masks_by(store, batches, rule, stored_counts(store, batches)), facts)


def prefill(store: MaskStore) -> View:
    """The masks, which come from the model's answers, against what the same rule selects where it reads the prompts.

    Args:
        store: one of an analysis that counted what the model generated.

    Raises:
        UserError: it is of another analysis, or its rule needs more than the counts.
    """
    if "prefill_counts" not in store.tables:
        raise UserError(
            f"{store.path} has no counts of its prompts apart from answers: only analysis.tokens = generated has both"
        )

    rule = stored_rule(store)

    def masks(batches: range) -> ExpertMasks:
        prompts = slice(*store.starts_B1[[batches.start, batches.stop]].tolist())
        counts = store.counts(prompts, prefix="prefill_")
        return masks_by(store, batches, rule, counts)

    return _against(store, masks, {"first": "answers", "second": "prompts", "rule": rule.facts})


def _against(store: MaskStore, masks_of: Callable[[range], ExpertMasks], facts: dict[str, Any]) -> View:
    """The stored masks against others of the same batches."""
    lines, tables = [], []
    for start, stop in store.masks.slabs(0, len(store.masks)):
        risk_diff_BLE = store.risk_diff[start:stop]
        others = masks_of(range(start, stop)).masks_BLE
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


def changed_rule(rule: Rule, words: Mapping[str, str], allowed: Collection[str]) -> Rule:
    """The rule with another name, one of `allowed`, or other parameters, given as text.

    Raises:
        UserError: there is no such rule or parameter, or the value is none that the configuration would take.
    """
    name = words.get("name", rule.name)
    if "name" in words and name not in allowed:
        raise UserError(f"no rule {shown(name)} that needs counts only: expected {', '.join(sorted(allowed))}")
    changed = rule.like(RULES[name])
    known = [field.name for field in dataclasses.fields(changed)]
    values: dict[str, Any] = {}
    for key, word in words.items():
        if key == "name":
            continue
        if key not in known:
            raise UserError(f"the rule {name} has no parameter {shown(key)}: expected {', '.join(known)}")
        values[key] = from_words(f"analysis.{key}", [word], f"{key}={word}")
    return dataclasses.replace(changed, **values)
