import hashlib
import json
import os
import subprocess
import warnings

import numpy as np
import pytest
import zarr

import dist_moe
from dist_moe.data.index import BatchIndex
from dist_moe.errors import UserError
from dist_moe.rules.threshold_top_k import ThresholdTopK
from dist_moe.selection.structure import overall
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.masks import ExpertMasks
from dist_moe.stats.order import unsafe_experts
from dist_moe.stats.table import risk_table
from dist_moe.store import BatchInfo, Counts, CountsPlan, MaskPlan, MaskResults, MaskStore, write_store
from dist_moe.store import rows as rows_module
from tests.unit.store.example import (
    BATCH_IDS,
    CATEGORIES,
    COUNTS_PLE,
    PROVENANCE,
    Contents,
    example_contents,
    tiled_contents,
    write_contents,
    write_counts,
    write_example,
)


@pytest.fixture
def store(tmp_path):
    return MaskStore.open(write_example(tmp_path / "masks.zarr"))


def test_arrays_come_back_bit_for_bit(store):
    contents, counts = example_contents(), store.counts
    assert store.masks[:].tobytes() == contents.results.masks.masks_BLE.tobytes()
    np.testing.assert_array_equal(counts.prompt_counts[:], COUNTS_PLE)
    assert counts.prompts.to_dict(orient="list") == {
        "id": list(contents.plan.index.prompt_ids),
        "unsafe": [False, True] * 3,
        "batch": [0, 0, 1, 1, 2, 2],
        "tokens": [10, 10, 10, 10, 20, 20],
    }
    assert store.arms_B2.tolist() == [[1, 1]] * 3
    assert store.signs_B3.tolist() == [[1, 0, 0], [2, 0, 0], [1, 0, 0]]


def test_rates_are_computed_from_the_counts(store):
    """As the definition says, in a loop of its own."""
    counts = store.counts
    for batch in range(3):
        safe_LE, unsafe_LE = COUNTS_PLE[2 * batch], COUNTS_PLE[2 * batch + 1]
        tokens = 20 if batch == 2 else 10
        assert counts.a_safe_n[batch].tobytes() == (safe_LE / tokens).tobytes()
        assert counts.a_unsafe_n[batch].tobytes() == (unsafe_LE / tokens).tobytes()
        assert counts.risk_diff[batch].tobytes() == (unsafe_LE / tokens - safe_LE / tokens).tobytes()
    assert counts.risk_diff[:].shape == counts.risk_diff.shape == (3, 2, 4)
    assert counts.risk_diff[:, 1, 3].tolist() == [0.0, 0.9 - 0.5, 0.8 - 0.5]
    assert counts.risk_diff[3:3].shape == (0, 2, 4)


def test_counts_that_are_not_there_or_others_are_one_line(tmp_path):
    path = write_example(tmp_path / "masks.zarr")
    (tmp_path / "counts.zarr").rename(tmp_path / "moved.zarr")
    store = MaskStore.open_whole(path)
    assert store.union().any()  # what training needs is there
    assert not store.has_counts
    with pytest.raises(UserError, match=rf"^{path} holds masks only, .* is not at {tmp_path}/counts.zarr: put it"):
        store.unsafe_experts(0)
    store.counts_place = tmp_path / "moved.zarr"
    assert store.unsafe_experts(0) == [(0, 2)]
    write_counts(tmp_path / "counts.zarr", example_contents().changed(tokens_P=np.array([10, 10, 10, 10, 20, 21])))
    with pytest.raises(UserError, match=rf"^{path} was selected from other counts than {tmp_path}/counts.zarr: digest"):
        MaskStore.open(path).batch_table(0)


def test_one_batch_is_numpy(store):
    mask_LE = store.masks[1]
    assert isinstance(mask_LE, np.ndarray)
    assert mask_LE.dtype == np.bool_
    assert mask_LE.tolist() == [[False, False, True, False], [False, False, False, True]]
    np.testing.assert_allclose(store.counts.risk_diff[1], [[0, -0.6, 0.6, 0], [-0.4, 0, 0, 0.4]])
    assert len(store.masks) == 3
    assert store.masks.shape == (3, 2, 4)
    assert store.masks[:, 0, 2].tolist() == [True, True, False]
    with pytest.raises(IndexError):
        store.masks[3]


def test_what_is_said_of_the_batches(store):
    def sha(bits):
        return hashlib.sha256(b"2x4:" + bytes([bits])).hexdigest()

    assert store.batches == (
        BatchInfo(0, BATCH_IDS[0], "hexes", 1, sha(0b0010_0000)),
        BatchInfo(1, BATCH_IDS[1], "hexes", 2, sha(0b0010_0001)),
        BatchInfo(2, BATCH_IDS[2], "heists", 1, sha(0b0000_0001)),
    )
    assert store.batch_ids == BATCH_IDS
    assert store.categories == CATEGORIES
    assert store.batches[2].name == "batch 2 (heists, 22cc33dd44ee)"


