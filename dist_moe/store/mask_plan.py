"""The plan of a mask store: what it will contain, known before selecting, and the results of batches."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from dist_moe.stats.masks import ExpertMasks
from dist_moe.store.layout import MASKS, Kind, statistic_array
from dist_moe.store.plan import StorePlan, require_arrays, require_kinds
from dist_moe.store.zarr_arrays import ArraySpec, plain, sharded


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskResults:
    """What was selected for consecutive batches."""

    masks: ExpertMasks
    signs_B3: np.ndarray
    """int32 [B, 3]: how many of a batch's experts have a risk_diff above 0, below 0, and of exactly 0."""
    statistics: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By name, [batches, L, E] or [batches]."""

    @staticmethod
    def signs(masks: ExpertMasks, risk_diff_BLE: np.ndarray) -> np.ndarray:
        """`signs_B3`, computed from the batches' risk_diff."""
        signs_BLE = np.where(masks.masks_BLE, np.sign(risk_diff_BLE), np.nan)
        return np.stack([(signs_BLE == sign).sum(axis=(1, 2)) for sign in (1, -1, 0)], axis=1).astype(np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskPlan(StorePlan[MaskResults]):
    """Plan of a mask store: what is selected, and from which counts."""

    kind: ClassVar[Kind] = MASKS
    selection_rule: Mapping[str, Any]
    """The rule's name and parameters, JSON values."""
    counts_digest: str
    """Digest of the counts store."""
    statistics: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Further results by name: NumPy type ("float32" or "int32"), and 3 for [B, L, E] or 1 for [B]."""
    revision: int = 0
    """0: the first masks. Each later revision is a store of its own and names its predecessor."""
    previous: str | None = None
    """Digest of the previous revision."""

    def require_sound(self) -> None:
        assert self.revision >= 0
        assert (self.revision == 0) == (self.previous is None)
        require_kinds(self.statistics)

    def revised(self, before: str, **changes: Any) -> "MaskPlan":
        """Plan of the next revision; `before` is the digest of this one, `changes` are other fields."""
        return replace(self, revision=self.revision + 1, previous=before, **changes)

    @property
    def own_attributes(self) -> dict[str, Any]:
        return {
            "selection_rule": dict(self.selection_rule),
            "statistics": sorted(self.statistics),
            "counts": self.counts_digest,
            "revision": self.revision,
            "previous": self.previous,
        }

    @property
    def own_arrays(self) -> dict[str, np.ndarray]:
        arms = (~self.index.unsafe_P, self.index.unsafe_P)
        of_arms = [np.bincount(self.index.batch_of_P[arm_P], minlength=len(self.index)) for arm_P in arms]
        return {"batch_prompts": np.stack(of_arms, axis=1).astype(np.int32)}

    @property
    def specs(self) -> dict[str, ArraySpec]:
        num_batches, num_layers, num_experts = shape_BLE = self.shape_BLE
        rows = self.rows_per_file
        return {
            "masks": plain(np.uint8, (num_batches, num_layers, -(-num_experts // 8)), rows),
            "batch_signs": plain(np.int32, (num_batches, 3), rows),
            "batch_mask_hashes": plain(np.uint8, (num_batches, 32), rows),
            **{
                statistic_array(name): (sharded if ndim == 3 else plain)(dtype, shape_BLE[:ndim], rows)
                for name, (dtype, ndim) in sorted(self.statistics.items())
            },
        }

    def values(self, batches: range, results: MaskResults) -> dict[str, np.ndarray]:
        shape_BLE = (len(batches), *self.shape_BLE[1:])
        assert results.masks.masks_BLE.shape == shape_BLE
        assert results.signs_B3.dtype == np.int32
        assert results.signs_B3.shape == (len(batches), 3)
        assert (results.signs_B3.sum(axis=1) == results.masks.num_experts_B).all()
        require_arrays(results.statistics, self.statistics, shape_BLE)
        hashes = [np.frombuffer(bytes.fromhex(results.masks.hash(row)), np.uint8) for row in range(len(batches))]
        return {
            "masks": np.packbits(results.masks.masks_BLE, axis=-1),
            "batch_signs": results.signs_B3,
            "batch_mask_hashes": np.stack(hashes),
            **{statistic_array(name): values for name, values in results.statistics.items()},
        }

    def cut(self, results: MaskResults, batches: range) -> MaskResults:
        assert len(results.masks.masks_BLE) == len(self.index)
        rows = slice(batches.start, batches.stop)
        return MaskResults(
            masks=ExpertMasks(results.masks.masks_BLE[rows]),
            signs_B3=results.signs_B3[rows],
            statistics={name: values[rows] for name, values in results.statistics.items()},
        )
