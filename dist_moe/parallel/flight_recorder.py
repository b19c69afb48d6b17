"""The last exchanges of this process, as torch's flight recorder has noted them.

torch keeps 2,000 of them, by default (its variable TORCH_FR_BUFFER_SIZE); gloo and nccl have a recorder each.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch._C._distributed_c10d as c10d


def write_exchanges(path: Path, device: torch.device) -> None:
    """Write them to a file, as JSON.

    Raises:
        OSError: the file cannot be written.
    """
    dump = getattr(c10d, "_dump_nccl_trace_json" if device.type == "cuda" else "_dump_fr_trace_json")
    path.write_bytes(dump(True, False))  # collectives, also those that are done
