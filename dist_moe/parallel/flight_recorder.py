"""The last exchanges of this process, as torch's flight recorder has noted them.

torch keeps 2,000 of them, by default (its variable TORCH_FR_BUFFER_SIZE), of gloo and of nccl each with a recorder of
its own. `torchfrtrace`, a program of torch, compares the files of all ranks.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch._C._distributed_c10d as c10d


def write_exchanges(path: Path, device: torch.device) -> None:
    """Write them to a file, in torch's own format, with the Python stack of each.

    Raises:
        OSError: the file cannot be written.
    """
    dump = getattr(c10d, "_dump_nccl_trace" if device.type == "cuda" else "_dump_fr_trace")
    path.write_bytes(dump(True, True, False))  # collectives, with stacks, also those that are done
