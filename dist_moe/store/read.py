"""Reading a mask store. Nothing is ever written, and no file is decoded before it was compared with its digest.

Opening reads and checks the root's metadata only, whatever the size; each file is checked when it is read, and `check`
does all of them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dist_moe import __version__
from dist_moe.errors import UserError
from dist_moe.risk.counts import RoutingCounts, concatenate
from dist_moe.risk.frames import risk_frame, select_head
from dist_moe.risk.masks import ExpertMasks
from dist_moe.risk.names import batch_name
from dist_moe.risk.select import SelectionRule, selection_order
from dist_moe.risk.table import RiskTable, mean_of_batches, pooled_risk
from dist_moe.store.files import CheckedFiles, Damage, damaged
from dist_moe.store.layout import (
    FACTS,
    FORMAT,
    ROOT_METADATA,
    VERSION,
    decode_texts,
    prompt_array,
    root_digest,
    statistic_array,
)
from dist_moe.store.rows import MaskRows, PromptRows, Rows
from dist_moe.store.source import Source, open_source

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

    def __init__(self, path: str | Path, source: Source, attributes: dict[str, Any]) -> None:
        self.path = path
        self.attributes = {name: value for name, value in attributes.items() if name != "complete"}
        self.version: int = attributes["format_version"]
        self.rule = SelectionRule(**attributes["selection_rule"])
        self.counted_tokens: str = attributes["counted_tokens"]
        self.experts_per_token: int = attributes["experts_per_token"]
        self.layer_names: tuple[str, ...] = tuple(attributes["layer_names"])
        self.provenance: dict[str, Any] = attributes["provenance"]
        self.dist_moe_version: str = attributes["dist_moe_version"]
        self._statistics: tuple[str, ...] = tuple(attributes.get("statistics", ()))
        self._tables: tuple[str, ...] = tuple(attributes.get("tables", ()))
        self.digest: str = attributes["complete"]["digest"]
        self.files = CheckedFiles(source, self.version, attributes["complete"]["arrays"])

    @classmethod
    def open(cls, path: str | Path) -> "MaskStore":
        """Open a store read-only.

        Args:
            path: a directory, or a URL that fsspec knows, such as s3://bucket/masks.zarr.

        Raises:
            UserError: there is no store at `path`, it is not ours, of a newer version, incomplete or damaged.
        """
        source = open_source(path)
        return cls(path, source, _read_root(source)["attributes"])

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
        stored = self.files.array("masks")
        return stored if self.version == 1 else MaskRows(stored, self.num_experts)

    @property
    def a_safe_n(self) -> Rows:
        """float64 [B, L, E]."""
        return self.files.array("a_safe_n")

    @property
    def a_unsafe_n(self) -> Rows:
        """float64 [B, L, E]."""
        return self.files.array("a_unsafe_n")

    @property
    def risk_diff(self) -> Rows:
        """float64 [B, L, E]."""
        return self.files.array("risk_diff")

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
        return {name: self._by_prompt(name) for name in self._tables}

    @property
    def statistics(self) -> Mapping[str, Rows]:
        """What the analysis found beside rates and masks, by name: float32 or int32, [B, L, E] or [B] each."""
        return {name: self.files.array(statistic_array(name)) for name in self._statistics}

    def _by_prompt(self, name: str) -> Rows:
        stored = self.files.array(prompt_array(name))
        return stored if self.version == 1 else PromptRows(stored, self.starts_B1)

    @cached_property
    def starts_B1(self) -> np.ndarray:
        """int [B + 1]: where each batch's prompts begin, and where the last one's end."""
        return np.searchsorted(self.files.array("prompt_batch")[:], np.arange(len(self.batch_ids) + 1))

    @cached_property
    def prompts(self) -> pd.DataFrame:
        """One line for each of the P prompts: id, unsafe, batch, tokens (counted ones)."""
        return pd.DataFrame(
            {
                "id": decode_texts(self.files.array("prompt_ids")[:]),
                "unsafe": self.files.array("prompt_unsafe")[:],
                "batch": self.files.array("prompt_batch")[:],
                "tokens": self.prompt_tokens[:],
            }
        )

    @cached_property
    def batches(self) -> tuple[BatchInfo, ...]:
        sizes = self.files.array("batch_num_unsafe_experts")[:].tolist()
        columns = zip(self.batch_ids, self.categories, sizes, self._mask_hashes(), strict=True)
        return tuple(BatchInfo(index, *values) for index, values in enumerate(columns))

    def _mask_hashes(self) -> list[str]:
        stored = self.files.array("batch_mask_hashes")[:]
        return list(decode_texts(stored)) if self.version == 1 else [row.tobytes().hex() for row in stored]

    @cached_property
    def batch_ids(self) -> tuple[str, ...]:
        return decode_texts(self.files.array("batch_ids")[:])

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """Category of each batch."""
        return decode_texts(self.files.array("batch_categories")[:])

    @property
    def num_experts(self) -> int:
        """E."""
        return self.attributes["num_experts"] if self.version > 1 else self.prompt_counts.shape[2]

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


def _read_root(source: Source) -> dict[str, Any]:
    place = source.place
    data = source.read(ROOT_METADATA)
    if data is None:
        if source.read(FACTS) is not None:
            raise UserError(
                f"{place} is incomplete, its writing was stopped: run the analysis again, which goes on with it"
            )
        if not source.exists():
            raise UserError(f"no mask store at {place}: check the path, or run the analysis first")
        raise UserError(f"{place} is no mask store: expected a Zarr v3 group, a directory with {ROOT_METADATA} in it")
    try:
        root = json.loads(data)
    except ValueError as error:
        raise damaged(place, f"{ROOT_METADATA} is no JSON ({error})") from None
    attributes = root.get("attributes", {}) if isinstance(root, dict) else {}
    if not isinstance(attributes, dict) or attributes.get("format") != FORMAT:
        raise UserError(f"{place} is no mask store: its {ROOT_METADATA} does not say format {FORMAT!r}")
    version = attributes.get("format_version")
    if isinstance(version, int) and version > VERSION:
        raise UserError(
            f"{place} has format version {version}, this dist_moe {__version__} reads up to "
            f"{VERSION}: update dist_moe, or run the analysis again"
        )
    if "complete" not in attributes:
        raise UserError(f"{place} is incomplete, its writing was stopped: remove it and run the analysis again")
    complete = attributes["complete"]
    if not isinstance(complete, dict) or root_digest(root, complete.get("arrays")) != complete.get("digest"):
        raise damaged(place, f"{ROOT_METADATA} is not as it was written")
    return root
