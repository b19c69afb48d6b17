"""What a model does with a share alpha of its trained experts' change: base + alpha * (trained - base).

Of each alpha there is an evaluation, whose before is the base. Together they are a curve, from the base (alpha 0) on:
refusals of unsafe prompts against those of safe ones, without another training.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.evaluation.measures import REFUSED_SAFE
from dist_moe.evaluation.record import Evaluation, read_evaluation
from dist_moe.evaluation.rows import Kind
from dist_moe.stats.measured import Estimate

ALPHAS = "alphas"
"""Directory of the evaluations, each in a directory of its alpha's name."""
CHOSEN_ON: Kind = "held out"
"""Rows that an alpha is chosen on: they were not trained. What was trained says nothing of other safe prompts."""


def alpha_name(alpha: float) -> str:
    """0.5 -> `0.5`, 1.0 -> `1`."""
    return repr(float(alpha)).removesuffix(".0")


def alpha_place(directory: Path, alpha: float) -> Path:
    """Where the evaluation of an alpha is, in the directory of the results."""
    return directory / ALPHAS / alpha_name(alpha)


@dataclass(frozen=True, slots=True)
class Curve:
    """Evaluations of one run on the same rows."""

    evaluations: dict[float, Evaluation]
    """By alpha, which is above 0, ascending."""

    @property
    def kinds(self) -> list[Kind]:
        """Kinds of rows that there are, each with a curve of its own."""
        return next(iter(self.evaluations.values())).kinds

    def points(self, kind: Kind) -> dict[float, dict[str, Estimate]]:
        """By alpha, 0 (the base) included, each measure over all rows of the kind."""
        points: dict[float, dict[str, Estimate]] = {0.0: {}}
        for alpha, evaluation in self.evaluations.items():
            (group,) = evaluation.of(kind, "all")
            measures = group.measures.items()
            points[0.0] = {name: each.before for name, each in measures if each.before is not None}
            points[alpha] = {name: each.after for name, each in measures if each.after is not None}
        return points

    def largest(self, max_over_refusal: float) -> float | None:
        """The largest alpha at which the share of refused safe prompts is at most this: the upper end of its 95 %
        interval, on the rows of `CHOSEN_ON`. None: at none of them.

        Raises:
            UserError: there are no such rows.
        """
        if CHOSEN_ON not in self.kinds:
            raise UserError(f"no row is {CHOSEN_ON} from the training, so no alpha can be chosen: give others")
        points = self.points(CHOSEN_ON)
        return max(
            (alpha for alpha in self.evaluations if _upper_end(points[alpha].get(REFUSED_SAFE)) <= max_over_refusal),
            default=None,
        )


def _upper_end(estimate: Estimate | None) -> float:
    return 1.0 if estimate is None or estimate.high is None else estimate.high


def read_curve(directory: Path, alphas: Iterable[float]) -> Curve:
    """The evaluations of these alphas in the directory of the results.

    Raises:
        UserError: one of them cannot be read.
    """
    return Curve({alpha: read_evaluation(alpha_place(directory, alpha)) for alpha in sorted({*alphas})})
