import dataclasses

import numpy as np
import pandas as pd
import pytest

from dist_moe.errors import UserError
from dist_moe.report import views
from dist_moe.report.views import compare
from dist_moe.rules import RULES
from dist_moe.selection.choose import population_of, selected, sums_of
from dist_moe.stats.masks import ExpertMasks
from dist_moe.stats.settings import StatisticsConfig
from dist_moe.store import MaskStore
from tests.unit.store.example import (
    BATCH_IDS,
    PROVENANCE,
    example_contents,
    tiled_contents,
    write_contents,
    write_example,
)


@pytest.fixture
def store(tmp_path):
    return MaskStore.open(write_example(tmp_path / "masks.zarr"))


def rows(table, *columns):
    return pd.DataFrame(table)[list(columns)].to_numpy().tolist()


def test_summary(store):
    view = views.summary(store)
    assert view.facts == {
        "store": str(store.path),
        "dist_moe_version": store.dist_moe_version,
        "selection_rule": {"name": "threshold_top_k", "threshold": 0.05, "top_k": 50},
        "counted_tokens": "prompt",
        "prompts": 6,
        "batches": 3,
        "moe_layers": 2,
        "experts_per_layer": 4,
        "experts_per_token": 2,
        "min_experts_per_batch": 1,
        "mean_experts_per_batch": 4 / 3,
        "max_experts_per_batch": 2,
        "batches_with_none": 0,
        "union_experts": 2,
        "all_experts": 8,
        "revision": 0,
        "counts": store.counts.digest,
        "arms": store.counts.attributes["arms"],
        "warnings": [],
        "provenance": PROVENANCE,
    }
    assert pd.DataFrame(view.tables["batches"]).to_numpy().tolist() == [
        [0, BATCH_IDS[0], "hexes", 1, 1, 1],
        [1, BATCH_IDS[1], "hexes", 2, 0, 2],
        [2, BATCH_IDS[2], "heists", 1, 1, 1],
    ]
    assert pd.DataFrame(view.tables["layers"]).to_numpy().tolist() == [
        [0, "model.layers.1.mlp", 1, 2 / 3, 1, 2],
        [1, "model.layers.2.mlp", 1, 2 / 3, 1, 2],
    ]


def test_summary_counts_layers_with_k_experts_as_full(tmp_path):
    masks_BLE = np.zeros((3, 2, 4), bool)
    masks_BLE[0, 0, :2] = True
    masks_BLE[0, 1, :3] = True
    write_contents(tmp_path / "masks.zarr", example_contents().changed(masks=ExpertMasks(masks_BLE)))
    view = views.summary(MaskStore.open(tmp_path / "masks.zarr"))
    assert rows(view.tables["batches"], "layers_with_none", "layers_below_k") == [[0, 0], [2, 0], [2, 0]]
    assert view.facts["batches_with_none"] == 2
    assert view.facts["min_experts_per_batch"] == 0


@pytest.mark.parametrize("key", ["1", BATCH_IDS[1]])
def test_batch(store, key):
    view = views.batch(store, key)
    assert view.facts["batch"] == 1
    assert view.facts["mask_hash"] == store.batches[1].mask_hash
    (table,) = view.tables.values()
    assert rows(table, "Layer_Expert", "a_safe_n", "a_unsafe_n") == [["L00_E02", 0.0, 0.6], ["L01_E03", 0.5, 0.9]]
    assert table["risk_diff"].tolist() == [0.6, 0.4]


@pytest.mark.parametrize("key", ["3", "-1", "1.0", "00aa"])
def test_no_such_batch(store, key):
    with pytest.raises(UserError, match=f"no batch '{key}' in .*: expected an index from 0 to 2, or a batch's id"):
        views.batch(store, key)


