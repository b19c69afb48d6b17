"""The older scripts' structure: what a mask store says, as files that they can read, and back into the same store."""

import shutil

import numpy as np
import pandas as pd
import pytest

import dist_moe
from dist_moe.artefacts import Written
from dist_moe.cli.main import main
from dist_moe.errors import UserError
from dist_moe.selection.structure import FACTS, GLOBAL, LISTS, MASKS, TABLE, read_structure
from dist_moe.store import MaskStore
from tests.bad_inputs.forge import cut, reseal
from tests.unit.store import example
from tests.unit.store.example import tiled_contents, write_contents, write_example

COUNTS_PLE = example.COUNTS_PLE[:, ::-1, ::-1].copy()
"""The other way round, so that no batch's experts are in the order of layers."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run directory with masks and counts, and what is exported beside them."""
    place = tmp_path_factory.mktemp("structure")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, "COUNTS_PLE", COUNTS_PLE)
        write_example(place / "masks.zarr")
    assert main(["store", "export", str(place / "masks.zarr"), str(place / "older")]) == 0
    return place


@pytest.fixture
def place(exported, tmp_path):
    """A copy for one test."""
    return shutil.copytree(exported, tmp_path / "run")


def by_hand():
    """risk_diff of the example, [L, E]: of its 3 batches, whose safe prompt comes first, and of all prompts."""
    tokens = np.array([10, 10, 10, 10, 20, 20])
    of_batches = [COUNTS_PLE[2 * b + 1] / tokens[2 * b + 1] - COUNTS_PLE[2 * b] / tokens[2 * b] for b in range(3)]
    pooled = COUNTS_PLE[1::2].sum(0) / tokens[1::2].sum() - COUNTS_PLE[::2].sum(0) / tokens[::2].sum()
    return of_batches, pooled


def chosen(diff_LE, masked_LE):
    """(layer, expert) of the masked experts, largest difference first."""
    order = np.argsort(-diff_LE.ravel(), kind="stable")
    return [divmod(int(i), diff_LE.shape[1]) for i in order if masked_LE.ravel()[i]]


def test_the_files_are_what_an_older_script_expects(place):
    """Read without this package."""
    of_batches, pooled = by_hand()
    masks = np.load(place / "older" / MASKS)["batch_expert_masks"]
    lists = pd.read_parquet(place / "older" / LISTS)
    assert masks.shape == (3, *pooled.shape)
    for batch, diff_LE in enumerate(of_batches):
        found = lists[lists["batch"] == batch]
        assert np.array_equal(masks[batch], diff_LE > 0.05)
        assert list(zip(found["layer"], found["expert"], strict=True)) == chosen(diff_LE, diff_LE > 0.05)
        assert found["rank"].tolist() == list(range(len(found)))
    pairs = list(zip(lists["batch"], lists["layer"], lists["expert"], strict=True))
    assert pairs != sorted(pairs), "the order of layers is that of risk_diff"
    table, overall = pd.read_parquet(place / "older" / TABLE), pd.read_parquet(place / "older" / GLOBAL)
    np.testing.assert_allclose(table["risk_diff"], pooled[table["layer"], table["expert"]], atol=1e-12)
    assert list(zip(table["layer"], table["expert"], strict=True)) == chosen(pooled, np.ones_like(pooled, bool))
    assert list(zip(overall["layer"], overall["expert"], strict=True)) == chosen(pooled, pooled > 0.05)


def test_the_function_has_the_same_as_attributes(place):
    found, (read, _) = dist_moe.older_structure(place / "masks.zarr"), read_structure(place / "older")
    of_batches, pooled = by_hand()
    assert found.batch_unsafe_experts == read.batch_unsafe_experts
    assert [list(pairs) for pairs in found.batch_unsafe_experts] == [chosen(each, each > 0.05) for each in of_batches]
    assert found.global_unsafe_experts == read.global_unsafe_experts == tuple(chosen(pooled, pooled > 0.05))
    assert (found.batch_expert_masks == read.batch_expert_masks).all()
    pd.testing.assert_frame_equal(found.aggregated_risk_diff, read.aggregated_risk_diff, check_exact=True)


