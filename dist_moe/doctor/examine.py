"""Runs the checks, each in a process of its own, so that one that hangs or crashes is a finding, and no more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

from dist_moe.doctor import exchange, machine, slurm, software, storage
from dist_moe.doctor.check import CHECKS, Asked, Finding

ORDER = [module.__name__ for module in (software, machine, storage, exchange, slurm)]
"""Modules with checks, as they are shown."""


def examine(asked: Asked) -> Iterator[tuple[str, Finding]]:
    """Each check's name, and what it has found."""
    for name, check in sorted(CHECKS.items(), key=lambda each: ORDER.index(each[1].function.__module__)):
        yield name, look(name, asked, check.limit_s)


def look(name: str, asked: Asked, limit_s: float) -> Finding:
    """Run one check, for at most so long."""
    command = [sys.executable, "-m", "dist_moe.doctor", name, str(asked.run_dir), str(asked.ranks)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        _end(process)
        remedy = "something that it asked hangs: a file system, a driver or a network that does not answer"
        return Finding(False, f"no answer within {limit_s:g} s", remedy)
    except BaseException:
        _end(process)
        raise
    lines = out.splitlines()
    if process.returncode or not lines:
        last = (err.strip().splitlines() or ["no message"])[-1]
        remedy = f"its whole message: {sys.executable} -m dist_moe.doctor '{name}' {asked.run_dir} {asked.ranks}"
        return Finding(False, f"the check ended with status {process.returncode}: {last[:300]}", remedy)
    return Finding(**json.loads(lines[-1]))


def _end(process: subprocess.Popen[str]) -> None:
    """End a check and what it has started; one that the system keeps in a call is not waited for."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=2)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
