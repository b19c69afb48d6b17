"""Revisions of a mask set: a store each, none ever changed, in a chain of digests."""

import dataclasses

import pytest

from dist_moe.errors import UserError
from dist_moe.store import MaskStore, write_store
from dist_moe.store.origin import require_follows
from tests.unit.store.example import example_contents, write_example


def revision(path, plan):
    write_store(path, plan, example_contents().results)
    return MaskStore.open(path)


@pytest.fixture
def first(tmp_path):
    return MaskStore.open(write_example(tmp_path / "masks.zarr"))


@pytest.fixture
def second(first, tmp_path):
    plan = example_contents().plan.revised(first.digest, counts_digest="f6" * 32)
    return revision(tmp_path / "masks.r1.zarr", plan)


def test_a_revision_says_its_number_the_one_before_and_its_counts(first, second):
    assert (first.revision, first.previous) == (0, None)
    assert (second.revision, second.previous, second.counts_digest) == (1, first.digest, "f6" * 32)
    require_follows(first, second)
    assert first.digest != second.digest


def test_what_does_not_follow_is_refused(first, second, tmp_path):
    plan = example_contents().plan
    third = revision(tmp_path / "masks.r2.zarr", dataclasses.replace(plan, revision=2, previous=second.digest))
    require_follows(second, third)
    for before, after in ((first, third), (second, first), (third, second), (first, first)):
        with pytest.raises(UserError, match=f"{after.path} is not the revision after {before.path}: it is number"):
            require_follows(before, after)
    other = revision(tmp_path / "other.r1.zarr", plan.revised("a" * 64))
    with pytest.raises(UserError, match="is not the revision after"):
        require_follows(first, other)
    index = dataclasses.replace(plan.index, ids=("x", "y", "z"))
    batches = revision(tmp_path / "batches.r1.zarr", plan.revised(first.digest, index=index))
    with pytest.raises(UserError, match="is of other batches or another model"):
        require_follows(first, batches)
