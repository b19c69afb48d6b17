"""One process of one engine: the steps of a tiny model in each mode; losses and weights go to a file."""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file

from dist_moe.parallel.launch import process_group
from tools.gpu_check.tiny import Tiny


def main() -> None:
    engine, file = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    results = {}
    with process_group() as comm:
        for mode in ("update", "route"):
            tiny = Tiny("qwen3_moe", mode, torch.float32, comm, engine)  # type: ignore[arg-type]
            results[f"{mode} losses"] = torch.tensor([tiny.step(i) for i in range(len(tiny.masks_BLE))])
            for layer in tiny.model.layers:
                results |= {f"{mode} {layer.index} {name}": bank.cpu().clone() for name, bank in layer.bank.items()}
        save_file(results, file)


if __name__ == "__main__":
    main()
