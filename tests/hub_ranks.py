"""Finds models of the hub as one of several processes that a launcher has started.

RANK=0 WORLD_SIZE=2 ... python -m tests.hub_ranks owner/name ...    prints a JSON list: places, or lines that refuse
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.parallel.launch import process_group
from dist_moe.workflows.model_place import placed
from tests.hub_places import hub_environment


def placed_on_ranks(names: list[str], cwd: Path, url: str, homes: list[Path]) -> list[list[str]]:
    """Of each rank what it has found for each name; rank r has its cache in `homes[r]`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = {"WORLD_SIZE": str(len(homes)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.hub_ranks", *names],
            cwd=cwd,
            env=hub_environment(cwd, HF_ENDPOINT=url)
            | launch
            | {"HF_HOME": str(home), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, home in enumerate(homes)
    ]
    try:
        return [json.loads(process.communicate(timeout=240)[0].splitlines()[-1]) for process in processes]
    finally:
        for process in processes:
            process.kill()


def _found(names: list[str]) -> list[str]:
    found = []
    with process_group() as comm:
        for name in names:
            try:
                found.append(str(placed(Path(name), "model.path", comm)))
            except UserError as error:
                found.append(str(error))
    return found


if __name__ == "__main__":
    print(json.dumps(_found(sys.argv[1:])), flush=True)
    os._exit(0)
