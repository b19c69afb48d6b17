"""A rank that owns a quarter of the experts loads them within a hard limit on memory, which the kernel enforces.

Pages that are mapped from the checkpoint's files are not counted: the kernel can drop them at any time. The limit is
RLIMIT_DATA, on what a process allocates, so no sampling can miss a peak; glibc's cache of freed blocks is turned off.
"""

from __future__ import annotations

import os
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
FACTORS = {1.3: True, 0.95: False}
"""By the factor, whether it is enough."""
MIB = 2**20


def fill_within(path: Path, factor: float) -> None:
    """Load within `factor` times the bytes that must be held; in a fork, which stays limited."""
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


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> tuple[dict[float, int], str]:
    """The status of a process by its factor, and what all have printed."""
    environment = {"MALLOC_MMAP_THRESHOLD_": str(MIB // 16), "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(checkpoint), *map(str, FACTORS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(zip(FACTORS, map(int, done.stdout.split()), strict=True)), done.stderr


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("factor", "enough"), FACTORS.items())
def test_memory_while_loading(loaded: tuple[dict[float, int], str], factor: float, enough: bool) -> None:
    statuses, printed = loaded
    assert (statuses[factor] == 0) == enough, printed
    assert "allocate memory" in printed  # of those that had not enough


if __name__ == "__main__":
    for each in sys.argv[2:]:
        child = os.fork()  # of a process that has imported everything
        if child == 0:
            fill_within(Path(sys.argv[1]), float(each))
            sys.exit()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
