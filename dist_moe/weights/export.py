"""Writes a Hugging Face checkpoint from a base and a stream of changes: a copy in which only the changed bytes are
new."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dist_moe.errors import UserError, refused_by_library
from dist_moe.files import atomic_directory
from dist_moe.weights.changes import Change
from dist_moe.weights.directory import AGAIN, read_tensors, weight_files
from dist_moe.weights.finite import is_finite
from dist_moe.weights.other_files import BASE_CARD, CARD, other_files

NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)


def export_checkpoint(base: Path, changes: Iterable[Change], out: Path, card: str, *, link: bool = False) -> None:
    """Write `out` from the model directory `base`, the changes and a model card.

    Shards are copied and then patched in place: data types, layout, headers and all other tensors stay the same. With
    `link`, an unchanged shard is a hard link to that of the base. All other files are copied, except weight files that
    transformers does not read; the base's card becomes BASE_README.md. `out` gets its name when it is complete.
    config.json is written after the weights, so that the leftover of a killed export cannot be loaded.

    Raises:
        UserError: `out` exists, the file system does not allow `link`, a file of `base` cannot be read, or a new value
            is
            NaN or infinite.
    """
    weights, tensors, others = weight_files(base), read_tensors(base), other_files(base)
    for name in (*weights.names, *others):
        _require_readable(base / name)
    with atomic_directory(out) as partial:
        linked = {base / name for name in weights.shards} if link else set()
        for name in weights.names:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            if base / name in linked:
                _hard_link(base / name, partial / name, partial)
            else:
                shutil.copyfile(base / name, partial / name)
        for place, data in changes:
            target = place.of(tensors)
            if not is_finite(data, target.dtype):
                raise UserError(f"{place}: a trained value is NaN or infinite as {target.dtype}: nothing is exported")
            file = partial / target.file.relative_to(base)
            if target.file in linked:
                linked.remove(target.file)
                file.unlink()
                shutil.copyfile(target.file, file)
            replace(target, file=file).overwrite(data)
        for name in others:
            file = partial / (BASE_CARD if name == CARD else name)
            file.parent.mkdir(exist_ok=True)
            shutil.copyfile(base / name, file)
        (partial / CARD).write_text(card, encoding="utf-8")


def _require_readable(file: Path) -> None:
    with refused_by_library(f"{file}: cannot be read", AGAIN, (OSError,)), file.open("rb"):
        pass


def _hard_link(source: Path, target: Path, out: Path) -> None:
    try:
        # A downloaded model's files may be relative symbolic links into a cache: link what they point to.
        target.hardlink_to(source.resolve())
    except OSError as error:
        if error.errno in NO_LINK:
            raise UserError(
                f"--link: no hard link of {source} in {out.parent} ({error.strerror}): "
                "choose an --out on the base's file system, or leave --link out to copy"
            ) from None
        raise
