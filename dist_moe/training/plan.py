"""The union of all batches' masks, outside which everything is frozen, and its size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class FreezePlan:
    """`union_LE` bool [L, E]: experts that at least one batch trains; all else is frozen for the whole run."""

    union_LE: np.ndarray
    num_expert_parameters: int
    """Parameters of one expert."""
    num_parameters: int
    """Parameters of the whole model."""

    @property
    def num_experts(self) -> int:
        return int(self.union_LE.sum())

    @property
    def num_trainable(self) -> int:
        return self.num_experts * self.num_expert_parameters
