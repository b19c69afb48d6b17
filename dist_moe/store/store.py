"""What both kinds of stores share when they are read. Nothing is written, and no file is decoded before it is verified.

Opening reads and verifies only the root's metadata, whatever the size. Each file is compared with its digest when it is
read; `check` compares all of them.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from dist_moe.store.files import CheckedFiles, Damage, damaged
from dist_moe.store.layout import Kind
from dist_moe.store.root import Attributes, read_root
from dist_moe.store.shapes import Shapes
from dist_moe.store.source import Source, open_source

if TYPE_CHECKING:
    import pandas as pd


class Store:
    """Attributes and batches of a store; made by `open`."""

    kind: ClassVar[Kind]

    def __init__(self, path: str | Path, source: Source, attributes: dict[str, Any], root: Attributes) -> None:
        self.path = path
        self.attributes = {name: value for name, value in attributes.items() if name != "complete"}
        self.counted_tokens = root.counted_tokens
        self.experts_per_token = root.experts_per_token
        self.num_experts = root.num_experts
        """E."""
        self.layer_names = tuple(root.layer_names)
        self.provenance = root.provenance
        self.dist_moe_version = root.dist_moe_version
        self.digest = root.complete.digest
        self.files = CheckedFiles(source, root.complete.arrays)
        self._shapes = Shapes(self.files, root, self.kind)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a store for reading.

        Args:
            path: a directory, or a URL that fsspec can read, such as s3://bucket/masks.zarr.

        Raises:
            UserError: there is no store at `path`, or it is of another kind or version, incomplete or damaged.
        """
        source = open_source(path)
        return cls(path, source, *read_root(source, cls.kind))

    @classmethod
    def open_whole(cls, path: str | Path) -> Self:
        """Open a store, and check that its arrays are consistent; results are checked when they are read.

        Raises:
            UserError: as `open`, or an array has an unexpected type, length or shape.
        """
        store = cls.open(path)
        store.check_plan()
        return store

    def check_plan(self) -> None:
        """Compare types, shapes and lengths of all arrays with each other; results are not read.

        Raises:
            UserError: two of them are inconsistent.
        """
        for name in self.files.array_digests:
            self._shapes.array(name)
        if len(self.batch_ids) != self._shapes.size("B"):
            what = f"batch_ids has {len(self.batch_ids)} entries, and the other arrays {self._shapes.size('B')}"
            raise damaged(str(self.path), what)
        if not self.batch_ids:
            raise damaged(str(self.path), "it has no batch")
        self.categories  # noqa: B018 (its length is checked as it is read)

    def damage(self) -> list[Damage]:
        """Compare every file of every array with its digest; returns what is wrong."""
        return [wrong for name in self.files.array_digests for wrong in self.files.damage(name)]

    def check(self) -> None:
        """Compare every file with its digest.

        Raises:
            UserError: a file was changed, added or lost.
        """
        for wrong in self.damage():
            raise damaged(
                str(self.path), f"array {wrong.array} has changed since it was written ({wrong.file} {wrong.how})"
            )

    @property
    def arrays(self) -> pd.DataFrame:
        """A line for each array: name, dtype, shape."""
        import pandas as pd

        return pd.DataFrame(self.files.facts())

    @cached_property
    def batch_ids(self) -> tuple[str, ...]:
        """Id of each batch."""
        return self._shapes.texts("batch_ids")

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """Category of each batch."""
        return self._texts("batch_categories", len(self.batch_ids))

    @property
    def shape_BLE(self) -> tuple[int, int, int]:
        """[B, L, E]."""
        return self._shapes.size("B"), len(self.layer_names), self.num_experts

    def _texts(self, name: str, number: int) -> tuple[str, ...]:
        """An array of texts, with this number of entries."""
        texts = self._shapes.texts(name)
        if len(texts) != number:
            raise damaged(str(self.path), f"array {name} has {len(texts)} entries: expected {number}")
        return texts
