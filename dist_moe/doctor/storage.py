"""Checks of the file system on which a run would write."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_moe.doctor.check import Asked, Finding, check

LEAST_BYTES, LEAST_FILES = 2 * 10**9, 10_000
SKEW_S = 2.0
NO_LOCKS = (
    "mount it with locks (NFS version 4 or lockd, Lustre with -o flock, BeeGFS with locks enabled), or see that only "
    "one job at a time uses a run directory"
)


@check()
def run_directory(asked: Asked) -> Finding:
    """Whether files and directories can be written, flushed, renamed and locked where the run would write."""
    if asked.run_dir.exists() and not asked.run_dir.is_dir():
        return Finding(False, f"{asked.run_dir} is a file", "choose another run_dir")
    place = _existing(asked.run_dir)
    seen = f"{place}, {_kind(place)}"
    try:
        with _probe(place) as probe:
            _rename(probe)
            excludes = _excludes(probe / "lock")
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "choose another run_dir, or ask for the right to write there"
        if error.errno == errno.ENOSPC:
            remedy = "free some room, or choose another run_dir"
        if error.errno == errno.EROFS:
            remedy = "it is mounted read-only: choose another run_dir, or mount it for writing"
        return Finding(False, f"{seen}: cannot write: {reason}", remedy)
    if not excludes:
        return Finding(False, f"{seen}: its file system has no locks (flock)", NO_LOCKS)
    return Finding(True, f"{seen}: files are written, flushed, renamed and locked")


def _rename(probe: Path) -> None:
    """As results get their names."""
    (probe / "old").mkdir()
    for name in ("a", "b"):
        with (probe / name).open("wb") as stream:
            stream.write(bytes(65536))
            stream.flush()
            os.fsync(stream.fileno())
    (probe / "a").replace(probe / "b")
    (probe / "old").rename(probe / "new")


def _excludes(path: Path) -> bool:
    """Whether a second lock on a file is refused while the first is held."""
    locks = [os.open(path, os.O_RDWR | os.O_CREAT) for _ in range(2)]
    try:
        fcntl.flock(locks[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(locks[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        for lock in locks:
            os.close(lock)
    return False


@check()
def disk(asked: Asked) -> Finding:
    """Room for results, and for temporary files."""
    problems, seen = dict[str, str](), list[str]()
    for place in dict.fromkeys([_existing(asked.run_dir), Path(tempfile.gettempdir())]):
        found = os.statvfs(place)
        free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        seen.append(f"{place}: {free / 1e9:,.1f} of {total / 1e9:,.1f} GB free")
        if free < LEAST_BYTES:
            problems[f"only {free / 1e9:,.2f} GB are free at {place}"] = f"free some room there (du -sh {place}/*)"
        if found.f_files and found.f_favail < LEAST_FILES:
            problems[f"only {found.f_favail:,} more files fit at {place}"] = f"remove files there (df -i {place})"
    return Finding.of("; ".join(seen), problems)


@check()
def file_clock(asked: Asked) -> Finding:
    """Whether the clock that stamps files is this machine's, or a file server's that goes another way."""
    place = _existing(asked.run_dir)
    try:
        with _probe(place) as probe:
            before = time.time()
            off = probe.stat().st_mtime - before
    except OSError as error:
        return Finding(False, f"{place}: cannot write: {error.strerror}", "see the check of the run directory")
    problems = {}
    if abs(off) > SKEW_S:
        problems[f"files at {place} are stamped {off:+.1f} s off this machine's clock"] = (
            "synchronise both with one time server (chronyd, ntpd): ages in `dist-moe status` are wrong"
        )
    return Finding.of(f"files are stamped {abs(off):.2f} s off this machine's clock", problems)


def _existing(path: Path) -> Path:
    """The run directory, or the one in which it would be made."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.is_dir())


@contextmanager
def _probe(place: Path) -> Iterator[Path]:
    """An empty directory there, which is gone afterwards."""
    probe = Path(tempfile.mkdtemp(prefix=".doctor-", dir=place))
    try:
        yield probe
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def _kind(place: Path) -> str:
    """The type of the file system, as /proc/mounts names it."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(point, kind) for point, kind in mounts if place == Path(point) or Path(point) in place.parents]
    return max(above, key=lambda each: len(each[0]), default=("", "an unknown file system"))[1]
