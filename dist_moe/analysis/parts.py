"""Routing counts of parts of the prompts, kept on disk until the masks are written: a file a part.

A part that is there is not counted again, so an analysis that was killed goes on, and several jobs may count parts of
one analysis at the same time without knowing of each other. A file's name is the hash of all that its counts follow
from, so that nothing of another model, setting or text is ever taken.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from dist_moe.data.tokens import Encoded
from dist_moe.errors import UserError
from dist_moe.files import write_bytes_atomic
from dist_moe.risk.counts import RoutingCounts


class CountedParts:
    """The parts in `directory`; `facts` (JSON values) are all but the rows that counts depend on."""

    def __init__(self, directory: Path, facts: dict[str, Any]) -> None:
        self.directory, self.facts = directory, facts

    def find(self, rows: Sequence[Encoded]) -> RoutingCounts | None:
        """The counts of these rows, in their order, or None: nobody has counted them, or the file is damaged."""
        path = self._path(rows)
        if not path.is_file():
            return None
        data = path.read_bytes()
        if sha256(data[:-32]).digest() != data[-32:]:
            return None
        stored = safetensors.numpy.load(data[:-32])
        experts_per_token = int(stored.pop("experts_per_token")[0])
        counts_PLE, tokens_P = stored.pop("counts").astype(np.int64), stored.pop("tokens")
        return RoutingCounts(counts_PLE, tokens_P, experts_per_token, stored)

    def keep(self, rows: Sequence[Encoded], counts: RoutingCounts) -> None:
        """Write the counts of these rows; a reader sees all of them or none."""
        data = safetensors.numpy.save(
            {
                **counts.tables,
                "counts": counts.counts_PLE.astype(np.int32),
                "tokens": counts.tokens_P,
                "experts_per_token": np.array([counts.experts_per_token]),
            }
        )
        self.directory.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(self._path(rows), data + sha256(data).digest())

    def _path(self, rows: Sequence[Encoded]) -> Path:
        texts = [[row.prompt_ids, row.response_ids, row.unsafe, row.span] for row in rows]
        text = json.dumps([self.facts, texts], sort_keys=True)
        return self.directory / f"{sha256(text.encode()).hexdigest()[:32]}.counts"


def share_of(part: str | None, num_parts: int) -> range:
    """Which of an analysis' parts "i/n" stands for: every n-th, from the i-th; None: all.

    Raises:
        UserError: `part` has another form.
    """
    if part is None:
        return range(num_parts)
    number, _, of = part.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise UserError(f"analysis.part is {part!r}: expected I/N with 1 <= I <= N, as 3/8 for the third of eight jobs")
    return range(int(number) - 1, num_parts, int(of))
