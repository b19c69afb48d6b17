"""What the pictures show is what the store holds; how they look was looked at."""

import itertools

import numpy as np
import pytest

from dist_moe.report import plots
from dist_moe.store import MaskStore
from tests.unit.store.example import tiled_contents, write_contents, write_example


@pytest.fixture
def store(tmp_path):
    return MaskStore.open(write_example(tmp_path / "run" / "masks.zarr"))


def image(figure):
    return np.ma.filled(figure.axes[0].images[0].get_array().astype(float), np.nan)


def test_risk(store):
    figure = plots.risk_figure(store)
    np.testing.assert_allclose(image(figure), [[-0.15, -0.15, 0.3, 0], [-0.15, 0, -0.1, 0.25]], atol=1e-12)
    low, high = figure.axes[0].images[0].get_clim()
    assert low == -high == pytest.approx(-0.3)
    (frames,) = figure.axes[0].collections
    corners = {tuple(path.vertices.min(axis=0)) for path in frames.get_paths()}
    assert corners == {(1.5, -0.5), (2.5, 0.5)}  # L00_E02 and L01_E03, as (expert, layer) less a half
    axes = figure.axes[0]
    assert axes.get_title(loc="left").startswith("run/masks.zarr: risk_diff")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("expert", "MoE layer")


def test_selected(store):
    nothing = np.nan
    expected = [[nothing, nothing, 2 / 3, nothing], [nothing, nothing, nothing, 2 / 3]]
    np.testing.assert_allclose(image(plots.selected_figure(store)), expected)


def test_overlap_is_in_the_order_of_categories(store):
    figure = plots.overlap_figure(store)
    # heists (batch 2), then hexes (batches 0 and 1)
    np.testing.assert_allclose(image(figure), [[1, 0, 0.5], [0, 1, 0.5], [0.5, 0.5, 1]])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["heists", "hexes"]
    assert figure.axes[0].get_yticks().tolist() == [0, 1.5]


def test_very_many_batches_are_shown_by_category(store, monkeypatch):
    monkeypatch.setattr(plots, "MOST_BATCHES", 2)
    np.testing.assert_allclose(image(plots.overlap_figure(store)), [[1, 0.5], [0.5, 1]])


def test_growth(tmp_path):
    write_contents(tmp_path / "masks.zarr", tiled_contents(2))
    store = MaskStore.open(tmp_path / "masks.zarr")
    stored, mean = plots.growth_figure(store).axes[0].lines
    assert stored.get_ydata().tolist() == [1, 2, 2, 2, 2, 2]
    orders = list(itertools.permutations(store.masks[:]))
    unions = [np.logical_or.accumulate(np.array(order)).sum(axis=(1, 2)) for order in orders]
    np.testing.assert_allclose(mean.get_ydata(), np.mean(unions, axis=0))
