"""One job at a time in a run directory, a job whose launcher has died included."""

from __future__ import annotations

import errno
import fcntl
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
from dist_moe.workflows.console import Say

WAIT_S = 60.0
"""For another job to end: one whose launcher has died finishes its step and saves."""


@contextmanager
def run_lock(directory: Path, comm: Comm, say: Say) -> Iterator[None]:
    """Rank 0 holds a lock on `directory`/.lock, which the system takes back from a process that dies.

    It is flock's: on a network file system it works between nodes as far as that file system passes flock on.

    Raises:
        UserError: on all ranks: another job has it and does not end, or the directory cannot be made.
    """
    absent = not directory.exists()
    with together(comm), writing(directory):
        if comm.rank == 0:
            directory.mkdir(parents=True, exist_ok=True)
            lock = _locked(directory / ".lock", say)
    try:
        yield
    finally:
        if comm.rank == 0:
            with suppress(OSError):
                (directory / ".lock").unlink()
                if absent:
                    directory.rmdir()  # where nothing was written, a refused start leaves nothing
            os.close(lock)


def _locked(path: Path, say: Say) -> int:
    """The descriptor of the locked file."""
    limit, said = time.monotonic() + WAIT_S, False
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                say(f"{path}: no locks there ({error.strerror}): see to it yourself that one job at a time uses it")
                return lock
            holder = os.pread(lock, 200, 0).decode(errors="replace")
            os.close(lock)
            if time.monotonic() > limit:
                raise UserError(
                    f"{path.parent} is in use by another job, {holder}: wait until it has ended, or end it, "
                    "or choose another run_dir"
                ) from None
            if not said:
                say(f"{path.parent} is in use by another job, {holder}: waiting for at most {WAIT_S:.0f} s")
                said = True
            time.sleep(0.1)
            continue
        if _is_at(lock, path):
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            return lock
        os.close(lock)  # its holder removed the file before this process had the lock


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