def test_origin_comes_back(store):
    assert store.provenance == PROVENANCE
    assert store.selection_rule == {"name": "threshold_top_k", "threshold": 0.05, "top_k": 50}
    assert store.counted_tokens == "prompt"
    assert store.experts_per_token == 2
    assert store.layer_names == ("model.layers.1.mlp", "model.layers.2.mlp")
    assert store.dist_moe_version == dist_moe.__version__


def test_unsafe_experts_and_union(store):
    assert [store.unsafe_experts(batch) for batch in range(3)] == [[(0, 2)], [(0, 2), (1, 3)], [(1, 3)]]
    assert store.union().tolist() == [[False, False, True, False], [False, False, False, True]]


def test_unsafe_experts_are_those_of_the_mask_in_order_of_risk(tmp_path):
    rng = np.random.default_rng(0)
    tokens_P = np.full(40, 50)
    counts = RoutingCounts(rng.multinomial(50, [1 / 16] * 16, (40, 4)), tokens_P, 1)
    index = BatchIndex(
        ids=tuple("abcde"),
        categories=tuple("vwxyz"),
        starts_B1=np.arange(6) * 8,
        prompt_ids=tuple(map(str, range(40))),
        unsafe_P=np.arange(40) % 2 == 0,
        cluster_P=None,
        pair_P=None,
    )
    risk = risk_table(counts, index.unsafe_P, index.batch_of_P, 5, ["x"] * 5)
    rule = ThresholdTopK(threshold=0.01, top_k=7)
    expected = [unsafe_experts(risk_diff_LE, 0.01, 7) for risk_diff_LE in risk.risk_diff_BLE]
    masks_BLE = np.zeros((5, 4, 16), bool)
    for batch, experts in enumerate(expected):
        masks_BLE[batch, *np.transpose(experts)] = True
    facts = {
        "index": index,
        "num_experts": 16,
        "experts_per_token": 1,
        "counted_tokens": "all",
        "layer_names": tuple("klmn"),
        "provenance": PROVENANCE,
    }
    masks = ExpertMasks(masks_BLE)
    contents = Contents(
        CountsPlan(**facts),
        counts,
        MaskPlan(selection_rule=rule.facts, counts_digest="", **facts),
        MaskResults(masks=masks, signs_B3=MaskResults.signs(masks, risk.risk_diff_BLE)),
    )
    write_contents(tmp_path / "masks.zarr", contents)
    store = MaskStore.open(tmp_path / "masks.zarr")
    assert [store.unsafe_experts(batch) for batch in range(5)] == expected
    assert [batch.num_unsafe_experts for batch in store.batches] == [len(experts) for experts in expected]
    assert max(len(experts) for experts in expected) == 7


def test_a_batch_of_rates_reads_no_text(store, monkeypatch):
    """Texts of all batches and prompts take longer to read than one batch's counts."""
    counts, read = Counts.open(store.path.parent / "counts.zarr"), []
    from_source = counts.files.source.read
    monkeypatch.setattr(counts.files.source, "read", lambda key: read.append(key.partition("/")[0]) or from_source(key))
    np.testing.assert_array_equal(counts.risk_diff[1], store.counts.risk_diff[1])
    assert {*read} == {"prompt_counts", "prompt_tokens", "prompt_batch", "prompt_unsafe"}


def test_batch_table(store):
    table = store.batch_table(1)
    assert table.columns.tolist() == ["layer", "expert", "Layer_Expert", "a_safe_n", "a_unsafe_n", "risk_diff"]
    assert table["Layer_Expert"].tolist() == [
        *("L00_E02", "L01_E03", "L00_E00", "L00_E03", "L01_E01", "L01_E02", "L01_E00", "L00_E01")
    ]
    assert table.loc[1, ["a_safe_n", "a_unsafe_n", "risk_diff"]].tolist() == [0.5, 0.9, 0.4]