def test_expert(store):
    view = views.expert(store, 1, 3)
    assert view.facts == {
        "expert": "L01_E03",
        "module": "model.layers.2.mlp",
        "batches_selected": 2,
        "batches": 3,
    }
    (table,) = view.tables.values()
    assert rows(table, "batch", "category", "selected", "a_safe_n", "a_unsafe_n") == [
        [0, "hexes", False, 0.5, 0.5],
        [1, "hexes", True, 0.5, 0.9],
        [2, "heists", True, 0.5, 0.8],
    ]


@pytest.mark.parametrize(("layer", "expert"), [(2, 0), (0, 4), (-1, 0)])
def test_no_such_expert(store, layer, expert):
    with pytest.raises(UserError, match="expected a layer from 0 to 1 and an expert from 0 to 3"):
        views.expert(store, layer, expert)


def test_overlap(store):
    view = views.overlap(store)
    assert view.facts == {"batches": 3, "categories": 2, "experts_in_several_categories": 1}
    by_batch, by_category, shared = view.tables.values()
    assert rows(by_batch, "batch", "category", "0", "1", "2") == [
        [0, "hexes", 1.0, 0.5, 0.0],
        [1, "hexes", 0.5, 1.0, 0.5],
        [2, "heists", 0.0, 0.5, 1.0],
    ]
    # heists {L01_E03}, hexes {L00_E02, L01_E03}
    assert by_category.to_dict(orient="records") == [{"category": "heists", "other": "hexes", "jaccard": 0.5}]
    assert rows(shared, "Layer_Expert", "categories", "num_batches") == [["L01_E03", "heists, hexes", 2]]


@pytest.mark.parametrize("name", ["category", "batch", "0"])
def test_a_category_may_have_the_name_of_a_column(tmp_path, name):
    contents = example_contents().changed(categories=(name, name, "heists"))
    write_contents(tmp_path / "masks.zarr", contents)
    store = MaskStore.open(tmp_path / "masks.zarr")
    assert views.overlap(store).tables["Jaccard, categories"]["jaccard"].tolist() == [0.5]
    assert views.category(store, name).facts["batches"] == [0, 1]


def test_overlap_of_two(store):
    view = views.overlap_of_two(store, "2", "1")
    assert view.facts == {
        "first": store.batches[2].name,
        "second": store.batches[1].name,
        "jaccard": 0.5,
        "in_both": 1,
        "only_in_first": 0,
        "only_in_second": 1,
    }
    (table,) = view.tables.values()
    assert rows(table, "Layer_Expert", "in_first", "in_second") == [["L01_E03", True, True], ["L00_E02", False, True]]
    np.testing.assert_allclose(table["risk_diff_first"], [0.3, 0.0])
    np.testing.assert_allclose(table["risk_diff_second"], [0.4, 0.6])


def test_category(store):
    view = views.category(store, "hexes")
    assert view.facts == {"category": "hexes", "batches": [0, 1], "experts": 2, "experts_in_every_batch": 1}
    (table,) = view.tables.values()
    assert table.to_dict(orient="list") == {
        "layer": [0, 1],
        "expert": [2, 3],
        "Layer_Expert": ["L00_E02", "L01_E03"],
        "num_batches": [2, 1],
        "share": [1.0, 0.5],
        "mean_risk_diff": [pytest.approx(0.6), pytest.approx(0.2)],
        "also_in": ["", "heists"],
    }


def test_no_such_category(store):
    with pytest.raises(UserError, match=r"no category 'hexs' in .*: did you mean 'hexes'\?"):
        views.category(store, "hexs")


def test_aggregated(store):
    view = views.aggregated(store)
    assert view.facts == {"unsafe_experts": 2, "in_no_batch": 0}
    pooled, by_mean = view.tables.values()
    np.testing.assert_allclose(pooled["risk_diff"], [0.3, 0.25])
    np.testing.assert_allclose(by_mean["risk_diff"], [0.4, 0.7 / 3])


