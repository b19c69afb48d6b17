"""What a run trains: the union of all batches' masks, and dense weights; everything else is frozen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class FreezePlan:
    """`union_LE` bool [L, E]: experts that at least one batch trains."""

    union_LE: np.ndarray
    num_expert_parameters: int
    """Parameters of one expert."""
    num_parameters: int
    """Parameters of the whole model."""
    num_dense_parameters: int = 0
    """Parameters of the dense weights that are trained."""

    @property
    def num_experts(self) -> int:
        return int(self.union_LE.sum())

    @property
    def num_union_parameters(self) -> int:
        return self.num_experts * self.num_expert_parameters

    @property
    def num_trainable(self) -> int:
        return self.num_union_parameters + self.num_dense_parameters
