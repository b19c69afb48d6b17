"""Directories that all ranks of a job write into together."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_moe.files import sync_tree
from dist_moe.parallel.comm import Comm


@contextmanager
def shared_directory(final: Path, comm: Comm) -> Iterator[Path]:
    """A directory on storage that all ranks see; it becomes `final`, in place of an earlier one, when all have left.

    What was written is on disk before that. A job that dies inside leaves a hidden `.NAME.partial`, which the next
    attempt removes.
    """
    partial = final.with_name(f".{final.name}.partial")
    if comm.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    comm.barrier()
    yield partial
    comm.barrier()
    if comm.rank == 0:
        sync_tree(partial)
        replaced = final.with_name(f".{final.name}.replaced")
        if final.exists():
            final.rename(replaced)
        partial.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)
    comm.barrier()
