"""Places are the right bytes, and a run's experts come one at a time in the base's names and dtypes."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from dist_moe.moe.layout import hub_layout
from dist_moe.weights.changes import trained_changes, trained_places
from dist_moe.weights.directory import read_header
from dist_moe.weights.layout import Place
from dist_moe.weights.trained import TrainedExperts
from tests.unit.weights.conftest import TRAINED, make_trained

STACKED = torch.arange(24, dtype=torch.float32).reshape(4, 3, 2)
SCALAR = torch.tensor(5, dtype=torch.int64)


@pytest.fixture
def tensors(tmp_path):
    save_file({"stacked": STACKED, "scalar": SCALAR}, tmp_path / "x.safetensors")
    return read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("row", "expected"),
    [(None, STACKED), (0, STACKED[0]), (3, STACKED[3]), (slice(1, 3), STACKED[1:3]), (slice(3, 4), STACKED[3:])],
)
def test_a_place_is_a_tensor_or_rows(tensors, row, expected):
    found = Place("stacked", row).of(tensors)
    assert found.shape == tuple(expected.shape)
    assert found.bytes().tobytes() == expected.numpy().tobytes()


def test_a_place_is_written_as_numpy_would():
    assert list(map(str, (Place("a.b"), Place("a.b", 5), Place("a.b", slice(80, 96))))) == [
        "a.b",
        "a.b[5]",
        "a.b[80:96]",
    ]


def test_overwrite_changes_one_row_and_no_other_byte(tensors):
    file = tensors["stacked"].file
    size = file.stat().st_size
    Place("stacked", 2).of(tensors).overwrite(STACKED[0].numpy().reshape(-1).view("uint8"))
    expected = STACKED.clone()
    expected[2] = STACKED[0]
    after = load_file(file)
    assert torch.equal(after["stacked"], expected)
    assert torch.equal(after["scalar"], SCALAR)
    assert file.stat().st_size == size


def test_the_places_are_known_before_the_weights(trained):
    places = trained_places(hub_layout(trained.base), trained.rows)
    assert [place for place, _ in places] == sorted((place for place, _ in trained.changes()), key=str)
    assert {expert for _, expert in places} == set(TRAINED)
    assert len(places) in (2 * len(TRAINED), 3 * len(TRAINED))


@pytest.mark.parametrize("fused", [False, True])
def test_values_are_cast_to_the_bases_dtype(tmp_path, fused):
    trained = make_trained(tmp_path, fused=fused, dtype=torch.bfloat16)
    changes = dict(trained.changes())
    experts = "model.layers.2.mlp.experts"
    place = Place(f"{experts}.down_proj", 7) if fused else Place(f"{experts}.7.down_proj.weight")
    expected = trained.rows[2, 7]["down_proj"].to(torch.bfloat16)
    assert changes[place].tobytes() == expected.view(torch.uint8).numpy().tobytes()


def test_one_expert_at_a_time_is_in_memory(trained):
    layout, asked, seen = hub_layout(trained.base), [], []

    def to_hub(layer, expert, weights):
        asked.append((layer, expert))
        return layout.to_hub(layer, expert, weights)

    for place, _ in trained_changes(replace(layout, to_hub=to_hub), TrainedExperts.open(trained.experts)):
        # nothing is asked for ahead of the change that is handed out
        seen.append(place)
        layer, expert = asked[-1]
        assert f"layers.{layer}." in place.name
        assert f"experts.{expert}." in place.name or place.row == expert
    assert sorted(asked) == sorted(TRAINED)
    assert len(set(seen)) == len(seen)
