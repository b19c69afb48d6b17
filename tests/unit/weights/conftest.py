"""A base on disk in both layouts of experts, and trained experts for it, made without training."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from dist_moe.moe.layout import hub_layout
from dist_moe.weights.changes import trained_changes
from dist_moe.weights.directory import model_hash
from dist_moe.weights.parts import TensorFacts
from dist_moe.weights.trained import TrainedExperts, save_index, save_part
from tests.checkpoint import save_tokenizer
from tests.export_facts import example_facts
from tests.tiny import tiny_model

HIDDEN, INTERMEDIATE = 32, 48
TRAINED = {(0, 3): 0, (0, 5): 1, (2, 0): 1, (2, 7): 0}
"""(layer, expert): the rank that wrote it."""


@dataclass(frozen=True)
class Trained:
    """`rows[layer, expert][weight]` are the new weights, float32."""

    base: Path
    experts: Path
    rows: dict[tuple[int, int], dict[str, torch.Tensor]]

    def changes(self, alpha=1.0):
        return trained_changes(hub_layout(self.base), TrainedExperts.open(self.experts), alpha)

    @property
    def facts(self):
        return example_facts(model_hash(self.base), len(TRAINED))


def make_trained(root: Path, *, fused: bool, dtype: torch.dtype = torch.float32) -> Trained:
    """`fused`: the checkpoint keeps a layer's experts in one tensor."""
    base, experts = root / "base", root / "experts"
    tiny_model("qwen3_moe", dtype).save_pretrained(base, max_shard_size="60KB", save_original_format=not fused)
    save_tokenizer(base)
    generator = torch.Generator().manual_seed(7)
    shapes = {"gate_up_proj": (2 * INTERMEDIATE, HIDDEN), "down_proj": (HIDDEN, INTERMEDIATE)}
    rows = {pair: {n: torch.randn(s, generator=generator) for n, s in shapes.items()} for pair in TRAINED}
    experts.mkdir()
    parts = {}
    for rank in (0, 1):
        parts |= save_part(experts, rank, {pair: weights for pair, weights in rows.items() if TRAINED[pair] == rank})
    tensors = {name: TensorFacts.of(weight) for name, weight in rows[0, 3].items()}
    save_index(experts, parts, tensors, {})
    return Trained(base, experts, rows)


@pytest.fixture(params=["split", "fused"])
def trained(request, tmp_path) -> Trained:
    return make_trained(tmp_path, fused=request.param == "fused")


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
