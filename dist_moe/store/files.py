"""Reads the files of a store, and compares each with its digest before it is decoded."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from dist_moe.errors import UserError
from dist_moe.store.layout import SUMS, sha256, stored_sums
from dist_moe.store.rows import StoredRows
from dist_moe.store.source import Source
from dist_moe.store.zarr_arrays import METADATA, parse_array_metadata

KEPT_BYTES = 64 * 2**20
ADDED = "does not belong to the store"


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that has changed since it was written."""

    array: str
    file: str
    how: str


ADVICE = "restore it from a copy, or remove it and run the analysis again"


def damaged(place: str, how: str) -> UserError:
    """The error for a damaged store."""
    return UserError(f"{place} is damaged: {how}; {ADVICE}")


class CheckedFiles:
    """The arrays of one store. Caches the last files, so that neighbouring batches are read once."""

    def __init__(self, source: Source, array_digests: dict[str, str]) -> None:
        self.source, self.array_digests = source, array_digests
        self._sums: dict[str, dict[str, str]] = {}
        self._arrays: dict[str, StoredRows] = {}
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def array(self, name: str) -> StoredRows:
        """An array that is read when it is indexed.

        Raises:
            UserError: its metadata are damaged.
        """
        if name not in self._arrays:
            if name not in self.array_digests:
                raise damaged(self.source.place, f"there is no array {name}")
            data = self.read(name, METADATA)
            try:
                spec = parse_array_metadata(data)
            except UserError as error:
                raise damaged(self.source.place, f"array {name}: {error}") from None
            what = f"{self.source.place} is damaged: array {name}"
            self._arrays[name] = StoredRows(spec, lambda file: self.read(name, file), what)
        return self._arrays[name]

    def read(self, array: str, file: str) -> bytes:
        """The bytes of one file of an array.

        Raises:
            UserError: the file has changed or is missing.
        """
        key = f"{array}/{file}"
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        expected = self.sums(array).get(file)
        data = self.source.read(key)
        if data is None or sha256(data) != expected:
            raise damaged(self.source.place, f"array {array} has changed since it was written ({file})")
        self._kept[key] = data
        while len(self._kept) > 1 and sum(map(len, self._kept.values())) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return data

    def sums(self, array: str) -> dict[str, str]:
        """The digests of an array's files.

        Raises:
            UserError: the list has changed or is missing.
        """
        if array not in self._sums:
            sums = stored_sums(self.source, array, self.array_digests[array])
            if sums is None or METADATA not in sums:
                raise damaged(self.source.place, f"array {array} has changed since it was written")
            self._sums[array] = sums
        return self._sums[array]

    def damage(self, array: str) -> list[Damage]:
        """Everything that is wrong with an array: compares every file, and finds files that do not belong there."""
        try:
            sums = self.sums(array)
        except UserError:
            return [Damage(array, SUMS, "has changed since it was written")]
        found = {key.removeprefix(f"{array}/") for key in self.source.files(array)} - {SUMS}
        wrong = [Damage(array, file, ADDED) for file in sorted(found - sums.keys())]
        for file in sorted(sums):
            data = self.source.read(f"{array}/{file}")
            if data is None:
                wrong.append(Damage(array, file, "is missing"))
            elif sha256(data) != sums[file]:
                wrong.append(Damage(array, file, "has changed since it was written"))
        return wrong

    def facts(self) -> list[dict[str, Any]]:
        """A line for each array: name, dtype, shape."""
        arrays = [(name, self.array(name)) for name in self.array_digests]
        return [{"array": n, "dtype": a.dtype.name, "shape": "x".join(map(str, a.shape))} for n, a in arrays]
