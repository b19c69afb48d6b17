"""One log file for each rank in the run directory: logs/rank-N.log, and beside it what the rank does now.

When another rank is lost, a rank writes its stacks into its log, and its last exchanges beside it. A job that is
refused leaves the run directory as it was. So lines are kept in memory until the job `begin`s to write its results.
Logs are for people: where they cannot be written, the job goes on without them.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import socket
import time
import traceback
from dataclasses import replace
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import torch

from dist_moe.errors import UserError
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.flight_recorder import write_exchanges
from dist_moe.parallel.launch import LOST_CONNECTION
from dist_moe.trackers.rank_state import INTERRUPTED, LOGS, RankState
from dist_moe.trackers.tracker import Place
from dist_moe.workflows.library_warnings import LibraryWarnings

EVERY_S = 1.0
"""Least time between two states of a rank on disk."""

log = logging.getLogger(__name__)


class RankLog:
    """Context manager around a job's work on one rank; also the tracker that reports its steps."""

    name: ClassVar[str] = "ranks"

    def __init__(self, run_dir: Path, comm: Comm, command: str, unit: str, job: str = "") -> None:
        """`job` is the beginning of its files' names, where several jobs share a run directory."""
        self._directory, self._device = run_dir / LOGS, comm.device
        self._file = _File(self._directory / f"{job}rank-{comm.rank}.log")
        self._path = self._directory / f"{job}rank-{comm.rank}.json"
        self._heartbeat = comm.heartbeat
        self._warned = LibraryWarnings(lambda text: self._file.line(f"warning: {text}"), is_first=comm.rank == 0)
        now = time.time()
        self._state = RankState(
            command=command,
            rank=comm.rank,
            num_ranks=comm.size,
            process=os.getpid(),
            host=socket.gethostname(),
            begun=now,
            told=now,
            unit=unit,
            device=str(comm.device),
        )

    def __enter__(self) -> Self:
        logging.getLogger("dist_moe").addHandler(self._file)
        state = self._state
        where = f"process {state.process} on {state.host}, {state.device}"
        self._file.line(f"{state.command}: rank {state.rank} of {state.num_ranks}, {where}")
        self._warned.__enter__()
        self._heartbeat.last_words = self._end_beside_work
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._heartbeat.last_words, self._heartbeat.done = None, ""
        logging.getLogger("dist_moe").removeHandler(self._file)
        self._warned.__exit__()
        if self._file.is_open:
            said = None if error is None else _in_a_line(error)
            if error is not None and not isinstance(error, UserError | KeyboardInterrupt):
                self._file.line("".join(traceback.format_exception(error)).rstrip())
            self._file.line("ended" if said is None else f"ended: {said}")
            self._tell(has_ended=True, error=said)
        self._file.close()

    def begin(self, done: int, total: int, since: float | None = None) -> None:
        """The job begins to write its results; the run directory exists. `done` of `total` were done by earlier jobs.
        `since`: when the first of the rest was begun; None: now."""
        self._file.open()
        self._count(done=done, total=total)
        self._tell(begun=time.time() if since is None else since)

    def advance(self, done: int) -> None:
        """So many more are done by all ranks together."""
        self._count(done=self._state.done + done)
        if time.time() - self._state.told >= EVERY_S:
            self._tell()

    def record(self, line: dict[str, Any], place: Place) -> None:
        """After each step of training, as trackers do."""
        tokens = self._state.num_tokens + place.num_own_tokens
        self._count(done=line["step"], total=place.num_steps, num_tokens=tokens)
        if time.time() - self._state.told >= EVERY_S or line["step"] == place.num_steps:
            self._tell()

    def _count(self, **changes: Any) -> None:
        self._state = replace(self._state, **changes)
        self._heartbeat.done = f"{self._state.done} of {self._state.total} {self._state.unit} done"

    def _end_beside_work(self, line: str) -> None:
        """The process ends while its work waits for a rank that is lost."""
        if not self._file.is_open:
            return
        self._file.stacks()
        try:
            write_exchanges(self._path.with_name(f"exchanges-{self._path.name}"), self._device)
        except OSError as error:
            self._file.lose(error)
        self._file.line(f"ended: {line}")
        self._tell(has_ended=True, error=line)

    def _tell(self, **changes: Any) -> None:
        self._state = replace(self._state, told=time.time(), peak_bytes=_peak_bytes(self._device), **changes)
        if self._file.is_open:
            try:
                self._state.write(self._path)
            except OSError as error:
                self._file.lose(error)


def _in_a_line(error: BaseException) -> str:
    """As the command itself ends."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if LOST_CONNECTION.search(str(error)):
        return "another rank has ended before its work was done"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class _File(logging.Handler):
    """Keeps lines until it is opened, then appends them to its file, each with its time."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._kept: list[str] = []
        self._stream: FileIO | None = None
        self._is_lost = False

    @property
    def is_open(self) -> bool:
        return self._stream is not None

    def emit(self, record: logging.LogRecord) -> None:
        what = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        self.line(what + record.getMessage())

    def line(self, text: str) -> None:
        """Write a line now, or when the file is opened."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n"
        if self._stream is not None:
            self._write(line)
        elif not self._is_lost:
            self._kept.append(line)

    def stacks(self) -> None:
        """Write where every thread of this process is."""
        self.line("stacks:")
        if self._stream is not None:
            faulthandler.dump_traceback(self._stream)

    def open(self) -> None:
        """Open the file, and write what was kept."""
        kept, self._kept = self._kept, []
        try:
            self._path.parent.mkdir(exist_ok=True)
            self._stream = FileIO(self._path, "a")  # without a buffer, which a full disk would keep from closing
        except OSError as error:
            self.lose(error)
            return
        for line in kept:
            self._write(line)

    def lose(self, error: OSError) -> None:
        """Go on without the file."""
        self.close()
        if not self._is_lost:
            self._is_lost = True
            log.warning(f"{self._path}: cannot be written ({error.strerror}); going on without this rank's log")

    def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        super().close()

    def _write(self, line: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(line.encode(errors="backslashreplace"))
        except OSError as error:
            self.lose(error)
