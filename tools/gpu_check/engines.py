"""The same steps on the three engines, one process each, started as users start them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from tools.gpu_check.here import Here, relative, report
from tools.soak.processes import free_port

WORKER = Path(__file__).with_name("engine_worker.py")


def run(here: Here) -> None:
    with tempfile.TemporaryDirectory() as directory:
        results = {}
        for engine in ("local", "deepspeed", "fsdp"):
            file, log, started = Path(directory, engine), Path(directory, f"{engine}.log"), time.monotonic()
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path[1:]])}
            with log.open("w") as out:
                command = [*_launcher(engine, here), str(WORKER), engine, str(file)]
                status = subprocess.run(
                    command, stdout=out, stderr=out, env=environment, timeout=max(5, here.left), check=False
                ).returncode
            seconds = time.monotonic() - started
            report("engines", engine, status == 0, seconds=seconds, log=log.read_text()[-1200:] if status else "")
            if status == 0:
                results[engine] = load_file(file)
        for engine in results.keys() & {"deepspeed", "fsdp"}:
            pairs = [(results[engine][name], right) for name, right in results["local"].items()]
            worst = max(relative(found, right) for found, right in pairs)
            same = all(torch.equal(found, right) for found, right in pairs)
            report("engines", f"{engine} equals local", worst < 1e-5, worst=worst, same_bits=same)


def _launcher(engine: str, here: Here) -> list[str]:
    if engine == "local":
        return [sys.executable]
    if engine == "fsdp":
        port = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
        return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1", *port]
    count = "--num_gpus" if here.cuda else "--num_accelerators"
    return [sys.executable, "-m", "deepspeed.launcher.runner", count, "1", "--master_port", str(free_port())]
