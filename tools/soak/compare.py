"""How many bits of two finished runs differ: trained experts, and metrics without times."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

TIMES = ("seconds", "tokens_per_second")


def differing_bits(run_dir: Path, other_dir: Path) -> int:
    """A tensor or a line that one of them has not counts with all its bits."""
    one, two = _values(run_dir), _values(other_dir)
    return sum(_different(one.get(key, b""), two.get(key, b"")) for key in one.keys() | two.keys())


def _values(run_dir: Path) -> dict[str, bytes]:
    values = {}
    for file in (run_dir / "experts").glob("*.safetensors"):
        values |= {key: tensor.tobytes() for key, tensor in load_file(file).items()}
    for number, line in enumerate((run_dir / "metrics.jsonl").read_text().splitlines()):
        kept = {key: value for key, value in json.loads(line).items() if key not in TIMES}
        values[f"step {number + 1}"] = json.dumps(kept).encode()
    return values


def _different(one: bytes, two: bytes) -> int:
    if len(one) != len(two):
        return 8 * max(len(one), len(two))
    return int(np.bitwise_count(np.frombuffer(one, np.uint8) ^ np.frombuffer(two, np.uint8)).sum())
