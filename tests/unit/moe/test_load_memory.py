"""A rank that owns a quarter of the experts loads them within a hard limit on memory, which the kernel enforces.

Pages that are mapped from the checkpoint's files are not counted: the kernel can drop them at any time. The limit is
RLIMIT_DATA, on what a process allocates, so no sampling can miss a peak; glibc's cache of freed blocks is turned off.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from dist_moe.moe.bank import expert_weights
from dist_moe.moe.discover import find_moe_layers
from dist_moe.moe.load import empty_model, fill

NUM_OWNED, NUM_EXPERTS = 16, 64
MIB = 2**20


def fill_within(path: Path, factor: float) -> None:
    """Load within `factor` times the bytes that must be held; in a process of its own, which stays limited."""
    model = empty_model(path)
    layers = find_moe_layers(model)
    per_expert = [layer.experts.get_parameter(n)[0].nbytes for layer in layers for n in expert_weights(layer.experts)]
    dense = [weight.nbytes for name, weight in model.named_parameters() if ".experts." not in name]
    held = sum(dense) + NUM_OWNED * sum(per_expert)
    mapped = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    assert mapped > 500 * MIB
    assert held < mapped / 3
    threading.stack_size(MIB)
    status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines())
    used = 1024 * int(status["VmData"].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, 2 * (int(used + mapped + factor * held),))
    fill(model, layers, path, [range(NUM_OWNED, 2 * NUM_OWNED)] * len(layers))
    assert sum(parameter.nbytes for parameter in model.parameters()) == held


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Qwen3MoeConfig(
        vocab_size=128,
        hidden_size=128,
        moe_intermediate_size=256,
        num_hidden_layers=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=NUM_EXPERTS,
    )
    path = tmp_path_factory.mktemp("large")
    AutoModelForCausalLM.from_config(config).save_pretrained(path, max_shard_size="200MB")
    return path


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("factor", "enough"), [(1.3, True), (0.95, False)])
def test_memory_while_loading(checkpoint: Path, factor: float, enough: bool) -> None:
    environment = {"MALLOC_MMAP_THRESHOLD_": str(MIB // 16), "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(checkpoint), str(factor)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == enough, done.stderr
    if not enough:
        assert "allocate memory" in done.stderr


if __name__ == "__main__":
    fill_within(Path(sys.argv[1]), float(sys.argv[2]))
