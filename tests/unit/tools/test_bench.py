"""The benchmark runs and prints its ratios; their values are for people."""

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[3] / "tools" / "bench.py"


def test_small_benchmark_prints_every_row():
    done = subprocess.run([sys.executable, TOOL, "--small"], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    for row in ("forward, counting / not counting", "store: bytes a mask cell", "step"):
        assert row in done.stdout
