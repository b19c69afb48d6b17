"""What the functions return, where it is not a value of another room."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dist_moe.evaluation.curve import Curve
from dist_moe.evaluation.groups import By
from dist_moe.evaluation.record import Evaluation
from dist_moe.evaluation.rows import Kind
from dist_moe.report.curve import curve_frame
from dist_moe.report.evaluation import estimates_frame, rows_frame, table_frame
from dist_moe.workflows.run_dir import RunDir

if TYPE_CHECKING:
    from dist_moe.hub.push import Pushed
    from dist_moe.weights.facts import Facts, RunFacts


@dataclass(frozen=True, slots=True)
class Trained:
    """A run whose training has finished."""

    path: Path
    """The run directory."""
    union: tuple[tuple[int, int], ...]
    """(layer, expert) of each expert that at least one batch trains, sorted."""
    facts: RunFacts
    """Facts about the training: model, data, masks, settings."""

    @property
    def metrics(self) -> pd.DataFrame:
        """One row for each step: step, epoch, batch, loss (the objective), grad_norm, and more; see docs/formats.md."""
        return pd.read_json(RunDir(self.path).metrics, lines=True)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What an evaluation has found. The page on evaluation says what each number means."""

    path: Path
    """Directory of evaluation.json and answers.jsonl, which have it all."""
    evaluation: Evaluation
    """As values: `facts`, `groups` with every estimate and its interval, and `rows`, one record a row."""

    @property
    def kinds(self) -> list[Kind]:
        """Kinds of rows that there are, such as "held out" and "trained"; they are in no table together."""
        return self.evaluation.kinds

    @property
    def estimates(self) -> pd.DataFrame:
        """Every number, a line each: kind, by, group, measure, when, value, low, high, num_rows, num_prompts, p_value.

        `low` and `high` are the ends of 95 % intervals, `p_value` is of changes of refusal rates.
        """
        return estimates_frame(self.evaluation)

    @property
    def rows(self) -> pd.DataFrame:
        """One line a row: id, file, label, category, batch, kind, ..., `before.answer`, `after.answer`, and for each
        judge its verdict and reason, such as `after.judgements.phrases.verdict`."""
        return rows_frame(self.evaluation.rows)

    def table(self, by: By = "all", kind: Kind | None = None) -> pd.DataFrame:
        """The values of one table: a line for each batch, category or file, or for all rows.

        Columns are (measure, "before" | "after" | "change"): "refused (unsafe)" and "refused (safe)" are shares of
        rows, "refusal loss (unsafe)" and "answer loss (safe)" means per token in nats, and so on.

        Args:
            by: all, batch, category or file.
            kind: of rows; may be left out where there is one kind only.

        Raises:
            UserError: there are several kinds, or none of this name.
        """
        return table_frame(self.evaluation, by, kind)


@dataclass(frozen=True, slots=True)
class Alphas:
    """Evaluations of shares of a run's trained change: each as the export at its alpha would have it."""

    path: Path
    """Directory with an evaluation of each in `alphas`."""
    curve: Curve
    """As values: `evaluations`, by alpha, and `points`, every estimate with its interval."""

    def table(self, kind: Kind | None = None) -> pd.DataFrame:
        """The curve of one kind of rows: a line an alpha, 0 (the base) first.

        Columns are (measure, "value" | "low" | "high"); `low` and `high` are the ends of 95 % intervals.

        Args:
            kind: of rows; may be left out where there is one kind only.

        Raises:
            UserError: there are several kinds, or none of this name.
        """
        return curve_frame(self.curve, kind)

    def largest(self, max_over_refusal: float) -> float | None:
        """The largest alpha at which so many safe prompts, as a share, are refused at most: by the upper end of the
        interval, on rows that were not trained. None: at none. Report its numbers on other rows than these.

        Raises:
            UserError: no row is held out from the training.
        """
        return self.curve.largest(max_over_refusal)


@dataclass(frozen=True, slots=True)
class Exported:
    """A Hugging Face checkpoint, or a delta."""

    path: Path
    facts: Facts
    """Facts about the run that may be published; no paths of this machine."""
    pushed: Pushed | None = None
    """What a push has left on the hub: `url`, `commit`, `is_private`, `num_files`, `num_bytes`."""
