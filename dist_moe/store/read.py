"""Reading a mask store: which experts each batch may train, by which rule, and from which counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dist_moe.errors import UserError
from dist_moe.stats.frames import risk_frame
from dist_moe.stats.masks import ExpertMasks
from dist_moe.stats.names import batch_name
from dist_moe.stats.order import selection_order
from dist_moe.store.counts import Counts
from dist_moe.store.files import damaged
from dist_moe.store.layout import MASKS, Kind, statistic_array
from dist_moe.store.root import MaskAttributes
from dist_moe.store.rows import MaskRows, Rows
from dist_moe.store.source import Source, is_url, open_source
from dist_moe.store.store import Store

if TYPE_CHECKING:
    import pandas as pd

COUNTS_NAME = "counts.zarr"


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """One batch of a mask store, without its arrays."""

    index: int
    id: str
    category: str
    num_unsafe_experts: int
    mask_hash: str

    @property
    def name(self) -> str:
        return batch_name(self.index, self.category, self.id)


class MaskStore(Store):
    """A mask for each batch, the rule that selected them, and statistics. Open one with `MaskStore.open`.

    Training needs nothing else. The counts that the rule selected from are in `counts`, a store in the same directory.
    """

    kind: ClassVar[Kind] = MASKS

    def __init__(self, path: str | Path, source: Source, attributes: dict[str, Any], root: MaskAttributes) -> None:
        super().__init__(path, source, attributes, root)
        self.selection_rule = root.selection_rule
        """Name and parameters of the rule; `dist_moe.selection.stored` turns them into the rule."""
        self.statistic_names = tuple(root.statistics)
        self.counts_digest = root.counts
        """Digest of the counts store that the masks were selected from."""
        self.revision, self.previous = root.revision, root.previous
        """0 and None for the first masks; then 1, 2, ... and the digest of the revision before."""
        self.counts_place: str | Path = beside(path, COUNTS_NAME)
        """Where `counts` is expected."""

    def check_plan(self) -> None:
        super().check_plan()
        signs = self.signs_B3.sum(axis=1)
        if (wrong := np.nonzero(self.arms_B2.min(axis=1) < 0)[0]).size:
            raise damaged(str(self.path), f"array batch_prompts is below 0 for batch {wrong[0]}")
        for start, stop in self.masks.blocks(0, len(self.masks)):
            found = self.masks[start:stop].sum(axis=(1, 2))
            if (found != signs[start:stop]).any():
                batch = start + int(np.argmax(found != signs[start:stop]))
                raise damaged(
                    str(self.path),
                    f"batch {batch} has {found[batch - start]} experts in masks, and {signs[batch]} in batch_signs",
                )

    @cached_property
    def times_LE(self) -> np.ndarray:
        """int64 [L, E]: in how many masks each expert is. Reads some of them at a time."""
        num_LE = np.zeros(self.masks.shape[1:], np.int64)
        for start, stop in self.masks.blocks(0, len(self.masks)):
            num_LE += self.masks[start:stop].sum(axis=0)
        return num_LE

    @property
    def has_counts(self) -> bool:
        """Whether anything exists at `counts_place`."""
        return open_source(self.counts_place).exists()

    @cached_property
    def counts(self) -> Counts:
        """The counts that the masks were selected from.

        Raises:
            UserError: there is no counts store at `counts_place`, or one with another digest.
        """
        if not self.has_counts:
            raise UserError(
                f"{self.path} holds masks only, and what they were selected from is not at {self.counts_place}: put it "
                "there, or say where it is with --counts"
            )
        counts = Counts.open_whole(self.counts_place)
        if counts.digest != self.counts_digest:
            raise UserError(
                f"{self.path} was selected from other counts than {self.counts_place}: digest "
                f"{self.counts_digest[:12]} and {counts.digest[:12]}; give those that it was selected from with "
                "--counts, or select again"
            )
        return counts

    @property
    def masks(self) -> Rows:
        """bool [B, L, E]."""
        return MaskRows(self._shapes.array("masks"), self.num_experts)

    @property
    def statistics(self) -> Mapping[str, Rows]:
        """The statistics that the selection stored, by name: float32 or int32, each [B, L, E] or [B]."""
        return {name: self._shapes.array(statistic_array(name)) for name in self.statistic_names}

    @cached_property
    def signs_B3(self) -> np.ndarray:
        """int32 [B, 3]: how many experts of a batch's mask have a risk_diff above 0, below 0, and equal to 0."""
        return self._shapes.array("batch_signs")[:]

    @cached_property
    def arms_B2(self) -> np.ndarray:
        """int32 [B, 2]: number of safe and of unsafe prompts of each batch."""
        return self._shapes.array("batch_prompts")[:]

    @cached_property
    def batches(self) -> tuple[BatchInfo, ...]:
        """All batches, in the order of the arrays."""
        sizes = self.signs_B3.sum(axis=1).tolist()
        hashes = [row.tobytes().hex() for row in self._shapes.array("batch_mask_hashes")[:]]
        columns = zip(self.batch_ids, self.categories, sizes, hashes, strict=True)
        return tuple(BatchInfo(index, *values) for index, values in enumerate(columns))

    def union(self) -> np.ndarray:
        """bool [L, E]: experts in the mask of at least one batch."""
        return ExpertMasks(self.masks[:]).union()

    def unsafe_experts(self, batch: int) -> list[tuple[int, int]]:
        """A batch's unsafe experts as (layer, expert), by risk_diff in descending order. Reads the counts."""
        mask_LE = self.masks[batch]
        order = selection_order(self.counts.risk_diff[batch])
        return [divmod(int(position), mask_LE.shape[1]) for position in order[mask_LE.ravel()[order]]]

    def batch_table(self, batch: int) -> pd.DataFrame:
        """All experts of one batch, by risk_diff in descending order. Reads the counts.

        Columns are those of `dist_moe.stats.frames.risk_frame`, and one for each statistic that has a value per expert.
        """
        risk = self.counts.risk(range(batch, batch + 1))
        frame = risk_frame(risk.a_safe_n_BLE[0], risk.a_unsafe_n_BLE[0], risk.risk_diff_BLE[0])
        for name, rows in self.statistics.items():
            if len(rows.shape) == 3:
                frame[name] = rows[batch][frame["layer"], frame["expert"]]
        return frame


def beside(path: str | Path, name: str) -> str | Path:
    """Path or URL of another store in the same directory as `path`."""
    if isinstance(path, str) and is_url(path):
        return f"{path.rstrip('/').rpartition('/')[0]}/{name}"
    return Path(path).parent / name
