"""A delta gives the bytes of the direct export, anybody can read it, and it is refused when it is not as written."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dist_moe.errors import UserError
from dist_moe.moe.layout import hub_layout
from dist_moe.weights.changes import trained_places
from dist_moe.weights.delta import delta_changes, delta_places, read_facts, write_delta
from dist_moe.weights.export import export_checkpoint
from dist_moe.weights.facts import Facts
from tests.unit.weights.conftest import contents, make_trained


def places(trained, layout):
    return [place for place, _ in trained_places(layout, trained.rows)]


def save_delta(trained, out):
    layout = hub_layout(trained.base)
    write_delta(out, layout, places(trained, layout), trained.changes(), trained.facts)
    return out


@pytest.fixture
def delta(trained, tmp_path):
    return save_delta(trained, tmp_path / "new" / "delta.safetensors")


def test_apply_gives_the_bytes_of_the_direct_export(trained, delta, tmp_path):
    export_checkpoint(trained.base, trained.changes(), tmp_path / "direct", "card")
    layout = hub_layout(trained.base)
    found = delta_places(delta, trained.facts, layout)
    assert found == places(trained, layout)
    export_checkpoint(trained.base, delta_changes(delta, layout, found), tmp_path / "applied", "card")
    assert contents(tmp_path / "applied") == contents(tmp_path / "direct")
    assert contents(tmp_path / "applied") != contents(trained.base)


def test_safetensors_reads_a_delta(trained, delta):
    found = load_file(delta)
    with safe_open(delta, "pt") as stream:
        metadata = stream.metadata()
    assert (metadata["format"], metadata["version"]) == ("dist_moe delta", "3")
    assert Facts.parse(json.loads(metadata["facts"]), "x", "y") == trained.facts
    if "model.layers.0.mlp.experts.down_proj[3]" in found:
        expected = {
            f"model.layers.{layer}.mlp.experts.{name}[{expert}]": row
            for (layer, expert), rows in trained.rows.items()
            for name, row in rows.items()
        }
    else:
        expected = {}
        for (layer, expert), rows in trained.rows.items():
            gate, up = rows["gate_up_proj"].chunk(2)
            for name, row in (("gate", gate), ("up", up), ("down", rows["down_proj"])):
                expected[f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj.weight"] = row
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        assert torch.equal(found[key], row), key


def test_a_bfloat16_base_has_a_bfloat16_delta(tmp_path):
    trained = make_trained(tmp_path, fused=False, dtype=torch.bfloat16)
    found = load_file(save_delta(trained, tmp_path / "delta.safetensors"))
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


def test_facts_come_back(trained, delta):
    assert read_facts(delta) == trained.facts
    assert [file.name for file in delta.parent.iterdir()] == ["delta.safetensors"]


def test_the_same_run_gives_the_same_file(trained, delta, tmp_path):
    assert save_delta(trained, tmp_path / "again").read_bytes() == delta.read_bytes()


def test_a_failed_write_leaves_nothing(trained, tmp_path):
    def fails():
        yield next(trained.changes())
        raise OSError("no space left")

    layout = hub_layout(trained.base)
    with pytest.raises(OSError, match="no space"):
        write_delta(tmp_path / "place" / "delta", layout, places(trained, layout), fails(), trained.facts)
    assert not (tmp_path / "place").exists()


@pytest.mark.parametrize("where", ["in the facts", "in the digest", "in the first weight", "in the last weight"])
def test_one_flipped_bit_is_found(delta, where):
    data = bytearray(delta.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    places = {
        "in the facts": data.index(b"tiny"),
        "in the digest": data.index(b'"digest": "') + 11,
        "in the first weight": header,
        "in the last weight": len(data) - 1,
    }
    data[places[where]] ^= 1
    delta.write_bytes(data)
    with pytest.raises(UserError, match="is damaged"):
        read_facts(delta)


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_file_that_is_cut_short(delta, size):
    delta.write_bytes(delta.read_bytes()[:size])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        read_facts(delta)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="no delta file"):
        read_facts(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "is not a delta"),
        ({"format": "pt"}, "is not a delta"),
        ({"format": "dist_moe delta", "version": "2"}, "expected delta version 3, found '2'"),
        ({"format": "dist_moe delta", "version": "3"}, "is damaged"),
    ],
)
def test_a_foreign_file(tmp_path, metadata, message):
    save_file({"x": torch.zeros(2)}, tmp_path / "x", metadata)
    with pytest.raises(UserError, match=message):
        read_facts(tmp_path / "x")


def test_experts_that_the_base_has_not(delta, trained):
    """Of another model: the facts name experts of this one, and the file has tensors of others."""
    layout = hub_layout(trained.base)
    facts = replace(trained.facts, union=trained.facts.union[1:])
    with pytest.raises(UserError, match="is no tensor of an expert that its facts name: it belongs to another model"):
        delta_places(delta, facts, layout)


def test_a_tensor_of_another_dtype(tmp_path):
    (tmp_path / "other").mkdir()
    delta = save_delta(make_trained(tmp_path, fused=False), tmp_path / "delta")
    other = make_trained(tmp_path / "other", fused=False, dtype=torch.bfloat16)
    layout = hub_layout(other.base)
    with pytest.raises(UserError, match="belongs to another model"):
        list(delta_changes(delta, layout, places(other, layout)))
