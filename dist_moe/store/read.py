"""Reading a mask store. Nothing is ever written, and no file is decoded before it was compared with its digest.

Opening reads and checks the root's metadata only, whatever the size; each file is checked when it is read, and `check`
does all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dist_moe.stats.counts import RoutingCounts, concatenate
from dist_moe.stats.design import Kinship
from dist_moe.stats.frames import risk_frame
from dist_moe.stats.masks import ExpertMasks
from dist_moe.stats.names import batch_name
from dist_moe.stats.order import selection_order
from dist_moe.stats.table import RiskTable, mean_of_batches, pooled_risk
from dist_moe.store.facts import warnings
from dist_moe.store.files import CheckedFiles, Damage, damaged
from dist_moe.store.layout import prompt_array, statistic_array
from dist_moe.store.root import TEMPLATE, Attributes, read_root
from dist_moe.store.rows import FiniteRows, MaskRows, PromptRows, Rows
from dist_moe.store.shapes import Shapes
from dist_moe.store.source import Source, open_source
from dist_moe.store.values import wrong_measurement

PROMPTS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """What the store says of one batch besides its arrays."""

    index: int
    id: str
    category: str
    num_unsafe_experts: int
    mask_hash: str

    @property
    def name(self) -> str:
        return batch_name(self.index, self.category, self.id)


class MaskStore:
    """One analysis' counts, risk, masks and origin; made by `MaskStore.open`."""

    def __init__(self, path: str | Path, source: Source, attributes: dict[str, Any], root: Attributes) -> None:
        self.path = path
        self.attributes = {name: value for name, value in attributes.items() if name != "complete"}
        self.selection_rule = root.selection_rule
        self.counted_tokens = root.counted_tokens
        self.experts_per_token = root.experts_per_token
        self.layer_names = tuple(root.layer_names)
        self.provenance = root.provenance
        self.dist_moe_version = root.dist_moe_version
        self.statistic_names, self.table_names = tuple(root.statistics), tuple(root.tables)
        self.digest = root.complete.digest
        self.files = CheckedFiles(source, root.complete.arrays)
        self._shapes = Shapes(self.files, root)

    @classmethod
    def open(cls, path: str | Path) -> "MaskStore":
        """Open a store read-only.

        Args:
            path: a directory, or a URL that fsspec knows, such as s3://bucket/masks.zarr.

        Raises:
            UserError: there is no store at `path`, it is not ours, of a newer version, incomplete or damaged.
        """
        source = open_source(path)
        return cls(path, source, *read_root(source))

    @classmethod
    def open_whole(cls, path: str | Path) -> "MaskStore":
        """Open a store, and check that its arrays and its plan fit together; results are checked when they are read.

        Raises:
            UserError: as `open`, or one of them has another type, length or shape than the others.
        """
        store = cls.open(path)
        store.check_plan()
        return store

    def check_plan(self) -> None:
        """Compare types, shapes and lengths of all arrays with each other; results are not read.

        Raises:
            UserError: two do not fit together.
        """
        for name in self.files.array_digests:
            self._shapes.array(name)
        num_batches, num_prompts = len(self.batch_ids), len(self.planned_prompts)
        if num_batches != self._shapes.size("B"):
            raise damaged(str(self.path), f"batch_ids has {num_batches} entries, and masks {self._shapes.size('B')}")
        most = int(np.diff(self.starts_B1).max(initial=0))
        if most != self._shapes.size("S"):
            raise damaged(str(self.path), f"a batch has {most} prompts, and prompt_counts {self._shapes.size('S')}")
        empty = [name for name, size in (("batch", num_batches), ("prompt", num_prompts)) if size == 0]
        if empty:
            raise damaged(str(self.path), f"it has no {empty[0]}")
        self.categories, self.batches  # noqa: B018 (their lengths are checked as they are read)

    def damage(self) -> list[Damage]:
        """Every file of every array compared with its digest; empty for a store as it was written."""
        return [wrong for name in self.files.array_digests for wrong in self.files.damage(name)]

    def check(self) -> None:
        """Compare every file with the digests that were written.

        Raises:
            UserError: a file was changed, added or lost.
        """
        for wrong in self.damage():
            raise damaged(str(self.path), f"array {wrong.array} is not as it was written ({wrong.file} {wrong.how})")

    @property
    def arrays(self) -> pd.DataFrame:
        """What is stored, one line an array: name, dtype, shape."""
        return pd.DataFrame(self.files.facts())

    @property
    def masks(self) -> Rows:
        """bool [B, L, E]."""
        return MaskRows(self._shapes.array("masks"), self.num_experts)

    @property
    def a_safe_n(self) -> Rows:
        """float64 [B, L, E]."""
        return self._rates("a_safe_n")

    @property
    def a_unsafe_n(self) -> Rows:
        """float64 [B, L, E]."""
        return self._rates("a_unsafe_n")

    @property
    def risk_diff(self) -> Rows:
        """float64 [B, L, E]."""
        return self._rates("risk_diff")

    def _rates(self, name: str) -> Rows:
        return FiniteRows(self._shapes.array(name), f"{self.path} is damaged: array {name}")

    @property
    def prompt_counts(self) -> Rows:
        """int32 [P, L, E]; the one array that may be too large to read at once."""
        return self._by_prompt("counts")

    @property
    def prompt_tokens(self) -> Rows:
        """int64 [P]: counted tokens."""
        return self._by_prompt("tokens")

    @property
    def tables(self) -> Mapping[str, Rows]:
        """What else was measured of each prompt, by name: float32 or int32, [P, L, E] or [P] each."""
        return {name: self._by_prompt(name) for name in self.table_names}

    def counts(self, prompts: slice, *, tables: bool = False, prefix: str = "") -> RoutingCounts:
        """The counts of some consecutive prompts, with or without tables; `prefix`: of another table, "prefill_".

        Raises:
            UserError: one of them is none that counting tokens could give; names array, batch, prompt and expert.
        """
        counts_PLE, tokens_P = (self._by_prompt(f"{prefix}{name}")[prompts] for name in ("counts", "tokens"))
        counts_PLE, tokens_P = counts_PLE.astype(np.int64), tokens_P.astype(np.int64)
        others = {name: rows[prompts] for name, rows in self.tables.items()} if tables else {}
        wrong = wrong_measurement(counts_PLE, tokens_P, self.experts_per_token, others)
        if wrong is not None:
            name, number, how = wrong
            prompt = (prompts.start or 0) + number
            batch = int(np.searchsorted(self.starts_B1, prompt, side="right")) - 1
            where = f"batch {batch}, its prompt {prompt - int(self.starts_B1[batch])}"
            name = name if name in others else f"{prefix}{name}"
            raise damaged(str(self.path), f"array {prompt_array(name)} is {how} for {where}")
        return RoutingCounts(counts_PLE, tokens_P, self.experts_per_token, others)

    @property
    def statistics(self) -> Mapping[str, Rows]:
        """What the analysis found beside rates and masks, by name: float32 or int32, [B, L, E] or [B] each."""
        return {name: self._shapes.array(statistic_array(name)) for name in self.statistic_names}

    def _by_prompt(self, name: str) -> Rows:
        return PromptRows(self._shapes.array(prompt_array(name)), self.starts_B1)

    def _texts(self, name: str, number: int) -> tuple[str, ...]:
        """An array of text with this many entries."""
        texts = self._shapes.texts(name)
        if len(texts) != number:
            raise damaged(str(self.path), f"array {name} has {len(texts)} entries: expected {number}")
        return texts

    @cached_property
    def starts_B1(self) -> np.ndarray:
        """int [B + 1]: where each batch's prompts begin, and where the last one's end."""
        batch_of_P = self._shapes.array("prompt_batch")[:]
        num_batches = len(self.batch_ids)
        if (np.diff(batch_of_P) < 0).any() or ((batch_of_P < 0) | (batch_of_P >= num_batches)).any():
            raise damaged(str(self.path), f"array prompt_batch is not of batches 0 to {num_batches - 1} in their order")
        return np.searchsorted(batch_of_P, np.arange(num_batches + 1))

    @cached_property
    def planned_prompts(self) -> pd.DataFrame:
        """`prompts` but for what was counted."""
        batch_of_P = np.repeat(np.arange(len(self.batch_ids), dtype=np.int32), np.diff(self.starts_B1))
        ids = self._texts("prompt_ids", len(batch_of_P))
        return pd.DataFrame({"id": ids, "unsafe": self._shapes.array("prompt_unsafe")[:], "batch": batch_of_P})

    @cached_property
    def prompts(self) -> pd.DataFrame:
        """One line for each of the P prompts: id, unsafe, batch, tokens (counted ones)."""
        return self.planned_prompts.assign(tokens=self.prompt_tokens[:])

    @cached_property
    def kinship(self) -> Kinship | None:
        """Which rows are of one prompt, or pairs; None where the store does not know."""
        if "prompt_clusters" not in self.files.array_digests:
            return None
        cluster_P, pair_P = (self._shapes.array(name)[:] for name in ("prompt_clusters", "prompt_pairs"))
        return Kinship(cluster_P, pair_P, np.repeat(np.arange(len(self.batch_ids)), np.diff(self.starts_B1)))

    @cached_property
    def template_tokens(self) -> np.ndarray | None:
        """int32 [P]: how many of a row's counted tokens are the chat template's; None where the store does not know."""
        return self._shapes.array(TEMPLATE)[:] if TEMPLATE in self.files.array_digests else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may make a difference of routing that is no risk, a line each."""
        return tuple(warnings(self.attributes.get("arms", {}), self.counted_tokens, len(self.batch_ids)))

    @cached_property
    def batches(self) -> tuple[BatchInfo, ...]:
        sizes = self._shapes.array("batch_num_unsafe_experts")[:].tolist()
        columns = zip(self.batch_ids, self.categories, sizes, self._mask_hashes(), strict=True)
        return tuple(BatchInfo(index, *values) for index, values in enumerate(columns))

    def _mask_hashes(self) -> list[str]:
        return [row.tobytes().hex() for row in self._shapes.array("batch_mask_hashes")[:]]

    @cached_property
    def batch_ids(self) -> tuple[str, ...]:
        return self._shapes.texts("batch_ids")

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """Category of each batch."""
        return self._texts("batch_categories", len(self.batch_ids))

    @property
    def num_experts(self) -> int:
        """E."""
        return self._shapes.size("E")

    def union(self) -> np.ndarray:
        """bool [L, E]: experts in the mask of at least one batch."""
        return ExpertMasks(self.masks[:]).union()

    def unsafe_experts(self, batch: int) -> list[tuple[int, int]]:
        """A batch's unsafe experts as (layer, expert), riskiest first."""
        mask_LE = self.masks[batch]
        order = selection_order(self.risk_diff[batch])
        return [divmod(int(position), mask_LE.shape[1]) for position in order[mask_LE.ravel()[order]]]

    def batch_table(self, batch: int) -> pd.DataFrame:
        """All experts of one batch, riskiest first.

        Columns as `dist_moe.stats.frames.risk_frame`, and one for each statistic that has a value an expert.
        """
        frame = risk_frame(self.a_safe_n[batch], self.a_unsafe_n[batch], self.risk_diff[batch])
        for name, rows in self.statistics.items():
            if len(rows.shape) == 3:
                frame[name] = rows[batch][frame["layer"], frame["expert"]]
        return frame

    @cached_property
    def aggregated(self) -> pd.DataFrame:
        """All experts by their rates over the pooled prompts, riskiest first; columns as `batch_table`."""
        unsafe_P = self.prompts["unsafe"].to_numpy()
        parts = []
        for start in range(0, len(unsafe_P), PROMPTS_AT_ONCE):
            counts = self.counts(slice(start, start + PROMPTS_AT_ONCE), tables=False)
            unsafe = unsafe_P[start : start + PROMPTS_AT_ONCE]
            parts += [counts.pooled(~unsafe), counts.pooled(unsafe)]
        return _single_row_frame(pooled_risk(concatenate(parts), np.arange(len(parts)) % 2 == 1))

    @cached_property
    def mean_of_batches(self) -> pd.DataFrame:
        """Like `aggregated`, but the mean of the batches' rates: each batch weighs the same, however many tokens."""
        return _single_row_frame(mean_of_batches(RiskTable(self.a_safe_n[:], self.a_unsafe_n[:])))


def _single_row_frame(table: RiskTable) -> pd.DataFrame:
    return risk_frame(table.a_safe_n_BLE[0], table.a_unsafe_n_BLE[0], table.risk_diff_BLE[0])
