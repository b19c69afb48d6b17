"""Lets one job at a time use a run directory, or several that share an analysis; also after a launcher has died."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.files import writing
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.workflows.run_holder import LOCK

log = logging.getLogger(__name__)

WAIT_S = 60.0
"""How long to wait for another job to end: ranks whose launcher has died finish their step and save."""


class RunLock:
    """A lock on a file, which the operating system releases when the process dies."""

    def __init__(self, path: Path, *, shared: bool) -> None:
        """Wait for the lock.

        Raises:
            UserError: another job holds it and does not end.
        """
        self._path, self._shared = path, shared
        self._lock = _locked(path, shared=shared)

    def alone(self) -> bool:
        """Whether no other job shares the lock any more; then no other can take it. If another does, this one gives
        it up."""
        if self._shared:
            os.close(self._lock)
            try:
                self._lock = _locked(self._path, shared=False)
            except UserError:
                self._lock = -1
                return False
            self._shared = False
        return True

    def release(self) -> None:
        """Release the lock; the last job removes the file."""
        if self._lock < 0:
            return
        with suppress(OSError):
            if self._shared:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(self._lock, self._path):
                self._path.unlink()
        os.close(self._lock)


@contextmanager
def run_lock(directory: Path, comm: Comm, *, shared: bool = False) -> Iterator[RunLock | None]:
    """Context manager: rank 0 holds a lock on `directory`/.lock, alone or shared with other jobs; other ranks get None.

    It uses flock. On a network file system it works across nodes if that file system supports flock.

    Raises:
        UserError: on all ranks: another job holds the lock and does not end, or the directory cannot be created.
    """
    lock, absent = None, False
    with together(comm), writing(directory):
        if comm.rank == 0:
            absent = not directory.exists()
            directory.mkdir(parents=True, exist_ok=True)
            lock = RunLock(directory / LOCK, shared=shared)
    try:
        yield lock
    finally:
        if lock is not None:
            lock.release()
            if absent:
                with suppress(OSError):
                    directory.rmdir()  # where nothing was written, a refused start leaves nothing


def _locked(path: Path, *, shared: bool) -> int:
    """File descriptor of the locked file."""
    limit, said = time.monotonic() + WAIT_S, False
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                log.info(
                    f"{path}: the file system has no locks ({error.strerror}): make sure that only one job at a time "
                    "uses this directory"
                )
                return lock
            holder = os.pread(lock, 200, 0).decode(errors="replace")
            os.close(lock)
            if time.monotonic() > limit:
                raise UserError(
                    f"{path.parent} is in use by another job, {holder}: wait until it has ended, or end it, "
                    "or choose another run_dir"
                ) from None
            if not said:
                log.info(f"{path.parent} is in use by another job, {holder}: waiting for at most {WAIT_S:.0f} s")
                said = True
            time.sleep(0.1)
            continue
        if _is_at(lock, path):
            try:
                os.ftruncate(lock, 0)
                os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            except OSError:
                path.unlink()
                os.close(lock)
                raise
            return lock
        os.close(lock)  # its holder removed the file before this process had the lock


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
