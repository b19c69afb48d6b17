"""Verification names every difference outside the union, and the experts that did change."""

import json

import numpy as np
import pytest

from dist_moe.moe.layout import hub_layout
from dist_moe.report.verification import verification_lines
from dist_moe.weights import verify
from dist_moe.weights.directory import read_tensors
from dist_moe.weights.export import export_checkpoint
from dist_moe.weights.verify import verify_checkpoint
from tests.tiny import E, L
from tests.unit.weights.conftest import TRAINED, make_trained

UNION = np.zeros((L, E), bool)
UNION[tuple(zip(*TRAINED, strict=True))] = True


@pytest.fixture
def out(trained, tmp_path):
    export_checkpoint(trained.base, trained.changes(), tmp_path / "out", "card")
    return tmp_path / "out"


def flip(path, name, row, column):
    stored = read_tensors(path)[name]
    at = (row * int(np.prod(stored.shape[1:])) + column) * 4
    data = np.memmap(stored.file, np.uint8, "r+", offset=stored.start, shape=(stored.stop - stored.start,))
    data[at] ^= 1
    data.flush()


def test_an_export_is_verified_and_its_experts_are_listed(trained, out):
    seen = verify_checkpoint(hub_layout(trained.base), out, UNION)
    assert seen.violations == []
    assert seen.changed_experts == set(TRAINED)
    assert list(verification_lines(seen))[2:4] == ["  L00_E03 L00_E05", "  L02_E00 L02_E07"]
    assert len(seen.changed_tensors) == len({place.name for place, _ in trained.changes()})


def test_the_base_itself_has_no_change(trained):
    seen = verify_checkpoint(hub_layout(trained.base), trained.base, np.zeros_like(UNION))
    assert (seen.violations, seen.changed_tensors, seen.changed_experts) == ([], [], set())


@pytest.mark.parametrize("block", [verify.BLOCK, 100])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (5, 31), (127, 31)])
def test_a_flipped_bit_outside_the_experts(trained, out, monkeypatch, row, column, block):
    monkeypatch.setattr(verify, "BLOCK", block)
    flip(out, "lm_head.weight", row, column)
    seen = verify_checkpoint(hub_layout(trained.base), out, UNION)
    assert seen.violations == [f"lm_head.weight row {row}: changed, but it is not an expert's"]


def test_a_flipped_bit_in_a_vector(trained, out):
    flip(out, "model.norm.weight", 9, 0)
    seen = verify_checkpoint(hub_layout(trained.base), out, UNION)
    assert seen.violations == ["model.norm.weight row 9: changed, but it is not an expert's"]


@pytest.mark.parametrize(("fused", "name", "flipped", "told"), [
    (False, "model.layers.1.mlp.experts.4.down_proj.weight", (31, 47), 31),
    (True, "model.layers.1.mlp.experts.down_proj", (4, 31 * 48 + 47), 4),
])  # fmt: skip
def test_a_flipped_bit_in_an_expert_outside_the_union(tmp_path, fused, name, flipped, told):
    trained, out = make_trained(tmp_path, fused=fused), tmp_path / "out"
    export_checkpoint(trained.base, trained.changes(), out, "card")
    flip(out, name, *flipped)
    seen = verify_checkpoint(hub_layout(trained.base), out, UNION)
    assert seen.violations == [f"{name} row {told}: changed, but L01_E04 is not in the union"]
    assert seen.changed_experts == {*TRAINED, (1, 4)}


def test_a_trained_expert_that_is_not_in_the_union(trained, out):
    union = UNION.copy()
    union[2, 7] = False
    seen = verify_checkpoint(hub_layout(trained.base), out, union)
    assert seen.violations
    assert all("L02_E07 is not in the union" in line for line in seen.violations)


FILES = {
    "config.json": '{"num_experts_per_tok": 1}',
    "generation_config.json": "{}",
    "tokenizer.json": "{}",
    "tokenizer_config.json": "{}",
    "chat_template.jinja": "other",
}


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file(trained, out, name):
    assert (out / name).read_text() != FILES[name]
    (out / name).write_text(FILES[name])
    seen = verify_checkpoint(hub_layout(trained.base), out, UNION)
    assert seen.violations == [f"{name}: changed, but it is not an expert's"]


@pytest.mark.parametrize("name", ["adapter_config.json", "additional_chat_templates/tool_use.jinja"])
def test_a_file_too_much_and_a_file_too_few(trained, out, name):
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text(json.dumps({}))
    (out / "generation_config.json").unlink()
    assert verify_checkpoint(hub_layout(trained.base), out, UNION).violations == [
        f"generation_config.json: in the base, but not in {out}",
        f"{name}: in {out}, but not in the base",
    ]


def test_reader_a_changed_index(trained, out):
    index = out / "model.safetensors.index.json"
    index.write_text(json.dumps(json.loads(index.read_text())))
    seen = verify_checkpoint(hub_layout(trained.base), out, UNION)
    assert seen.violations == ["model.safetensors.index.json: changed, but it is not an expert's"]


def test_reader_a_shard_that_the_index_does_not_name_is_told_and_not_compared(trained, out):
    """Other values under known names in a later file: transformers reads what the index names only."""
    shard = min(out.glob("*.safetensors"))
    (out / "zz.safetensors").write_bytes(shard.read_bytes()[:-4] + b"\1\2\3\4")
    seen = verify_checkpoint(hub_layout(trained.base), out, UNION)
    assert (seen.violations, seen.unread) == ([], ["zz.safetensors"])


def test_reader_a_shard_that_the_index_names_hides_another(trained, out):
    """The same file, but in the index: now transformers reads it, and takes its values."""
    shard = min(out.glob("*.safetensors"))
    (out / "zz.safetensors").write_bytes(shard.read_bytes()[:-4] + b"\1\2\3\4")
    index = out / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["no tensor of this name"] = "zz.safetensors"
    index.write_text(json.dumps(content))
    seen = verify_checkpoint(hub_layout(trained.base), out, UNION)
    (changed,) = (line.split(" row")[0] for line in seen.violations if "row" in line)
    assert changed in read_tensors(out)
    assert seen.violations[:2] == [
        f"zz.safetensors: in {out}, but not in the base",
        "model.safetensors.index.json: changed, but it is not an expert's",
    ]
    assert seen.unread == []


def test_reader_a_trained_value_that_is_not_finite(trained, out):
    place = min((place for place, _ in trained.changes() if "down_proj" in place.name), key=str)
    target = place.of(read_tensors(out))
    target.overwrite(np.full((target.stop - target.start) // 4, np.nan, np.float32).view(np.uint8))
    (line,) = verify_checkpoint(hub_layout(trained.base), out, UNION).violations
    assert line.startswith(place.name)
    assert "L00_E03 has a value that is NaN or infinite" in line


def test_cards_and_hidden_files_may_differ(trained, out):
    (trained.base / "README.md").write_text("the base's")
    (out / ".gitattributes").write_text("")
    assert verify_checkpoint(hub_layout(trained.base), out, UNION).violations == []
