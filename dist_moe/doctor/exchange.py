"""Whether processes can exchange data as the ranks of a run do: by nccl if there is a GPU for each, else by gloo."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

from dist_moe.doctor.check import Asked, Finding, check

LIMIT_S = 120.0
REMEDY = (
    "see that the host's name resolves (`getent hosts $(hostname)`), and that NCCL_SOCKET_IFNAME and "
    "GLOO_SOCKET_IFNAME are not set or name an interface of `ip link`; for nccl, NCCL_DEBUG=INFO says more"
)


@check(limit_s=LIMIT_S + 30)
def exchange(asked: Asked) -> Finding:
    """Ranks on this machine meet, add up numbers, and send each other rows."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    job = {**os.environ, "WORLD_SIZE": str(asked.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "dist_moe.doctor.exchange_rank"],
            env={**job, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(asked.ranks)
    ]
    end = time.monotonic() + LIMIT_S
    try:
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            if time.monotonic() > end:
                return Finding(False, f"{asked.ranks} ranks have not met within {LIMIT_S:.0f} s", REMEDY)
            time.sleep(0.05)
    finally:
        for each in ranks:
            each.kill()
    outputs = [each.communicate() for each in ranks]
    for rank, each in enumerate(ranks):
        if each.returncode > 0:
            last = (outputs[rank][1].strip().splitlines() or ["no message"])[-1]
            return Finding(False, f"rank {rank} of {asked.ranks} failed: {last[:300]}", REMEDY)
    told = json.loads(outputs[0][0].splitlines()[-1])
    if not told["is_right"]:
        return Finding(False, f"{asked.ranks} ranks exchange by {told['backend']}, and get wrong numbers", REMEDY)
    sent = f"{told['megabytes']:.0f} MB to each other in {1e3 * told['seconds']:.1f} ms"
    return Finding(True, f"{asked.ranks} ranks by {told['backend']}: {sent}")
