"""Who holds the lock of a run directory, asked without torch and without taking the lock for longer than it takes."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class Holder:
    """`is_held` None: the file system has no locks, or the file cannot be read."""

    is_held: bool | None
    who: str = ""
    """The last job that has taken it: "process 123 on node7"."""

    @classmethod
    def of(cls, run_dir: Path) -> Holder:
        """A job that starts at this very moment may have to try a second time, a tenth of a second later."""
        try:
            lock = os.open(run_dir / LOCK, os.O_RDONLY)
        except FileNotFoundError:
            return cls(False)
        except OSError:
            return cls(None)
        try:
            who = os.pread(lock, 200, 0).decode(errors="replace")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                return cls(True if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None, who)
            return cls(False, who)
        finally:
            os.close(lock)
