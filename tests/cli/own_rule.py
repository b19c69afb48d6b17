"""A selection rule written as docs and CONTRIBUTING tell a newcomer to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Interval

from dist_moe.rules import RULES
from dist_moe.rules.rule import OfDifference


@RULES.register
@dataclass(frozen=True, kw_only=True)
class EvenExperts(OfDifference):
    """Experts with an even number, and a risk_diff above a minimum."""

    name = "even_experts"
    is_control = True
    least: Annotated[float, Interval(ge=-1, lt=1)] = 0.0
    """Only experts with a larger risk_diff are selected."""

    def choose(self, diff_LE: np.ndarray) -> np.ndarray:
        return (diff_LE > self.least) & (np.arange(diff_LE.shape[1]) % 2 == 0)

    @property
    def in_words(self) -> str:
        return f"control: experts of even number with a risk_diff above {self.least}"
