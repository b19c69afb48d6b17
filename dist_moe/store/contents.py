"""What a mask store holds: a plan, known before any model runs, and the results of its batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dist_moe.stats.counts import RoutingCounts, concatenate
from dist_moe.stats.design import Kinship
from dist_moe.stats.masks import ExpertMasks
from dist_moe.stats.table import RiskTable


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePlan:
    """What is to be found out, and from what: the same for all that write one store together."""

    prompt_ids: tuple[str, ...]
    unsafe_P: np.ndarray
    """bool [P]: the prompts' labels."""
    batch_of_P: np.ndarray
    """int [P]: index of the batch that a prompt is in; prompts are in the order of their batches."""
    batch_ids: tuple[str, ...]
    categories: tuple[str, ...]
    """Category of each batch."""
    num_experts: int
    """E."""
    experts_per_token: int
    """The model's k."""
    selection_rule: Mapping[str, Any]
    """Name and parameters, JSON values; `dist_moe.rules` knows what they mean."""
    counted_tokens: str
    """prompt, completion or all."""
    layer_names: tuple[str, ...]
    """The model's module name of each MoE layer, L of them."""
    provenance: Mapping[str, Any]
    """JSON values; at least model_hash, tokenizer_hash and data_hash, and whatever else made the batches."""
    statistics: Mapping[str, tuple[str, int]]
    """Further results by name: NumPy type ("float32" or "int32"), and 3 for [B, L, E] or 1 for [B]."""
    tables: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Further measurements of prompts likewise, [P, L, E] or [P]."""
    kinship: Kinship | None = None
    """Which rows are of one prompt, or pairs; `batch_P` is `batch_of_P`. None: nobody knows, as of an imported file."""
    template_P: np.ndarray | None = None
    """int [P]: how many of a row's counted tokens are the chat template's. None: none are, or nobody knows."""

    def __post_init__(self) -> None:
        num_batches = len(self.batch_ids)
        assert num_batches == len(self.categories)
        assert self.unsafe_P.shape == self.batch_of_P.shape == (len(self.prompt_ids),)
        assert self.unsafe_P.dtype == np.bool_
        assert (np.diff(self.batch_of_P) >= 0).all(), "prompts are not in the order of their batches"
        assert ((self.batch_of_P >= 0) & (self.batch_of_P < num_batches)).all()
        assert {"model_hash", "tokenizer_hash", "data_hash"} <= self.provenance.keys()
        if self.kinship is not None:
            assert self.kinship.cluster_P.dtype == self.kinship.pair_P.dtype == np.uint64
            assert (self.kinship.batch_P == self.batch_of_P).all()
            assert self.kinship.cluster_P.shape == self.kinship.pair_P.shape == self.unsafe_P.shape
        assert self.template_P is None or self.template_P.shape == self.unsafe_P.shape
        for name, (dtype, ndim) in (*self.statistics.items(), *self.tables.items()):
            assert name.isidentifier(), f"{name!r} cannot be the name of an array"
            assert dtype in ("float32", "int32"), f"{name} is {dtype}"
            assert ndim in (1, 3), f"{name} has {ndim} axes"

    @property
    def starts_B1(self) -> np.ndarray:
        """int [B + 1]: where each batch's prompts begin, and where the last one's end."""
        return np.searchsorted(self.batch_of_P, np.arange(len(self.batch_ids) + 1))

    @property
    def shape_BLE(self) -> tuple[int, int, int]:
        return len(self.batch_ids), len(self.layer_names), self.num_experts


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResults:
    """What was found for some consecutive batches."""

    counts: RoutingCounts
    """Of the batches' prompts."""
    risk: RiskTable
    masks: ExpertMasks
    statistics: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By name, [batches, L, E] or [batches]."""

    @property
    def num_batches(self) -> int:
        return len(self.masks.masks_BLE)

    def of(self, plan: StorePlan, batches: range) -> "BatchResults":
        """Those of some consecutive batches, from those of the whole plan."""
        self.check(plan, range(len(plan.batch_ids)))
        rows = slice(batches.start, batches.stop)
        prompts = slice(*plan.starts_B1[[batches.start, batches.stop]].tolist())
        return BatchResults(
            counts=self.counts.of(prompts),
            risk=RiskTable(self.risk.a_safe_n_BLE[rows], self.risk.a_unsafe_n_BLE[rows]),
            masks=ExpertMasks(self.masks.masks_BLE[rows]),
            statistics={name: values[rows] for name, values in self.statistics.items()},
        )

    def check(self, plan: StorePlan, batches: range) -> None:
        """Assert that these are what the plan says of some consecutive batches: as many, and all types and shapes."""
        first, last = plan.starts_B1[[batches.start, batches.stop]].tolist()
        shape_BLE, shape_PLE = ((size, *plan.shape_BLE[1:]) for size in (len(batches), last - first))
        assert self.counts.experts_per_token == plan.experts_per_token
        assert self.counts.counts_PLE.shape == shape_PLE
        assert self.risk.a_safe_n_BLE.shape == self.masks.masks_BLE.shape == shape_BLE
        for arrays, kinds, shape in (
            (self.statistics, plan.statistics, shape_BLE),
            (self.counts.tables, plan.tables, shape_PLE),
        ):
            found = {name: (values.dtype.name, values.shape) for name, values in arrays.items()}
            expected = {name: (dtype, shape[:ndim]) for name, (dtype, ndim) in kinds.items()}
            assert found == expected, f"{found} for {expected}"


def concatenate_results(parts: Sequence[BatchResults]) -> BatchResults:
    """The batches of all parts, in order."""
    return BatchResults(
        counts=concatenate([part.counts for part in parts]),
        risk=RiskTable(
            np.concatenate([part.risk.a_safe_n_BLE for part in parts]),
            np.concatenate([part.risk.a_unsafe_n_BLE for part in parts]),
        ),
        masks=ExpertMasks(np.concatenate([part.masks.masks_BLE for part in parts])),
        statistics={name: np.concatenate([part.statistics[name] for part in parts]) for name in parts[0].statistics},
    )
