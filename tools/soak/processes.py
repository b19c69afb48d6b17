"""One start of a training job as forks of this process: a launcher, and under it the ranks.

A fork has everything imported, so that a signal can come at any moment of the work and not only of imports. A fork of a
process with threads can hang, so this process must have one thread only. No wait is without a limit: what passes it
prints its stacks and is killed.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import dist_moe.engines.fsdp
import dist_moe.workflows.train  # noqa: F401 (every start needs it)
from dist_moe.cli.main import launched_main, main
from dist_moe.config.load import load_config

LIMIT_S = 60
"""For a start to come to its signal, or to end: it takes about a second."""
DUMP = signal.SIGUSR2
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class HungError(Exception):
    """A wait has passed its limit."""


def prepare(config: Path, engines: set[str]) -> None:
    """Do here what every fork would do again; have stacks printed on `DUMP`, and orphans given to this process."""
    if "deepspeed" in engines:
        import dist_moe.engines.deepspeed  # noqa: F401
    model = AutoConfig.from_pretrained(load_config(config, ("--seed", "0")).model.path)
    get_checkpoint_conversion_mapping(model.model_type)
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(model)
    faulthandler.register(DUMP, all_threads=True)
    gc.freeze()  # a collection in a fork would write to every page, and so copy it
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


@dataclass(frozen=True, slots=True)
class Start:
    """A start at work. What its processes print is in `log`."""

    launcher: int
    ranks: list[int]
    report: int
    """The pipe in which the launcher says how its ranks ended, unless it is killed."""
    log: Path

    def ended(self) -> bool:
        """Whether the launcher has: it is the last, unless it was killed."""
        return _ended(self.launcher)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until it holds, or the start has ended."""
        limit = time.monotonic() + LIMIT_S
        while not (self.ended() or condition()):
            if time.monotonic() > limit:
                self._give_up()
            time.sleep(0.002)

    def statuses(self) -> list[int]:
        """Wait for the end: exit status of each rank, or minus the signal that ended it."""
        self.wait_until(lambda: False)
        os.waitpid(self.launcher, 0)
        with open(self.report) as report:
            told = report.read()
        if told:
            return json.loads(told)
        limit = time.monotonic() + LIMIT_S  # the launcher was killed, and its ranks are this process's children now
        while not all(_ended(rank) for rank in self.ranks):
            if time.monotonic() > limit:
                self._give_up()
            time.sleep(0.002)
        return [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in self.ranks]

    def _give_up(self) -> None:
        alive = [pid for pid in (*self.ranks, self.launcher) if Path(f"/proc/{pid}").exists()]
        for pid in alive:
            os.kill(pid, DUMP)
            time.sleep(1)  # dumps at the same time would mix
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
        raise HungError(f"{self.log}: no end after {LIMIT_S} s\n{self.log.read_text()[-8000:]}")


def start(engine: str, num_ranks: int, arguments: list[str], log: Path) -> Start:
    """Engine local is `dist-moe train`; the others' ranks are launch/train.py as launchers start it."""
    num_threads = len(os.listdir("/proc/self/task"))
    assert num_threads == 1, f"{num_threads} threads: a fork may hang"
    sys.stdout.flush()
    port = free_port()
    pids, tell_pids = os.pipe()
    report, tell = os.pipe()
    launcher = os.fork()
    if launcher == 0:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for stream in (1, 2):
            os.dup2(output, stream)
        ranks = [_fork_rank(engine, rank, num_ranks, port, arguments) for rank in range(num_ranks)]
        os.write(tell_pids, json.dumps(ranks).encode())
        os.close(tell_pids)
        statuses = dict(os.wait() for _ in ranks)
        os.write(tell, json.dumps([os.waitstatus_to_exitcode(statuses[rank]) for rank in ranks]).encode())
        os._exit(0)
    os.close(tell_pids)
    os.close(tell)
    with open(pids) as stream:
        ranks = json.loads(stream.readline())
    return Start(launcher, ranks, report, log)


def _fork_rank(engine: str, rank: int, num_ranks: int, port: int, arguments: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.closerange(3, 64)  # the launcher's pipes
        if engine == "local":
            status = main(["train", *arguments])
        else:
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            size = {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks)}
            os.environ.update({**address, **size, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            sys.argv = ["launch/train.py", "--engine", engine, *arguments]
            status = launched_main("train")
    except BaseException:  # noqa: BLE001 - nothing may reach the code of the parents
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)


def _ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
