"""Writes a store of counts or masks, by one process or by many that need no lock.

All that write one store have the same plan. Each writes blocks of batches: files that nobody else writes, each by one
rename, and then a record of their digests; a block with a record is done. Whoever finds all records completes the
store: only then is there a zarr.json at its root, without which it does not open. Two that write the same block, or
complete the store at the same time, write the same bytes.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Generic

import numpy as np

from dist_moe.errors import UserError
from dist_moe.files import atomic_directory, read_json, write_bytes_atomic
from dist_moe.store.layout import (
    FACTS,
    ROOT_METADATA,
    SUMS,
    WRITING,
    parse_sums,
    root_digest,
    sha256,
    sums_text,
)
from dist_moe.store.plan import R, StorePlan
from dist_moe.store.root import read_root
from dist_moe.store.source import Directory
from dist_moe.store.zarr_arrays import METADATA, array_metadata, decode_rows, encode_file, plain


def write_store(path: Path, plan: StorePlan[R], results: R, *, overwrite: bool = False) -> None:
    """Write a store with the results of all batches of the plan; it appears at `path` complete, or not at all.

    Raises:
        UserError: `path` exists, and `overwrite` is false.
    """
    with atomic_directory(path, overwrite=overwrite) as directory:
        writer = StoreWriter(directory, plan, sync=False)
        for batches in writer.missing:
            writer.write(batches, plan.cut(results, batches))
        writer.seal()


REMOVE = "remove the unfinished store, to begin anew"


class StoreWriter(Generic[R]):
    """One of the processes that write a store; it may be killed at any moment, and another can go on."""

    def __init__(self, path: Path, plan: StorePlan[R], *, sync: bool = True) -> None:
        """Begin a store at `path`, or go on with one that was begun with the same plan.

        Without `sync`, the caller must make sure that files are on disk (fsync) before they count.

        Raises:
            UserError: the store there, complete or not, has another plan.
        """
        self.path, self.plan, self._sync = path, plan, sync
        self._specs, self._rows = plan.specs, plan.rows_per_file
        self._num_steps = -(-len(plan.index) // self._rows)
        files = {name: (plain(data.dtype, data.shape), data) for name, data in plan.arrays.items()}
        self._plan_specs = {name: spec for name, (spec, _) in files.items()}
        plan_files = {f"{name}/{spec.file(0)}": encode_file(spec, data) for name, (spec, data) in files.items()}
        self._plan_sums = {key: sha256(data) for key, data in plan_files.items()}
        self._facts = {"attributes": plan.attributes, "plan": sha256(sums_text(self._plan_sums))}
        if self._sealed:
            self._require_same(self._sealed_facts())
        elif (path / FACTS).exists():
            self._require_same(self._begun_facts())
        else:
            self._put(FACTS, json.dumps(self._facts, indent=2, sort_keys=True).encode())
        record = f"{WRITING}/plan.sha256"
        if not self._sealed and not (path / record).exists():
            for key, data in plan_files.items():
                self._put(key, data)
            self._put(record, sums_text(self._plan_sums))

    @property
    def missing(self) -> list[range]:
        """The batches of each block that is not written yet; none if the store is complete."""
        return [self.batches(step) for step in range(self.num_steps) if self.is_missing(step)]

    @property
    def num_steps(self) -> int:
        """Number of blocks of the grid."""
        return self._num_steps

    def batches(self, step: int) -> range:
        """The batches of a block."""
        return range(step * self._rows, min((step + 1) * self._rows, len(self.plan.index)))

    def is_missing(self, step: int) -> bool:
        """Whether a block is not written yet."""
        return not self._sealed and not self._record(step).exists()

    def write(self, batches: range, results: R) -> None:
        """Write one block; `batches` is one of `missing`. Does nothing if another process has written it meanwhile."""
        index = batches.start // self._rows
        assert batches == self.batches(index), f"{batches} is not {self.batches(index)}"
        if not self.is_missing(index):
            return  # another version of zstd could give other bytes than those with the digest
        files = self.plan.files(index, results)
        for key, data in files.items():
            self._put(key, data)
        self._put(str(self._record(index).relative_to(self.path)), sums_text({k: sha256(d) for k, d in files.items()}))

    def seal(self) -> None:
        """Complete the store; does nothing if another process has.

        Raises:
            UserError: some batches are not written yet.
        """
        try:
            sums = self._plan_sums | self._result_sums()
        except FileNotFoundError:
            if not self._sealed:
                raise
            return  # another sealed it, and the records are gone
        digests = {}
        for name, spec in sorted((self._plan_specs | self._specs).items()):
            metadata = array_metadata(spec)
            of_array = {key.removeprefix(f"{name}/"): sums[key] for key in sums if key.startswith(f"{name}/")}
            text = sums_text(of_array | {METADATA: sha256(metadata)})
            self._put(f"{name}/{METADATA}", metadata)
            self._put(f"{name}/{SUMS}", text)
            digests[name] = sha256(text)
        root: dict[str, Any] = {"zarr_format": 3, "node_type": "group", "attributes": self.plan.attributes}
        stored = {name: self._stored(name) for name in self.plan.needed_to_seal}
        root["attributes"] |= self.plan.sealed_attributes(stored)
        root = json.loads(json.dumps(root))
        root["attributes"]["complete"] = {"arrays": digests, "digest": root_digest(root, digests)}
        self._put(ROOT_METADATA, json.dumps(root, indent=2).encode())
        shutil.rmtree(self.path / WRITING, ignore_errors=True)

    @property
    def _sealed(self) -> bool:
        return (self.path / ROOT_METADATA).exists()

    def _begun_facts(self) -> dict[str, Any]:
        try:
            facts = read_json(self.path / FACTS, "the plan of an unfinished store")
        except UserError as error:
            raise UserError(f"{error}: {REMOVE}") from None
        if not isinstance(facts, dict) or not isinstance(facts.get("attributes"), dict):
            raise UserError(f"{self.path / FACTS} is damaged: {REMOVE}")
        return facts

    def _sealed_facts(self) -> dict[str, Any]:
        of_root, _ = read_root(Directory(self.path), self.plan.kind)
        sums: dict[str, str] = {}
        for name in self._plan_specs:
            stored = Directory(self.path).read(f"{name}/{SUMS}")
            if stored is None:
                continue  # a store of another plan, as its attributes say
            found = parse_sums(stored)
            sums |= {f"{name}/{file}": digest for file, digest in found.items() if file != METADATA}
        return {
            "attributes": {name: value for name, value in of_root.items() if name in self._facts["attributes"]},
            "plan": sha256(sums_text(sums)),
        }

    def _require_same(self, there: dict[str, Any]) -> None:
        here = json.loads(json.dumps(self._facts))
        if there == here:
            return
        old, new = there["attributes"], here["attributes"]
        differing = [name for name in sorted(old | new) if old.get(name) != new.get(name)]
        what = f"{differing[0]} was {old.get(differing[0])!r}" if differing else "its prompts or batches were others"
        raise UserError(
            f"{self.path} was begun by another analysis ({what}): choose another path, or remove it to start again"
        )

    def _record(self, index: int) -> Path:
        return self.path / WRITING / f"step-{index:05d}.sha256"

    def _result_sums(self) -> dict[str, str]:
        missing = self.missing
        if missing and not self._sealed:
            raise UserError(
                f"{self.path} is incomplete: batches {missing[0].start} to {missing[0].stop - 1} and "
                f"{sum(map(len, missing[1:]))} others are not written yet"
            )
        sums: dict[str, str] = {}
        for index in range(self.num_steps):
            sums |= parse_sums(self._record(index).read_bytes())
        return sums

    def _stored(self, name: str) -> np.ndarray:
        """An array of results, from what all processes have written."""
        spec = self._specs[name]
        files = {step: (self.path / name / spec.file(step)).read_bytes() for step in range(self.num_steps)}
        return decode_rows(spec, files, 0, spec.shape[0], f"{self.path}: array {name}")

    def _put(self, key: str, data: bytes) -> None:
        path = self.path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(path, data) if self._sync else path.write_bytes(data)
