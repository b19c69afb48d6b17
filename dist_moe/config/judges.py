"""The section `evaluation.judge`: one section a judge that is registered, which is the judge itself."""

from __future__ import annotations

from dataclasses import field, make_dataclass, replace
from typing import TYPE_CHECKING, Any

from dist_moe.judges import JUDGES, Judge
from dist_moe.judges.phrases import Phrases

if TYPE_CHECKING:
    from dist_moe.config.schema import Config

    class JudgeConfig:
        def __init__(self, **judges: Judge) -> None: ...

else:
    JudgeConfig = make_dataclass(
        "JudgeConfig",
        [(name, judge, field(default_factory=judge)) for name, judge in JUDGES.items()],
        kw_only=True,
        slots=True,
    )


def chosen_judges(config: Config) -> tuple[Judge, ...]:
    """Those of `evaluation.judges`, in their order, with their settings; `phrases` knows `data.refusal` too.

    Raises:
        UserError: there is none of that name, or one lacks a setting that it cannot do without.
    """
    section: Any = config.evaluation.judge
    judges = [getattr(section, JUDGES.find(name).name) for name in dict.fromkeys(config.evaluation.judges)]
    for judge in judges:
        judge.require_ready()
    return tuple(
        replace(judge, also=(config.data.refusal, *judge.also)) if isinstance(judge, Phrases) else judge
        for judge in judges
    )
