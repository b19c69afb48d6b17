"""A Hugging Face checkpoint from a base and a stream of changes: a copy in which only the changed bytes are new."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable
from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.export.changes import Change, locate, overwrite
from dist_moe.files import atomic_directory
from dist_moe.moe.checkpoint import read_tensors, shard_files

CARD, BASE_CARD = "README.md", "BASE_README.md"
PICKLED = (".bin", ".pt", ".pth")
"""Weights that run code when they are read, beside the safetensors files: not copied."""
NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)


def export_checkpoint(base: Path, changes: Iterable[Change], out: Path, card: str, *, link: bool = False) -> None:
    """Write `out` from the model directory `base`, the changes and a model card.

    Shards are copied, then patched in place: dtype, layout, header and every other tensor stay as they are. With `link`
    a shard without changes is a hard link to the base's. Everything else is always copied; the base's card becomes
    BASE_README.md. `out` must not exist, and gets its name when it is complete; config.json comes after the weights, so
    that what a killed export leaves loads nowhere.

    Raises:
        UserError: `out` exists, or `link` is set and the file system has no link to give.
    """
    with atomic_directory(out) as partial:
        for shard in shard_files(base):
            if link:
                _hard_link(shard, partial / shard.name)
            else:
                shutil.copyfile(shard, partial / shard.name)
        tensors, linked = read_tensors(partial), set(shard_files(partial)) if link else set()
        for key, data in changes:
            target = locate(tensors, key)
            assert target is not None, key
            if target.file in linked:
                linked.remove(target.file)
                target.file.unlink()
                shutil.copyfile(base / target.file.name, target.file)
            overwrite(target, data)
        for name in other_files(base):
            file = partial / (BASE_CARD if name == CARD else name)
            file.parent.mkdir(exist_ok=True)
            shutil.copyfile(base / name, file)
        (partial / CARD).write_text(card, encoding="utf-8")


def other_files(path: Path) -> list[str]:
    """The files of a model directory that an export has besides its shards, by their names in it, sorted."""
    files = [file for file in path.iterdir() if file.suffix not in (".safetensors", *PICKLED)]
    files += (path / "additional_chat_templates").glob("*")
    return sorted(str(file.relative_to(path)) for file in files if file.is_file())


def _hard_link(source: Path, target: Path) -> None:
    try:
        # A downloaded model's files may be relative symbolic links into a cache: link what they point to.
        target.hardlink_to(source.resolve())
    except OSError as error:
        if error.errno in NO_LINK:
            raise UserError(
                f"--link: no hard link of {source} in {target.parent.parent} ({error.strerror}): "
                "choose an --out on the base's file system, or leave --link out to copy"
            ) from None
        raise
