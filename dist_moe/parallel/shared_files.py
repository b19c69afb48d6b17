"""Directories that all ranks of a job write together."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dist_moe.files import publish, sync, sync_tree, writing
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together


class SharedDirectory:
    """A directory on storage that all ranks see; `publish` renames it to `final`, replacing an earlier one.

    A job that dies before that leaves a hidden `.NAME.partial-*`. Every attempt has its own, so that a rank that
    outlives its job cannot write into the directory of the next job.
    """

    def __init__(self, final: Path, comm: Comm) -> None:
        """Called by all ranks together.

        Raises:
            UserError: on all ranks: the storage cannot be written.
        """
        self.final, self.comm = final, comm
        self.partial = final.with_name(f".{final.name}.partial-{comm.gather(secrets.token_hex(4))[0]}")
        with together(comm), writing(final):
            if comm.rank == 0:
                remove_partial(final.parent, final.name)
                self.partial.mkdir(parents=True)

    def publish(self) -> None:
        """Called by all ranks together, when every rank has written its files to disk.

        Raises:
            UserError: on all ranks: the storage cannot be written.
        """
        with together(self.comm), writing(self.final):
            if self.comm.rank == 0:
                sync_tree(self.partial)
                publish(self.partial, self.final, overwrite=True)


def remove_partial(parent: Path, name: str = "*", *, within: bool = False) -> None:
    """Remove what dead jobs have left of a file or directory `name` in `parent` ("*": of all); with `within` also
    below it."""
    pattern = f".{name}.partial-*"
    for left in list(parent.rglob(pattern) if within else parent.glob(pattern)):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file; it is on disk when this returns.

    Raises:
        OSError: the system cannot write it.
    """
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors lets only the owner read it
    sync(path)
