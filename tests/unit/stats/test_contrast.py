"""Differences under many weightings at once are those of two whole products, bit for bit where weights are whole
numbers and tokens are pooled."""

import numpy as np
import pytest

from dist_moe.stats import contrast
from dist_moe.stats.contrast import all_risk_diffs
from dist_moe.stats.labelings import labelings
from dist_moe.stats.resamples import bootstrap_weights, half_samples
from tests.unit.stats.prompts import batch_of


def whole_products(unsafe_NP, safe_NP, counts, estimate):
    flat_PX = counts.counts_PLE.reshape(counts.num_prompts, -1).astype(float)
    weigh_P = counts.tokens_P.astype(float) if estimate == "micro" else np.ones(counts.num_prompts)
    if estimate == "macro":
        flat_PX = flat_PX / counts.tokens_P[:, None]
    arms = [w.astype(float) @ flat_PX / (w.astype(float) @ weigh_P)[:, None] for w in (unsafe_NP, safe_NP)]
    return (arms[0] - arms[1]).reshape(len(unsafe_NP), *counts.counts_PLE.shape[1:])


def weightings(batch, kind):
    unsafe_P, generator = batch.unsafe_P, np.random.default_rng(0)
    if kind == "labels":
        labels_NP, _ = labelings(unsafe_P, batch.design, 50, generator)
        return labels_NP, ~labels_NP
    if kind == "half-samples":
        chosen_NP = half_samples(unsafe_P, batch.design, 50, generator)
        return chosen_NP & unsafe_P, chosen_NP & ~unsafe_P
    if kind == "prompts in both arms":  # neither the same prompts throughout, nor an arm's own
        weights_NP = generator.integers(1, 4, (2, 50, len(unsafe_P)))
        return weights_NP[0], weights_NP[1]
    weights_NP = bootstrap_weights(unsafe_P, batch.design, 50, generator)
    return weights_NP * unsafe_P, weights_NP * ~unsafe_P


@pytest.mark.parametrize("kind", ["labels", "half-samples", "bootstrap", "prompts in both arms"])
@pytest.mark.parametrize("at_once", [1 << 16, 350])
def test_differences_are_those_of_two_whole_products(kind, at_once, monkeypatch):
    monkeypatch.setattr(contrast, "VALUES_AT_ONCE", at_once)  # 350: parts of 7 experts
    batch = batch_of(0)
    arms = weightings(batch, kind)
    micro, macro = (all_risk_diffs(*arms, batch.counts, estimate) for estimate in ("micro", "macro"))
    assert micro.tobytes() == whole_products(*arms, batch.counts, "micro").tobytes()
    np.testing.assert_allclose(macro, whole_products(*arms, batch.counts, "macro"), rtol=1e-12, atol=1e-15)