def test_read_back_it_is_the_same_store(place, capsys):
    """The example has no statistics, so it is the same to the last byte, and fits its counts."""
    assert main(["import", str(place / "older"), "--out", str(place / "back")]) == 0
    assert "older: 3 batches with" in capsys.readouterr().out
    before, back = MaskStore.open_whole(place / "masks.zarr"), MaskStore.open_whole(place / "back" / "masks.zarr")
    assert back.digest == before.digest
    assert main(["store", "diff", str(before.path), str(back.path)]) == 0


def test_many_batches_and_empty_ones_come_back(tmp_path):
    write_contents(tmp_path / "masks.zarr", tiled_contents(25))
    assert main(["store", "export", str(tmp_path / "masks.zarr"), str(tmp_path / "older")]) == 0
    assert main(["import", str(tmp_path / "older"), "--out", str(tmp_path / "back")]) == 0
    assert MaskStore.open(tmp_path / "back" / "masks.zarr").digest == MaskStore.open(tmp_path / "masks.zarr").digest


def edit(name, change):
    """Change a file, and write its digest into the facts, as this package never does."""

    def apply(older):
        change(older / name)
        reseal(str(older / FACTS), lambda facts: facts["files"].update({name: vars_of(Written.of(older / name))}))

    return apply


def vars_of(written):
    return {"sha256": written.sha256, "num_bytes": written.num_bytes}


def facts(change):
    return lambda older: reseal(str(older / FACTS), change)


def without_a_line(path):
    pd.read_parquet(path).iloc[1:].to_parquet(path, index=False)


def as_numbers(path):
    np.savez_compressed(path, batch_expert_masks=np.load(path)["batch_expert_masks"].astype(np.float32))


def pickled(path):
    np.savez_compressed(path, batch_expert_masks=np.array([{}, None], dtype=object))


WRONG = {
    "a file less": (lambda older: (older / GLOBAL).unlink(), f"{GLOBAL} is missing"),
    "a file more": (lambda older: (older / "more").touch(), "more does not belong there"),
    "no facts": (lambda older: (older / FACTS).unlink(), "Is a directory"),
    "a changed table": (lambda older: without_a_line(older / TABLE), f"{TABLE} has changed since it was written"),
    "a table cut short": (edit(TABLE, lambda path: cut(str(path), 100)), "a file cannot be read"),
    "a list without one": (edit(LISTS, without_a_line), f"{LISTS} and {MASKS} are not of the same experts"),
    "masks as numbers": (edit(MASKS, as_numbers), f"{MASKS} holds float32"),
    "pickled masks": (edit(MASKS, pickled), "a file cannot be read"),
    "no such rule": (
        facts(lambda values: values["selection_rule"].update(name="mine")),
        "which no rule of this version",
    ),
    "signs of other masks": (facts(lambda values: values.update(batch_signs=[[0, 0, 0]] * 3)), "its facts do not fit"),
    "a category less": (facts(lambda values: values["categories"].pop()), "its facts do not fit"),
    "prompts below 0": (facts(lambda values: values["batch_prompts"].__setitem__(0, [-1, 1])), "its facts do not fit"),
    "no hash": (facts(lambda values: values["provenance"].pop("model_hash")), "its facts do not fit"),
    "a revision of nothing": (facts(lambda values: values.update(revision=2)), "its facts do not fit"),
    "words for numbers": (facts(lambda values: values.update(num_experts="four")), "num_experts is 'four'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_in_the_files_is_one_line(place, capsys, name):
    change, words = WRONG[name]
    change(place / "older")
    with pytest.raises(UserError):
        read_structure(place / "older")
    assert main(["import", str(place / "older"), "--out", str(place / "back")]) == 2
    line = capsys.readouterr().err
    assert words in line
    assert line.count("\n") == 1
    assert not (place / "back").exists()


def test_masks_without_their_counts_are_refused(place, capsys):
    (place / "alone").mkdir()
    (place / "masks.zarr").rename(place / "alone" / "masks.zarr")
    assert main(["store", "export", str(place / "alone" / "masks.zarr"), str(place / "other")]) == 2
    assert "holds masks only" in capsys.readouterr().err
    assert not (place / "other").exists()
