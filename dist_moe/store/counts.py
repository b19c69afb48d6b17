"""Reads a counts store: the measurements of each prompt, and the rates computed from them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dist_moe.data.index import BatchIndex
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.frames import risk_frame
from dist_moe.stats.table import RateSums, RiskTable, arm_counts, rates
from dist_moe.store.facts import warnings
from dist_moe.store.files import damaged
from dist_moe.store.layout import COUNTS, Kind, prompt_array
from dist_moe.store.root import KINSHIP, TEMPLATE, CountsAttributes
from dist_moe.store.rows import ComputedRows, PromptRows, Rows, StoredRows
from dist_moe.store.source import Source
from dist_moe.store.store import Store
from dist_moe.store.values import wrong_measurement

if TYPE_CHECKING:
    import pandas as pd


class Counts(Store):
    """The measurements of an analysis; made by `Counts.open`."""

    kind: ClassVar[Kind] = COUNTS

    def __init__(self, path: str | Path, source: Source, attributes: dict[str, Any], root: CountsAttributes) -> None:
        super().__init__(path, source, attributes, root)
        self.table_names = tuple(root.tables)

    def check_plan(self) -> None:
        super().check_plan()
        most = int(self.index.sizes_B.max(initial=0))
        if most != self._shapes.size("S"):
            raise damaged(str(self.path), f"a batch has {most} prompts, and prompt_counts {self._shapes.size('S')}")
        if self.index.num_prompts == 0:
            raise damaged(str(self.path), "it has no prompt")

    @property
    def prompt_counts(self) -> Rows:
        """int32 [P, L, E]; this array may be too large to read at once."""
        return self._by_prompt("counts")

    @property
    def prompt_tokens(self) -> Rows:
        """int64 [P]: number of counted tokens."""
        return self._by_prompt("tokens")

    @property
    def tables(self) -> Mapping[str, Rows]:
        """Further measurements of each prompt, by name: float32 or int32, [P, L, E] or [P]."""
        return {name: self._by_prompt(name) for name in self.table_names}

    def of_batches(self, batches: range, *, tables: Collection[str], prefix: str = "") -> RoutingCounts:
        """The counts of the prompts of consecutive batches; with `prefix` "prefill_", from that table.

        Args:
            batches: their numbers.
            tables: names of the tables to read as well.

        Raises:
            UserError: a value is impossible; names array, batch, prompt and expert.
        """
        prompts = self._rows(batches)
        others = {name: self.tables[name][prompts] for name in tables}
        counts_PLE, tokens_P = self._checked(prompts, others, prefix)
        return RoutingCounts(counts_PLE.astype(np.int64), tokens_P, self.experts_per_token, others)

    def _checked(
        self, prompts: slice, others: Mapping[str, np.ndarray], prefix: str = ""
    ) -> tuple[np.ndarray, np.ndarray]:
        """Counts, int32 [P, L, E], and tokens, int64 [P], of consecutive prompts that have these other measurements."""
        counts_PLE, tokens_P = (self._by_prompt(f"{prefix}{name}")[prompts] for name in ("counts", "tokens"))
        tokens_P = tokens_P.astype(np.int64)
        wrong = wrong_measurement(counts_PLE, tokens_P, self.experts_per_token, others)
        if wrong is not None:
            name, number, how = wrong
            prompt = prompts.indices(self.index.num_prompts)[0] + number
            where = f"batch {self.index.batch_of_P[prompt]}, its prompt {self.index.place_P[prompt]}"
            name = name if name in others else f"{prefix}{name}"
            raise damaged(str(self.path), f"array {prompt_array(name)} is {how} for {where}")
        return counts_PLE, tokens_P

    def arms(self, batches: range, prefix: str = "") -> tuple[np.ndarray, np.ndarray]:
        """The counts and tokens of both arms of consecutive batches: `stats.table.arm_counts`.

        Raises:
            UserError: as `of_batches`.
        """
        rows, sizes_B = self._rows(batches), np.diff(self._starts_B1[batches.start : batches.stop + 1])
        batch_of_P = np.repeat(np.arange(len(batches)), sizes_B)
        return arm_counts(*self._checked(rows, {}, prefix), self._unsafe_P[rows], batch_of_P, len(batches))

    def risk(self, batches: range, prefix: str = "") -> RiskTable:
        """Rates of consecutive batches; with `prefix` "prefill_", from that table.

        Raises:
            UserError: as `of_batches`, or an arm of a batch has no counted token.
        """
        return rates(*self.arms(batches, prefix), lambda batch: self.index.name(batches[batch]))

    @property
    def a_safe_n(self) -> Rows:
        """float64 [B, L, E]."""
        return self._computed(lambda batches: self.risk(batches).a_safe_n_BLE)

    @property
    def a_unsafe_n(self) -> Rows:
        """float64 [B, L, E]."""
        return self._computed(lambda batches: self.risk(batches).a_unsafe_n_BLE)

    @property
    def risk_diff(self) -> Rows:
        """float64 [B, L, E]: a_unsafe_n - a_safe_n."""
        return self._computed(lambda batches: self.risk(batches).risk_diff_BLE)

    @cached_property
    def index(self) -> BatchIndex:
        """All batches, and the prompts in them."""
        known = self.files.array_digests.keys() >= KINSHIP
        return BatchIndex(
            ids=self.batch_ids,
            categories=self.categories,
            starts_B1=self._starts_B1,
            prompt_ids=self._texts("prompt_ids", int(self._starts_B1[-1])),
            unsafe_P=self._unsafe_P,
            cluster_P=self._shapes.array("prompt_clusters")[:] if known else None,
            pair_P=self._shapes.array("prompt_pairs")[:] if known else None,
        )

    @cached_property
    def _starts_B1(self) -> np.ndarray:
        """int64 [B + 1]: where the prompts of each batch begin; the last entry is P. Reads no text."""
        batch_of_P, num_batches = self._shapes.array("prompt_batch")[:], self._shapes.size("B")
        if (np.diff(batch_of_P) < 0).any() or ((batch_of_P < 0) | (batch_of_P >= num_batches)).any():
            raise damaged(str(self.path), f"array prompt_batch is not of batches 0 to {num_batches - 1} in their order")
        return np.searchsorted(batch_of_P, np.arange(num_batches + 1))

    def _rows(self, batches: range) -> slice:
        """The prompts of consecutive batches."""
        return slice(int(self._starts_B1[batches.start]), int(self._starts_B1[batches.stop]))

    @cached_property
    def _unsafe_P(self) -> np.ndarray:
        return self._shapes.array("prompt_unsafe")[:]

    @cached_property
    def prompts(self) -> pd.DataFrame:
        """A table with a row for each prompt: id, unsafe, batch, tokens (number of counted ones)."""
        import pandas as pd

        index = self.index
        columns = {"id": index.prompt_ids, "unsafe": index.unsafe_P, "batch": index.batch_of_P.astype(np.int32)}
        return pd.DataFrame(columns | {"tokens": self.prompt_tokens[:]})

    @cached_property
    def template_tokens(self) -> np.ndarray | None:
        """int32 [P]: number of prompt tokens that belong to the chat template alone; None if the store does not
        know."""
        return self._shapes.array(TEMPLATE)[:] if TEMPLATE in self.files.array_digests else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines about other differences between safe and unsafe prompts that may explain a difference in routing."""
        return tuple(warnings(self.attributes.get("arms", {}), self.counted_tokens, len(self.batch_ids)))

    def steps(self) -> list[range]:
        """All batches, in blocks that read each file once."""
        return [range(*slab) for slab in self._shapes.array(prompt_array("counts")).slabs(0, len(self.batch_ids))]

    def risks(self, batches: range) -> Iterator[tuple[range, RiskTable]]:
        """`risk` of consecutive batches, some at a time and in their order."""
        return ((block, self.risk(block)) for block in self._blocks(batches))

    @cached_property
    def aggregated(self) -> pd.DataFrame:
        """All experts with their rates over all prompts pooled, largest risk_diff first; columns as in `risk_frame`."""
        return _single_row_frame(self._sums.pooled())

    @cached_property
    def mean_of_batches(self) -> pd.DataFrame:
        """Like `aggregated`, but the mean of the batches' rates, with the same weight for each batch.

        Raises:
            UserError: as `risk`.
        """
        if (empty := self._sums.empty) is not None:
            self.risk(range(empty, empty + 1))
        return _single_row_frame(self._sums.mean())

    @cached_property
    def _sums(self) -> RateSums:
        sums = RateSums(*self.shape_BLE[1:], self.experts_per_token)
        for batches in self._blocks(range(len(self.batch_ids))):
            sums.add(*self.arms(batches))
        return sums

    def _blocks(self, batches: range) -> Iterator[range]:
        """Consecutive batches in blocks that need little memory, each of whole files or a part of one."""
        counts = self._shapes.array(prompt_array("counts"))
        for start, stop in counts.blocks(batches.start, batches.stop):
            for first in range(start, stop, counts.rows_at_once):
                yield range(first, min(first + counts.rows_at_once, stop))

    def _computed(self, rows: Callable[[range], np.ndarray]) -> Rows:
        return ComputedRows(self.shape_BLE, rows, self._shapes.array(prompt_array("counts")))

    def _by_prompt(self, name: str) -> Rows:
        stored: StoredRows = self._shapes.array(prompt_array(name))
        return PromptRows(stored, self._starts_B1)


def _single_row_frame(table: RiskTable) -> pd.DataFrame:
    return risk_frame(table.a_safe_n_BLE[0], table.a_unsafe_n_BLE[0], table.risk_diff_BLE[0])