def test_check(store):
    view = views.check(store)
    assert view.facts == {"store": str(store.path), "digest": store.digest, "intact": True}
    assert ["masks", "uint8", "3x2x1"] in rows(view.tables["arrays"], "array", "dtype", "shape")


def test_layers(store):
    view = views.layers(store)
    table, distribution = map(pd.DataFrame, view.tables.values())
    # Experts a layer (0 | 1): 1 | 0, 1 | 1, 0 | 1; k = 2, and a layer without an expert keeps all.
    assert rows(table, "min_experts", "median_experts", "max_experts", "union_experts") == [[0, 1, 1, 1], [0, 1, 1, 1]]
    assert rows(table, "batches_with_none", "batches_below_k") == [[1, 2], [1, 2]]
    np.testing.assert_allclose(table["slots_surviving"], [(0.5 + 0.5 + 1) / 3, (1 + 0.5 + 0.5) / 3])
    # Unsafe rates of L00_E02 in batches 0 and 1, and of L01_E03 in batches 1 and 2, of k slots.
    np.testing.assert_allclose(table["unsafe_routing_kept"], [(0.3 + 0.3 + 1) / 3, (1 + 0.45 + 0.4) / 3])
    assert distribution.to_numpy().tolist() == [[0, 2, 2 / 6], [1, 4, 4 / 6]]
    assert view.facts["share_of_layers_with_none"] == pytest.approx(2 / 6)
    assert view.facts["slots_surviving"] == pytest.approx(4 / 6)


def test_categories(store):
    table, shared = views.categories(store).tables.values()
    assert rows(table, "category", "batches", "union_experts", "in_every_batch", "in_no_other_category") == [
        ["heists", 1, 1, 1, 0],
        ["hexes", 2, 2, 1, 1],
    ]
    assert table["mean_experts_per_batch"].tolist() == [1, 1.5]
    assert table["mean_jaccard_within"].isna().tolist() == [True, False]
    assert table["mean_jaccard_within"][1] == 0.5
    assert rows(shared, "Layer_Expert", "categories") == [["L01_E03", "heists, hexes"]]


def test_growth(store):
    view = views.growth(store)
    (table,) = view.tables.values()
    assert rows(table, "batch", "new_experts", "union_experts", "union_share") == [
        [0, 1, 1, 1 / 8],
        [1, 1, 2, 2 / 8],
        [2, 0, 2, 2 / 8],
    ]
    assert view.facts == {"batches": 3, "union_experts": 2, "all_experts": 8, "batches_that_add_none": 1}


def test_a_store_is_the_same_as_itself_and_as_its_copy(store, tmp_path):
    view = views.diff(store, MaskStore.open(write_example(tmp_path / "copy.zarr")))
    assert view.facts["same"] is True
    assert view.tables["batches"]["jaccard"].tolist() == [1, 1, 1]
    assert all(len(table) == 0 for title, table in view.tables.items() if title != "batches")


def test_diff_of_stores_with_other_masks_facts_and_batches(store, tmp_path):
    masks_BLE = store.masks[:]
    masks_BLE[2] = [[True, False, False, False], [False, False, False, False]]
    other = example_contents().changed(
        masks=ExpertMasks(masks_BLE),
        ids=("aa", *BATCH_IDS[1:]),
        provenance=PROVENANCE | {"seed": 8},
    )
    (tmp_path / "other").mkdir()
    view = views.diff(store, MaskStore.open(write_contents(tmp_path / "other" / "masks.zarr", other)))
    assert view.facts["same"] is False
    assert view.facts["batches_in_both"] == 2
    assert view.facts["batches_with_other_masks"] == 1
    batches, experts, measured, facts, only = view.tables.values()
    assert measured.empty
    assert batches.to_numpy().tolist() == [
        [1, BATCH_IDS[1], "hexes", 2, 0, 0, 1.0],
        [2, BATCH_IDS[2], "heists", 0, 1, 1, 0.0],
    ]
    assert rows(experts, "batch", "Layer_Expert", "in_first", "in_second") == [
        [2, "L00_E00", False, True],
        [2, "L01_E03", True, False],
    ]
    digests = [each.counts_digest for each in (store, MaskStore.open(tmp_path / "other" / "masks.zarr"))]
    assert facts.to_numpy().tolist() == [["counts", *digests], ["provenance.seed", 7, 8]]
    assert only.to_numpy().tolist() == [["first", BATCH_IDS[0], "hexes"], ["second", "aa", "hexes"]]


