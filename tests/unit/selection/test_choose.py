"""Selecting from a counts store: what is drawn follows from the seed of the run that counted."""

import numpy as np
import pytest

from dist_moe.selection.choose import evidence_for, population_of, selected, sums_of
from dist_moe.selection.evidence import evidence_of_each
from dist_moe.stats.settings import StatisticsConfig
from dist_moe.store import Counts
from tests.unit.rules.made import made
from tests.unit.store.example import PROVENANCE, tiled_contents, write_contents

SETTINGS = StatisticsConfig(permutations=20, resamples=8, null_draws=2)


@pytest.fixture
def counts(tmp_path):
    write_contents(tmp_path / "masks.zarr", tiled_contents(4))
    return Counts.open(tmp_path / "counts.zarr")


@pytest.mark.parametrize("name", ["random", "stable"])
def test_draws_follow_from_the_seed_of_the_run_that_counted(counts, name):
    rule, all_batches = made(name, threshold=0.05, top_k=50), range(12)
    population = population_of(sums_of(counts, batches, rule) for batches in counts.steps())

    def of_seed(seed):
        found = counts.of_batches(all_batches, tables=())
        batches = list(evidence_of_each(counts.index, found, SETTINGS, seed, population))
        return np.array([rule.select(batch) for batch in batches]), np.array([rule.stability(b) for b in batches])

    results = selected(counts, all_batches, rule, SETTINGS, population, progress=False)
    masks_BLE, stability_BLE = of_seed(PROVENANCE["seed"])
    assert (results.masks.masks_BLE == masks_BLE).all()
    assert (results.statistics["stability"] == stability_BLE.astype(np.float32)).all()
    each = evidence_for(rule, counts, SETTINGS, all_batches, population)
    assert (np.array([rule.select(batch) for batch in each]) == masks_BLE).all()
    if name == "random":
        assert (of_seed(PROVENANCE["seed"] + 1)[0] != masks_BLE).any(), "the seed makes no difference"
