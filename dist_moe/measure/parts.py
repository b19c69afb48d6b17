"""Keeps the counts of parts of an analysis on disk, one file each, until all are there and the counts store is written.

A part that exists is not counted again. So a killed analysis resumes, and several jobs can count parts of one analysis
at the same time without knowing of each other. The name of a part is the hash of all that its counts depend on, so that
counts of another model, setting or text are never used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from dist_moe.data.index import BatchIndex
from dist_moe.data.tokens import Encoded, tokens_hash
from dist_moe.errors import UserError
from dist_moe.files import write_bytes_atomic
from dist_moe.stats.counts import RoutingCounts, concatenate
from dist_moe.stats.table import risk_table

ROWS_AT_ONCE = 512
"""Approximate number of rows in a part. Rows of similar length within a part share forward passes."""


class CountedParts:
    """The parts of an analysis, each of consecutive batches, and their files in `directory`."""

    def __init__(
        self, directory: Path, facts: dict[str, Any], index: BatchIndex, rows_of: Callable[[int], list[Encoded]]
    ) -> None:
        """`facts` (JSON values) are all that counts depend on, except the rows; `rows_of` gives the rows of a batch."""
        self.directory, self.facts, self.index, self.rows_of = directory, facts, index, rows_of
        size = max(1, ROWS_AT_ONCE // int(index.sizes_B[0]))
        self.parts = [range(i, min(i + size, len(index))) for i in range(0, len(index), size)]

    def rows(self, part: int) -> list[Encoded]:
        """The rows of a part."""
        return [row for batch in self.parts[part] for row in self.rows_of(batch)]

    def missing(self, parts: Sequence[int]) -> list[int]:
        """Those of the given parts that are not counted yet."""
        return [part for part in parts if not self._path(part).is_file()]

    def keep(self, part: int, counts: RoutingCounts) -> None:
        """Write the counts of a part; readers see the whole file or none.

        Raises:
            UserError: a batch has no counted token of one label.
        """
        index = self.index.of(self.parts[part])
        risk_table(counts, index.unsafe_P, index.batch_of_P, len(index), index.names)  # for its error
        self.directory.mkdir(parents=True, exist_ok=True)
        arrays = {
            **counts.tables,
            "counts": counts.counts_PLE.astype(np.int32),
            "tokens": counts.tokens_P,
            "experts_per_token": np.array([counts.experts_per_token]),
        }
        data, path = safetensors.numpy.save(arrays), self._path(part)
        write_bytes_atomic(path, data + _digest(path, data))

    def counts(self, batches: range) -> RoutingCounts:
        """The counts of consecutive batches whose parts are all there.

        Raises:
            UserError: a file is damaged.
        """
        found = []
        for number, part in enumerate(self.parts):
            here = range(max(part.start, batches.start), min(part.stop, batches.stop))
            if here:
                within = range(here.start - part.start, here.stop - part.start)
                found.append(self._counts(number).of(self.index.of(part).rows(within)))
        return concatenate(found)

    def _counts(self, part: int) -> RoutingCounts:
        path = self._path(part)
        data = path.read_bytes()
        if _digest(path, data[:-32]) != data[-32:]:
            raise UserError(f"{path} is damaged: remove it, and run the same command again")
        stored = safetensors.numpy.load(data[:-32])
        experts_per_token = int(stored.pop("experts_per_token")[0])
        counts_PLE, tokens_P = stored.pop("counts").astype(np.int64), stored.pop("tokens")
        return RoutingCounts(counts_PLE, tokens_P, experts_per_token, stored)

    def _path(self, part: int) -> Path:
        return self.directory / f"{self._names[part]}.counts"

    @cached_property
    def _names(self) -> list[str]:
        names = []
        for number, part in enumerate(self.parts):
            index = self.index.of(part)
            rows = self.rows(number)
            tokens = [tokens_hash(rows), [row.unsafe for row in rows]]
            kin = [index.kinship.cluster_P.tolist(), index.kinship.pair_P.tolist()]
            facts = [self.facts, tokens, index.starts_B1.tolist(), index.unsafe_P.tolist(), kin]
            names.append(sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32])
        return names


def _digest(path: Path, data: bytes) -> bytes:
    """Includes the name, so that a file that was renamed to another part counts as damaged."""
    return sha256(path.name.encode() + data).digest()


def share_of(part: str | None, num_parts: int) -> range:
    """The parts that `analysis.part` "i/n" stands for: every n-th, from the i-th on; None: all.

    Raises:
        UserError: `part` has another form.
    """
    if part is None:
        return range(num_parts)
    number, _, of = part.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise UserError(f"analysis.part is {part!r}: expected I/N with 1 <= I <= N, as 3/8 for the third of eight jobs")
    return range(int(number) - 1, num_parts, int(of))