def test_diff_says_in_what_measurements_of_provenance_alike_differ(store, tmp_path):
    counts = example_contents().counts
    counts_PLE, tokens_P, gates_PLE = counts.counts_PLE.copy(), counts.tokens_P.copy(), counts.tables["gates"].copy()
    counts_PLE[3, 0, :2] += -1, 1
    counts_PLE[2, 1, :2] += 3, -3
    tokens_P[5] += 4
    gates_PLE[0, 1, 2] += 0.25
    tables = {"gates": gates_PLE, "extra": counts.tables["prefill_tokens"]}
    changed = dataclasses.replace(counts, counts_PLE=counts_PLE, tokens_P=tokens_P, tables=tables)
    (tmp_path / "other").mkdir()
    other = write_contents(tmp_path / "other" / "masks.zarr", example_contents().changed(counts=changed))
    view = views.diff(store, MaskStore.open(other))
    assert view.facts["same"] is False
    assert view.facts["batches_measured_otherwise"] == 3
    assert view.facts["measured_otherwise"] == "gates, prefill_tokens, extra, counts, tokens"
    found = view.tables["measured otherwise"]
    assert found[found["largest_difference"].notna()].to_numpy().tolist() == [
        [0, BATCH_IDS[0], "gates", 1, 0.25],
        [1, BATCH_IDS[1], "counts", 2, 3],
        [2, BATCH_IDS[2], "tokens", 1, 4],
    ]
    assert set(found["what"][found["largest_difference"].isna()]) == {"prefill_tokens", "extra"}


def test_diff_of_many_batches_in_another_order_is_that_of_each(tmp_path, monkeypatch):
    """Batches are compared some at a time, also where the other store has them in other places."""
    monkeypatch.setattr(compare, "BATCHES_AT_ONCE", 5)
    contents, number = tiled_contents(24), 72
    order = np.concatenate([np.arange(50, number), np.arange(50)])[:-3]  # 64 batches share a file
    index, counts = contents.plan.index, contents.counts
    prompts = np.concatenate([np.arange(2 * batch, 2 * batch + 2) for batch in order])
    masks_BLE = contents.results.masks.masks_BLE[order]
    masks_BLE[::7, 0, 0] ^= True
    counts_PLE = counts.counts_PLE[prompts]
    counts_PLE[::10, 1, :2] += counts_PLE[::10, 1, 1:2] * [1, -1]
    other = contents.changed(
        counts=dataclasses.replace(counts.of(prompts), counts_PLE=counts_PLE),
        masks=ExpertMasks(masks_BLE),
        ids=tuple(index.ids[batch] for batch in order),
        categories=tuple(index.categories[batch] for batch in order),
        starts_B1=np.arange(len(order) + 1) * 2,
        prompt_ids=tuple(index.prompt_ids[row] for row in prompts),
        unsafe_P=index.unsafe_P[prompts],
    )
    (tmp_path / "other").mkdir()
    one = MaskStore.open(write_contents(tmp_path / "masks.zarr", contents))
    two = MaskStore.open(write_contents(tmp_path / "other" / "masks.zarr", other))
    by_batch, by_expert, measured, *_ = views.diff(one, two).tables.values()
    expected, experts, apart = [], [], []
    for batch in range(number):
        (there,) = np.flatnonzero(order == batch) if batch in order else (None,)
        if there is None:
            continue
        a, b = one.masks[batch], two.masks[int(there)]
        either = int((a | b).sum())
        same = [int((a & b).sum()), int((a & ~b).sum()), int((b & ~a).sum()), (a & b).sum() / either if either else 1.0]
        expected.append([batch, index.ids[batch], index.categories[batch], *same])
        experts += [[batch, layer, expert] for layer, expert in np.argwhere(a != b).tolist()]
        far = np.abs(counts_PLE[2 * there : 2 * there + 2] - counts.counts_PLE[2 * batch : 2 * batch + 2]).max((1, 2))
        if far.any():
            apart.append([batch, index.ids[batch], "counts", int((far > 0).sum()), far.max()])
    assert by_batch.to_numpy().tolist() == expected
    assert rows(by_expert, "batch", "layer", "expert") == experts
    assert measured.to_numpy().tolist() == apart
    assert len(experts) > 9
    assert len(apart) > 9


