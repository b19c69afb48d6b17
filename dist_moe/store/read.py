"""Reading a mask store. Nothing is ever written, and no array is decoded before its files were checked.

Opening checks the metadata, and all arrays too where that takes a second at most (`CHECKED_AT_OPEN_BYTES`); of a larger
store each array is checked when it is first used, and `check` does all of them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr

from dist_moe import __version__
from dist_moe.errors import UserError
from dist_moe.risk.counts import RoutingCounts, concatenate
from dist_moe.risk.frames import risk_frame, select_head
from dist_moe.risk.masks import ExpertMasks
from dist_moe.risk.names import batch_name
from dist_moe.risk.select import SelectionRule, selection_order
from dist_moe.risk.table import RiskTable, mean_of_batches, pooled_risk
from dist_moe.store.layout import (
    FORMAT,
    ROOT_METADATA,
    VERSION,
    array_digest,
    array_files,
    decode_texts,
    root_digest,
    statistic_array,
)

CHECKED_AT_OPEN_BYTES = 256 * 2**20
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


@dataclass(frozen=True, slots=True)
class Rows:
    """A stored array, read as it is indexed: `rows[b]` and `rows[2:5]` and `rows[:, 3, 7]` give NumPy arrays."""

    array: zarr.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __len__(self) -> int:
        return self.array.shape[0]

    def __getitem__(self, key: int | slice | tuple[int | slice, ...]) -> np.ndarray:
        return np.asarray(self.array[key])


class MaskStore:
    """One analysis' counts, risk, masks and origin; made by `MaskStore.open`."""

    def __init__(self, path: Path, group: zarr.Group, attributes: dict[str, Any]) -> None:
        self.path = path
        self.rule = SelectionRule(**attributes["selection_rule"])
        self.counted_tokens: str = attributes["counted_tokens"]
        self.experts_per_token: int = attributes["experts_per_token"]
        self.layer_names: tuple[str, ...] = tuple(attributes["layer_names"])
        self.provenance: dict[str, Any] = attributes["provenance"]
        self.dist_moe_version: str = attributes["dist_moe_version"]
        self._statistics: tuple[str, ...] = tuple(attributes.get("statistics", ()))
        self.digest: str = attributes["complete"]["digest"]
        self._array_digests: dict[str, str] = attributes["complete"]["arrays"]
        self._group = group
        self._checked: dict[str, Rows] = {}

    @classmethod
    def open(cls, path: str | Path) -> "MaskStore":
        """Open a store read-only.

        Raises:
            UserError: there is no store at `path`, it is not ours, of a newer version, incomplete or damaged.
        """
        path = Path(path)
        root = _read_root(path)
        store = cls(path, zarr.open_group(path, mode="r", zarr_format=3), root["attributes"])
        if sum(file.stat().st_size for file in array_files(path)) <= CHECKED_AT_OPEN_BYTES:
            store.check()
        return store

    def check(self) -> None:
        """Compare every array's files with the digests that were written.

        Raises:
            UserError: a file was changed, added or lost.
        """
        for name in self._array_digests:
            self._rows(name)

    def _rows(self, name: str) -> Rows:
        if name not in self._checked:
            if array_digest(self.path / name) != self._array_digests[name]:
                raise _damaged(self.path, f"array {name} is not as it was written")
            array = self._group[name]
            assert isinstance(array, zarr.Array)
            self._checked[name] = Rows(array)
        return self._checked[name]

    @property
    def arrays(self) -> pd.DataFrame:
        """What is stored, one line an array: name, dtype, shape."""
        rows = [(name, self._rows(name).array) for name in self._array_digests]
        return pd.DataFrame(
            {
                "array": [name for name, _ in rows],
                "dtype": [str(array.dtype) for _, array in rows],
                "shape": ["x".join(map(str, array.shape)) for _, array in rows],
            }
        )

    @property
    def masks(self) -> Rows:
        """bool [B, L, E]."""
        return self._rows("masks")

    @property
    def a_safe_n(self) -> Rows:
        """float64 [B, L, E]."""
        return self._rows("a_safe_n")

    @property
    def a_unsafe_n(self) -> Rows:
        """float64 [B, L, E]."""
        return self._rows("a_unsafe_n")

    @property
    def risk_diff(self) -> Rows:
        """float64 [B, L, E]."""
        return self._rows("risk_diff")

    @property
    def prompt_counts(self) -> Rows:
        """int32 [P, L, E]; the one array that may be too large to read at once."""
        return self._rows("prompt_counts")

    @property
    def statistics(self) -> Mapping[str, Rows]:
        """What the analysis found beside rates and masks, by name: float32 or int32, [B, L, E] or [B] each."""
        return {name: self._rows(statistic_array(name)) for name in self._statistics}

    @cached_property
    def prompts(self) -> pd.DataFrame:
        """One line for each of the P prompts: id, unsafe, batch, tokens (counted ones)."""
        return pd.DataFrame(
            {
                "id": decode_texts(self._rows("prompt_ids")[:]),
                "unsafe": self._rows("prompt_unsafe")[:],
                "batch": self._rows("prompt_batch")[:],
                "tokens": self._rows("prompt_tokens")[:],
            }
        )

    @cached_property
    def batches(self) -> tuple[BatchInfo, ...]:
        columns = zip(
            decode_texts(self._rows("batch_ids")[:]),
            decode_texts(self._rows("batch_categories")[:]),
            self._rows("batch_num_unsafe_experts")[:].tolist(),
            decode_texts(self._rows("batch_mask_hashes")[:]),
            strict=True,
        )
        return tuple(BatchInfo(index, *values) for index, values in enumerate(columns))

    @property
    def batch_ids(self) -> tuple[str, ...]:
        return tuple(batch.id for batch in self.batches)

    @property
    def categories(self) -> tuple[str, ...]:
        """Category of each batch."""
        return tuple(batch.category for batch in self.batches)

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

        Columns as `dist_moe.risk.frames.risk_frame`, and one for each statistic that has a value an expert.
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
        tokens_P = self.prompts["tokens"].to_numpy()
        parts = []
        for start in range(0, len(unsafe_P), PROMPTS_AT_ONCE):
            rows = slice(start, start + PROMPTS_AT_ONCE)
            counts_PLE = self.prompt_counts[rows].astype(np.int64)
            counts = RoutingCounts(counts_PLE, tokens_P[rows], self.experts_per_token)
            parts += [counts.pooled(~unsafe_P[rows]), counts.pooled(unsafe_P[rows])]
        return _single_row_frame(pooled_risk(concatenate(parts), np.arange(len(parts)) % 2 == 1))

    @cached_property
    def mean_of_batches(self) -> pd.DataFrame:
        """Like `aggregated`, but the mean of the batches' rates: each batch weighs the same, however many tokens."""
        return _single_row_frame(mean_of_batches(RiskTable(self.a_safe_n[:], self.a_unsafe_n[:])))

    def global_unsafe_experts(self) -> pd.DataFrame:
        """The head of `aggregated` that the store's selection rule picks."""
        return select_head(self.aggregated, self.rule)


