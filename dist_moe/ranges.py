"""Types of settings with their ranges, checked when a configuration is loaded and when a rule is made."""

from math import inf
from typing import Annotated, Literal

from annotated_types import Interval, MinLen

Count = Annotated[int, Interval(ge=1, lt=2**31)]
NonNegativeInt = Annotated[int, Interval(ge=0, lt=2**31)]
Positive = Annotated[float, Interval(gt=0, lt=inf)]
NonNegative = Annotated[float, Interval(ge=0, lt=inf)]
DecayRate = Annotated[float, Interval(ge=0, lt=1)]
Share = Annotated[float, Interval(gt=0, le=1)]
Text = Annotated[str, MinLen(1)]
Trains = Literal["experts", "routers", "experts_and_routers", "experts_and_dense"]
"""What a run trains: see the setting train.trains."""
