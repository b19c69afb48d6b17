"""The judges that a configuration names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dist_moe.config import Config
from dist_moe.judges import JUDGES, Judge
from dist_moe.judges.phrases import Phrases


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