# With 1 prompt at a time, slabs of the pooled sum have an empty arm.
@pytest.mark.parametrize("batches_at_once", [0, 1, 2, 64])
def test_aggregated_is_pooled_over_all_prompts(store, monkeypatch, batches_at_once):
    counts = Counts.open(store.path.parent / "counts.zarr")
    row_bytes = 4 * counts.index.sizes_B.max() * np.prod(counts.shape_BLE[1:])
    monkeypatch.setattr(rows_module, "BLOCK_BYTES", batches_at_once * row_bytes)
    table = store.counts.aggregated
    assert table["Layer_Expert"].tolist() == [
        *("L00_E02", "L01_E03", "L00_E03", "L01_E01", "L01_E02", "L00_E00", "L00_E01", "L01_E00")
    ]
    np.testing.assert_allclose(table["risk_diff"], [0.3, 0.25, 0, 0, -0.1, -0.15, -0.15, -0.15])
    assert table.loc[0, ["a_safe_n", "a_unsafe_n"]].tolist() == [0.0, 12 / 40]
    assert overall(store)["Layer_Expert"].tolist() == ["L00_E02", "L01_E03"]


def test_mean_of_batches_weighs_batches(store):
    table = store.counts.mean_of_batches
    assert table["Layer_Expert"].tolist()[:2] == ["L00_E02", "L01_E03"]
    np.testing.assert_allclose(table["risk_diff"][:2], [1.2 / 3, 0.7 / 3])


def test_same_contents_same_bytes(tmp_path):
    one, other = write_example(tmp_path / "one.zarr"), write_example(tmp_path / "other.zarr")
    assert MaskStore.open(one).digest == MaskStore.open(other).digest
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    assert all((one / path).read_bytes() == (other / path).read_bytes() for path in files)


def test_digests_are_those_of_the_documented_format(tmp_path):
    path = write_example(tmp_path / "masks.zarr")
    digests = {}
    for array in path.iterdir():
        if array.is_dir():
            found = subprocess.check_output(["find", "-type", "f", "-printf", "%P\n"], cwd=array, text=True).split()
            names = sorted(set(found) - {"SHA256SUMS"})
            lines = [f"{hashlib.sha256((array / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
            digests[array.name] = hashlib.sha256("".join(lines).encode()).hexdigest()
            # And so that anyone can check without this package:
            subprocess.run(["sha256sum", "--strict", "--check", "--quiet", "SHA256SUMS"], cwd=array, check=True)
    root = json.loads((path / "zarr.json").read_text())
    complete = root["attributes"].pop("complete")
    assert complete["arrays"] == digests
    assert complete["digest"] == hashlib.sha256(json.dumps([root, digests], sort_keys=True).encode()).hexdigest()


def test_other_contents_other_digest(tmp_path):
    write_contents(tmp_path / "one.zarr", example_contents())
    write_contents(tmp_path / "other.zarr", example_contents().changed(provenance=PROVENANCE | {"seed": 8}))
    assert MaskStore.open(tmp_path / "one.zarr").digest != MaskStore.open(tmp_path / "other.zarr").digest


def test_any_zarr_reader_can_read_it_and_none_warns(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(write_example(tmp_path / "masks.zarr"), mode="r")
        assert {name for name, _ in group.arrays()} == set(group.attrs["complete"]["arrays"])
        assert json.loads(group["batch_ids"][:].tobytes()) == list(BATCH_IDS)
    assert group.metadata.zarr_format == 3


def test_reading_changes_nothing(tmp_path):
    path = write_example(tmp_path / "masks.zarr")

    def state():
        files = sorted(path.rglob("*"))
        return [(file, os.stat(file).st_mtime_ns, file.is_file() and file.read_bytes()) for file in files]

    before = state()
    store = MaskStore.open(path)
    store.counts.aggregated, store.counts.mean_of_batches, store.batches, store.counts.prompts, store.union()
    with pytest.raises(TypeError, match="does not support item assignment"):
        store.masks[0] = True
    store.masks[:][0] = True  # a copy
    assert state() == before


def test_an_existing_store_is_kept_unless_told(tmp_path):
    path = write_example(tmp_path / "masks.zarr")
    with pytest.raises(UserError, match=r"masks\.zarr exists: choose another path or remove it"):
        write_contents(path, example_contents(top_k=1))
    assert MaskStore.open(path).selection_rule["top_k"] == 50
    write_store(path, *example_contents(top_k=1)[2:], overwrite=True)
    assert MaskStore.open(path).selection_rule["top_k"] == 1


def test_many_batches_are_few_files(tmp_path):
    many = tiled_contents(200)
    write_contents(tmp_path / "masks.zarr", many)
    # 600 batches: ten files of up to 64.
    assert {path.name for path in (tmp_path / "masks.zarr" / "masks" / "c").iterdir()} == set("0123456789")
    store = MaskStore.open(tmp_path / "masks.zarr")
    assert all(store.masks[batch].tolist() == store.masks[batch % 3].tolist() for batch in (62, 63, 64, 599))
    np.testing.assert_allclose(store.counts.aggregated["risk_diff"][:2], [0.3, 0.25])
