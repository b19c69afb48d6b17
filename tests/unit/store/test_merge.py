"""Parts of one analysis, written as stores of their own, give the store of one job; other stores are refused."""

import dataclasses

import numpy as np
import pytest

from dist_moe.errors import UserError
from dist_moe.rules.select import SelectionRule
from dist_moe.stats.masks import ExpertMasks
from dist_moe.store import MaskStore, write_store
from dist_moe.store.merge import merge
from tests.unit.store.example import PROVENANCE, Contents, example_contents, tiled_contents
from tests.unit.store.killed_writers import visible
from tests.unit.store.version_1 import write_version_1


def whole() -> Contents:
    q_BLE = np.random.default_rng(0).random((150, 2, 4)).astype(np.float32)
    return tiled_contents(50).changed(statistics={"q": q_BLE})


def part(contents: Contents, start: int, stop: int, *, numbered: bool = True) -> Contents:
    """What a job has that analyses only these batches."""
    plan, results = contents
    prompts = (plan.batch_of_P >= start) & (plan.batch_of_P < stop)
    own = dataclasses.replace(
        plan,
        prompt_ids=tuple(np.array(plan.prompt_ids, object)[prompts]),
        unsafe_P=plan.unsafe_P[prompts],
        batch_of_P=plan.batch_of_P[prompts] - start,
        batch_ids=plan.batch_ids[start:stop],
        categories=plan.categories[start:stop],
        part=(start, len(plan.batch_ids)) if numbered else None,
    )
    return Contents(own, results.of(plan, range(start, stop)))


def write_parts(tmp_path, contents, borders, **options):
    stores = []
    for start, stop in borders:
        write_store(tmp_path / f"{start}.zarr", *part(contents, start, stop, **options))
        stores.append(MaskStore.open(tmp_path / f"{start}.zarr"))
    return stores


@pytest.mark.parametrize("numbered", [True, False])
def test_parts_are_the_whole_bit_for_bit(tmp_path, numbered):
    contents = whole()
    write_store(tmp_path / "whole.zarr", *contents)
    stores = write_parts(tmp_path, contents, [(0, 7), (7, 100), (100, 150)], numbered=numbered)
    merge(stores[::-1] if numbered else stores, tmp_path / "merged.zarr")
    assert visible(tmp_path / "merged.zarr") == visible(tmp_path / "whole.zarr")


def test_an_older_version_can_be_a_part(tmp_path):
    contents = tiled_contents(2)
    contents = contents.changed(counts=dataclasses.replace(contents.results.counts, tables={}))
    write_store(tmp_path / "whole.zarr", *contents)
    write_store(tmp_path / "first.zarr", *part(contents, 0, 2, numbered=False))
    write_version_1(tmp_path / "second.zarr", *part(contents, 2, 6, numbered=False))
    merge([MaskStore.open(tmp_path / name) for name in ("first.zarr", "second.zarr")], tmp_path / "merged.zarr")
    assert visible(tmp_path / "merged.zarr") == visible(tmp_path / "whole.zarr")


@pytest.mark.parametrize(
    ("borders", "message"),
    [
        ([(0, 7), (8, 150)], "batches 7 to 7 of 150 are in none of the stores"),
        ([(3, 150)], "batches 0 to 2 of 150 are in none of the stores"),
        ([(0, 7), (7, 149)], "batches 149 to 149 of 150 are in none of the stores"),
        ([(0, 70), (69, 150)], "begins with batch 69, which another part has too"),
    ],
)
def test_parts_that_do_not_make_the_plan(tmp_path, borders, message):
    with pytest.raises(UserError, match=message):
        merge(write_parts(tmp_path, whole(), borders), tmp_path / "merged.zarr")
    assert not (tmp_path / "merged.zarr").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": SelectionRule(threshold=0.05, top_k=9)}, "selection_rule.top_k is 50 and 9"),
        ({"provenance": PROVENANCE | {"model_hash": "e"}}, "provenance.model_hash is 'a1a1.*' and 'e'"),
        ({"counted_tokens": "all"}, "counted_tokens is 'prompt' and 'all'"),
        ({"statistics": {"q": np.zeros(3, np.float32)}}, "other experts, statistics or tables"),
    ],
)
def test_stores_of_two_analyses(tmp_path, change, message):
    write_store(tmp_path / "one.zarr", *example_contents())
    write_store(tmp_path / "other.zarr", *example_contents().changed(**change))
    with pytest.raises(UserError, match=f"are not of one analysis: {message}"):
        merge([MaskStore.open(tmp_path / name) for name in ("one.zarr", "other.zarr")], tmp_path / "merged.zarr")


def test_a_batch_in_two_stores(tmp_path):
    write_store(tmp_path / "one.zarr", *example_contents())
    write_store(tmp_path / "other.zarr", *example_contents())
    with pytest.raises(
        UserError, match=r"batch 00aa11bb22cc33dd is in .*one\.zarr and in .*other\.zarr: merge it once"
    ):
        merge([MaskStore.open(tmp_path / name) for name in ("one.zarr", "other.zarr")], tmp_path / "merged.zarr")


def test_masks_are_carried_over_even_if_they_do_not_follow_from_counts(tmp_path):
    contents = example_contents()
    masks = ExpertMasks(~contents.results.masks.masks_BLE)
    write_store(tmp_path / "one.zarr", *contents.changed(masks=masks))
    merge([MaskStore.open(tmp_path / "one.zarr")], tmp_path / "merged.zarr")
    assert MaskStore.open(tmp_path / "merged.zarr").masks[:].tobytes() == masks.masks_BLE.tobytes()