def test_diff_of_rules(store):
    view = views.diff_rule(store, {"threshold": "0.35"})
    assert view.facts["second"] == {"name": "threshold_top_k", "threshold": 0.35, "top_k": 50}
    batches, experts = view.tables.values()
    assert batches["jaccard"].tolist() == [1, 1, 0]
    assert rows(experts, "batch", "Layer_Expert", "in_first", "in_second") == [[2, "L01_E03", True, False]]
    assert experts["risk_diff"].tolist() == [pytest.approx(0.3)]
    _, experts = views.diff_rule(store, {"top_k": "1"}).tables.values()
    assert rows(experts, "batch", "Layer_Expert", "in_first", "in_second") == [[1, "L01_E03", True, False]]
    # The largest of each layer, ties to the lower expert; then the lowest, as many as the reference selects.
    view = views.diff_rule(store, {"name": "budget_per_layer", "per_layer": "1"})
    assert view.facts["second"] == {"name": "budget_per_layer", "per_layer": 1}
    by_batch = view.tables["batches"]
    assert rows(by_batch, "in_both", "only_in_first", "only_in_second") == [[1, 0, 1], [2, 0, 0], [1, 0, 1]]
    _, experts = views.diff_rule(store, {"name": "lowest"}).tables.values()
    assert experts["Layer_Expert"][experts["in_second"]].tolist() == ["L00_E00", "L00_E01", "L01_E00", "L01_E02"]


def test_diff_of_a_rule_that_tests_is_what_select_would_write(tmp_path):
    store = MaskStore.open(write_contents(tmp_path / "masks.zarr", tiled_contents(4)))
    counts, rule = store.counts, RULES["random"](threshold=0.05, top_k=50)
    population = population_of(sums_of(counts, batches, rule) for batches in counts.steps())
    masks = selected(counts, range(12), rule, StatisticsConfig(), population, progress=False).masks
    _, experts = views.diff_rule(store, {"name": "random"}).tables.values()
    for batch, mask_LE in enumerate(masks.masks_BLE):
        here = experts[(experts["batch"] == batch) & experts["in_second"]]
        only = mask_LE & ~store.masks[batch]
        assert [*zip(here["layer"], here["expert"], strict=True)] == [*zip(*np.nonzero(only), strict=True)]


def test_views_without_the_counts(store, tmp_path):
    (tmp_path / "counts.zarr").rename(tmp_path / "gone.zarr")
    alone = MaskStore.open(store.path)
    assert "arms" not in views.summary(alone).facts
    assert len(views.overlap(alone).tables) == 3
    assert views.diff(alone, alone).facts["same"] is True
    with pytest.raises(UserError, match="holds masks only"):
        views.batch(alone, "0")


def test_a_rule_that_needs_what_was_not_measured_is_refused(store):
    with pytest.raises(UserError, match=r"the rule gradient needs gradients, which .*counts.zarr does not have"):
        views.diff_rule(store, {"name": "gradient"})
