"""How much memory a rank needs to load its quarter of the experts, measured from outside on a checkpoint of 576 MiB.

A child process samples its anonymous memory, which is what it allocates, while it loads. Pages of the mapped shards are
not counted: the kernel may map 2 MiB around each byte that is read, and takes them back at will.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
import transformers

from dist_moe.moe.bank import expert_weights
from dist_moe.moe.discover import find_moe_layers
from dist_moe.moe.load import empty_model, fill

E, L = 64, 8
OWNED = list(range(1, E, 4))
SIZES = {"hidden_size": 768, "num_hidden_layers": L, "vocab_size": 256, "num_attention_heads": 4}
CONFIGS = {
    "one tensor an expert": lambda: transformers.Qwen3MoeConfig(
        **SIZES, num_key_value_heads=4, head_dim=64, moe_intermediate_size=256, num_experts=E, num_experts_per_tok=8
    ),
    "fused": lambda: transformers.GraniteMoeConfig(
        **SIZES, num_key_value_heads=4, intermediate_size=256, num_local_experts=E, num_experts_per_tok=8
    ),
}


@pytest.fixture(params=CONFIGS)
def checkpoint(request):
    """Several shards; every value of expert e is e. Removed at once, as pytest would keep it for two runs more."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[request.param](), dtype=torch.bfloat16)
    layers = find_moe_layers(model)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for layer in layers:
            for name in expert_weights(layer.experts):
                getattr(layer.experts, name).copy_(torch.arange(E)[:, None, None])
    with tempfile.TemporaryDirectory() as path:
        model.save_pretrained(path, max_shard_size="200MB")
        del model, layers
        yield Path(path)


def test_a_quarter_of_the_experts_takes_a_quarter_of_the_memory(checkpoint):
    size = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    assert size >= 500 * 2**20
    child = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, checkpoint],
        check=True,
        stdout=subprocess.PIPE,
        timeout=100,
        # glibc keeps freed blocks of up to 32 MiB, more or less of them from run to run; so it gives them back at once
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)},
    )
    seen = json.loads(child.stdout.splitlines()[-1])
    assert seen["held"] < 0.3 * size
    assert seen["held"] / 2 < seen["growth"] < 1.3 * seen["held"], seen


def allocated() -> int:
    """This process's resident anonymous bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


class Peak(threading.Thread):
    """Samples `allocated` every 2 ms until `stop`, which returns by how much it grew at most."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.sizes, self.done = [allocated()], threading.Event()
        self.start()

    def run(self) -> None:
        while not self.done.wait(0.002):
            self.sizes.append(allocated())

    def stop(self) -> int:
        self.done.set()
        self.join()
        return max(*self.sizes, allocated()) - self.sizes[0]


def load_and_measure(path: Path) -> None:
    """The child's part: prints the growth and the bytes that the model ends with."""
    torch.set_num_threads(1)
    model = empty_model(path)
    layers = find_moe_layers(model)
    peak = Peak()
    fill(model, layers, path, [OWNED] * L)
    growth = peak.stop()
    for layer in layers:
        for name in expert_weights(layer.experts):
            weight = getattr(layer.experts, name)
            assert weight[:, 0, -1].tolist() == OWNED, name
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    print(json.dumps({"growth": growth, "held": held}))


if __name__ == "__main__":
    load_and_measure(Path(sys.argv[1]))
