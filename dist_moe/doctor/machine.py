"""Checks of the machine: GPUs, memory, shared memory, environment."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from dist_moe.doctor.check import Asked, Finding, check

LEAST_MEMORY, LEAST_SHARED = 4 * 10**9, 512 * 2**20
NAMED = (
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "DS_ACCELERATOR", "TORCH_EXTENSIONS_DIR", "PYTORCH_CUDA_ALLOC_CONF"),
    *("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_DEBUG", "NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME", "TMPDIR"),
)
"""Variables whose values are shown; no others, as they may be secret."""


@check(limit_s=120)
def gpus(asked: Asked) -> Finding:
    """GPUs as torch sees them, with their driver; it imports torch."""
    import torch

    build = f"torch for CUDA {torch.version.cuda}" if torch.version.cuda else "torch for CPUs"
    devices = sorted(Path("/dev").glob("nvidia[0-9]*"))
    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number == 0:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        if not devices or hidden:
            why = " (CUDA_VISIBLE_DEVICES hides them)" if hidden else ""
            return Finding(True, f"none{why}: CPUs and gloo; {build}")
        remedy = "install a torch whose CUDA the driver knows (`nvidia-smi` shows the newest): make setup TORCH=..."
        return Finding(False, f"{len(devices)} in /dev, but torch sees none; {build}; driver {_driver()}", remedy)
    seen = list[str]()
    for index in range(number):
        free, total = torch.cuda.mem_get_info(index)
        used = "" if free > 0.95 * total else f", {(total - free) / 1e9:.1f} GB of it in use"
        seen.append(f"{index}: {torch.cuda.get_device_name(index)}, {total / 1e9:.0f} GB{used}")
    problems = {}
    if not torch.cuda.is_bf16_supported():
        problems["no bfloat16"] = "train with --model.dtype float32, or on GPUs of compute capability 8.0 or newer"
    return Finding.of(f"{'; '.join(seen)}; {build}; driver {_driver()}; nccl {torch.cuda.nccl.version()}", problems)


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "not known (no nvidia-smi)"
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout.split()
    return told[0] if told else "not known (nvidia-smi tells nothing)"


@check()
def memory(asked: Asked) -> Finding:
    """Cores and memory that this process may use: of the machine, or of its container or job."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    seen = f"{len(os.sched_getaffinity(0))} cores of {os.cpu_count()}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    if text != "max" and int(text) < total:
        used = int(limit.with_name("memory.current").read_text())
        free = min(free, int(text) - used)
        seen += f"; this container or job may use {int(text) / 1e9:.1f} GB, of which {used / 1e9:.1f} are used"
    problems = {}
    if free < LEAST_MEMORY:
        problems[f"only {free / 1e9:.1f} GB are free"] = "end other programs, or ask for more (sbatch --mem, docker -m)"
    return Finding.of(seen, problems)


@check()
def shared_memory(asked: Asked) -> Finding:
    """/dev/shm, through which the ranks of a node exchange data."""
    if not os.path.isdir("/dev/shm"):
        return Finding(False, "there is no /dev/shm", "mount it: mount -t tmpfs tmpfs /dev/shm")
    found = os.statvfs("/dev/shm")
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    problems = {}
    if free < LEAST_SHARED:
        problems[f"only {free / 1e6:,.0f} MB are free in /dev/shm"] = (
            "docker run --shm-size=8g (or --ipc=host), mount -o remount,size=8g /dev/shm, or remove what lies there"
        )
    return Finding.of(f"/dev/shm: {free / 1e9:,.1f} of {total / 1e9:,.1f} GB free", problems)


@check()
def environment(asked: Asked) -> Finding:
    """The variables that change how ranks meet and compute."""
    seen = [f"{name}={os.environ[name]}" for name in NAMED if name in os.environ]
    problems = {}
    given = [name for name in ("RANK", "WORLD_SIZE") if name in os.environ]
    if len(given) == 1:
        problems[f"{given[0]} is set alone"] = f"unset {given[0]}: launchers set RANK and WORLD_SIZE together"
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    if not (threads.isascii() and threads.isdecimal() and int(threads) > 0):
        problems["OMP_NUM_THREADS is no number"] = "unset OMP_NUM_THREADS, or set it to a rank's share of the cores"
    return Finding.of(", ".join(seen) or "none of the usual variables is set", problems)