def _single_row_frame(table: RiskTable) -> pd.DataFrame:
    return risk_frame(table.a_safe_n_BLE[0], table.a_unsafe_n_BLE[0], table.risk_diff_BLE[0])


def _read_root(path: Path) -> dict[str, Any]:
    metadata = path / ROOT_METADATA
    if not path.exists():
        raise UserError(f"no mask store at {path}: check the path, or run the analysis first")
    if not metadata.is_file():
        raise UserError(f"{path} is no mask store: expected a Zarr v3 group, a directory with {ROOT_METADATA} in it")
    try:
        root = json.loads(metadata.read_bytes())
    except ValueError as error:
        raise _damaged(path, f"{ROOT_METADATA} is no JSON ({error})") from None
    attributes = root.get("attributes", {}) if isinstance(root, dict) else {}
    if not isinstance(attributes, dict) or attributes.get("format") != FORMAT:
        raise UserError(f"{path} is no mask store: its {ROOT_METADATA} does not say format {FORMAT!r}")
    version = attributes.get("format_version")
    if isinstance(version, int) and version > VERSION:
        raise UserError(
            f"{path} has format version {version}, this dist_moe {__version__} reads up to "
            f"{VERSION}: update dist_moe, or run the analysis again"
        )
    if "complete" not in attributes:
        raise UserError(f"{path} is incomplete, its writing was stopped: remove it and run the analysis again")
    complete = attributes["complete"]
    if not isinstance(complete, dict) or root_digest(root, complete.get("arrays")) != complete.get("digest"):
        raise _damaged(path, f"{ROOT_METADATA} is not as it was written")
    return root


def _damaged(path: Path, how: str) -> UserError:
    return UserError(f"{path} is damaged: {how}; restore it from a copy, or remove it and run the analysis again")
