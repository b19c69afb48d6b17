"""Takes a checkpoint through everything that touches its bytes: load, change experts, export, verify, read again."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from dist_moe.config.schema import ModelConfig
from dist_moe.conformance.sizes import E
from dist_moe.model.model import MoEModel, load_model
from dist_moe.moe.layout import hub_layout
from dist_moe.parallel.comm import SoloComm
from dist_moe.training.save import expert_tensors
from dist_moe.weights.changes import trained_changes, trained_places
from dist_moe.weights.delta import delta_changes, write_delta
from dist_moe.weights.directory import StoredTensor, model_hash, read_tensors
from dist_moe.weights.export import export_checkpoint
from dist_moe.weights.layout import HubLayout
from dist_moe.weights.trained import TrainedExperts, save_index, save_part
from dist_moe.weights.verify import verify_checkpoint
from tests.export_facts import example_facts

CPU = SoloComm(torch.device("cpu"))
IDS = torch.randint(3, 120, (2, 12), generator=torch.Generator().manual_seed(1))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def plain(path: Path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def loading_info(path: Path) -> dict:
    """The messages of plain transformers while it loads; nothing may be missing or have another shape."""
    info = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)[1]
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert not info["error_msgs"]
    return info


def train(model: MoEModel, folder: Path) -> np.ndarray:
    """New weights for the two most used experts of the first and last layer, saved as a run does; the union [L, E]."""
    union_LE = np.zeros((model.shape.num_layers, E), bool)
    for layer in (model.layers[0], model.layers[-1]):
        union_LE[layer.index, layer.received_S.topk(2).indices.numpy()] = True
    generator, saved = torch.Generator().manual_seed(3), {}
    for layer, expert in np.argwhere(union_LE).tolist():
        for name, row in model.layers[layer].row(expert).items():
            row.copy_(torch.randn(row.shape, generator=generator) * 0.2)
            saved.setdefault((layer, expert), {})[name] = row
    folder.mkdir()
    save_index(folder, save_part(folder, 0, saved), expert_tensors(model.layers), {})
    return union_LE


def flip(tensor: StoredTensor, at: int) -> None:
    with tensor.file.open("r+b") as stream:
        stream.seek(tensor.start + at)
        byte = stream.read(1)[0]
        stream.seek(tensor.start + at)
        stream.write(bytes([byte ^ 1]))


def round_trip(base: Path, tmp_path: Path) -> None:
    model = load_model(ModelConfig(path=base, dtype="float32"), CPU)
    before = logits(model.module)
    torch.testing.assert_close(before, logits(plain(base)), rtol=0, atol=1e-5)
    union_LE = train(model, tmp_path / "experts")
    after = logits(model.module)
    assert (after - before).abs().max() > 1e-3

    out = tmp_path / "out"
    layout = hub_layout(base)
    export_checkpoint(base, trained_changes(layout, TrainedExperts.open(tmp_path / "experts")), out, "card")
    torch.testing.assert_close(logits(plain(out)), after, rtol=0, atol=1e-5)
    # a part that the class has no place for (vision, audio) is as unexpected as in the base
    assert loading_info(out) == loading_info(base)
    seen = verify_checkpoint(layout, out, union_LE)
    assert seen.violations == []
    assert seen.changed_experts == set(map(tuple, np.argwhere(union_LE).tolist()))

    delta, applied = tmp_path / "delta.safetensors", tmp_path / "applied"
    trained = TrainedExperts.open(tmp_path / "experts")
    places = [place for place, _ in trained_places(layout, trained.experts)]
    facts = example_facts(model_hash(base), len(places))
    write_delta(delta, layout, places, trained_changes(layout, trained), facts)
    export_checkpoint(base, delta_changes(delta, layout, places), applied, "card")
    assert all((applied / file.name).read_bytes() == file.read_bytes() for file in out.glob("*.safetensors"))

    check_flips(base, out, layout, union_LE)


def check_flips(base: Path, out: Path, layout: HubLayout, union_LE: np.ndarray) -> None:
    """Verification reports one flipped bit: in a tensor that is no expert, and in the last value of two frozen ones."""
    stored = read_tensors(out)

    def violations(tensor: StoredTensor, at: int) -> list[str]:
        flip(tensor, at)
        found = verify_checkpoint(layout, out, union_LE).violations
        flip(tensor, at)
        return found

    dense = sorted(stored.keys() - layout.tensors.keys())
    for name in dense[:: len(dense) // 5]:
        (violation,) = violations(stored[name], 0)
        assert name in violation
        assert "not an expert's" in violation
    for expert in np.flatnonzero(~union_LE[0])[:: E // 2]:
        for name, hub in layout.tensors.items():
            if hub.layer != 0 or hub.expert not in (None, expert):
                continue
            tensor = stored[name]
            end = tensor.stop - tensor.start
            if hub.expert is None:  # of all experts, each an equal part
                end = end // E * (expert + 1)
            (violation,) = violations(tensor, end - 1)
            assert name in violation
            assert f"L00_E{expert:02}" in violation
