"""The commands in a row, on the demo's model: analyze, train, export, verify, evaluate."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

from tools.gpu_check.here import Here, report


def run(here: Here) -> None:
    if here.dry:  # `make demo ARGS=--fast` is a test of its own, and takes a minute
        report("demo", "demo --fast", skipped="on a CPU: make demo ARGS=--fast")
        return
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "dist_moe.cli.main", "demo", "--fast", "--out", f"{directory}/demo"]
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(5, here.left), check=False)
        tail = (done.stdout + done.stderr)[-1200:]
        report("demo", "demo --fast", done.returncode == 0, seconds=time.monotonic() - started, log=tail)
