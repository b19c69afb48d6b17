"""`dist-moe publish` and `dist-moe fetch`: results to a URL, and back."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from dist_moe.errors import UserError
from dist_moe.parallel.comm import SoloComm
from dist_moe.published import Published
from dist_moe.published import fetch as fetch_files
from dist_moe.published import publish as publish_files
from dist_moe.workflows.run_dir import RunDir
from dist_moe.workflows.run_lock import run_lock

log = logging.getLogger(__name__)

COMMANDS = ("count", "analyze", "train")


def publish(folder: Path, url: str) -> Published:
    """Write a directory to a URL: an export, a store, an evaluation, or a run without what it would resume from.

    A run cannot be written while a command works in it.

    Raises:
        UserError: there is no such directory, a command works in it, or as `dist_moe.published.publish`.
    """
    if not os.path.isdir(folder):
        raise UserError(f"no directory {folder}: expected a run, an export, a store or an evaluation")
    run = RunDir(folder)
    if any(run.resolved(command).is_file() for command in COMMANDS):
        with run_lock(folder, SoloComm(torch.device("cpu"))):
            of_starts = (run.rows, run.analysis, run.checkpoints, run.training, run.stop, run.requeue)
            left_out = {path.name for path in of_starts}
            found = publish_files(folder, [n for n in _names(folder) if n.partition("/")[0] not in left_out], url)
    else:
        found = publish_files(folder, _names(folder), url)
    log.info(f"Published {len(found.files)} files, {found.num_bytes / 1e6:,.1f} MB, of {folder} at {url}")
    return found


def fetch(url: str, out: Path) -> Published:
    """Copy what is published at a URL to a new directory; see `dist_moe.published.fetch`."""
    found = fetch_files(url, out)
    log.info(f"Fetched {len(found.files)} files, {found.num_bytes / 1e6:,.1f} MB, of {url} to {out}, each as published")
    return found


def _names(folder: Path) -> Iterator[str]:
    """The files of a directory, sorted, without hidden ones."""
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix()
