"""The section `evaluation.judge`: one section a judge that is registered, which is the judge itself."""

from __future__ import annotations

from dataclasses import field, make_dataclass
from typing import TYPE_CHECKING

from dist_moe.judges import JUDGES, Judge

if TYPE_CHECKING:

    class JudgeConfig:
        def __init__(self, **judges: Judge) -> None: ...

else:
    JudgeConfig = make_dataclass(
        "JudgeConfig",
        [(name, judge, field(default_factory=judge)) for name, judge in JUDGES.items()],
        kw_only=True,
        slots=True,
    )
