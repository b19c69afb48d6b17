"""What is asked of an evaluation: by the command line, by Python, or by a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dist_moe.config.schema import Config, EvaluationConfig
from dist_moe.errors import UserError
from dist_moe.evaluation.harness import Tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """The same on all ranks."""

    path: Path
    """A run, or a model's directory."""
    data: Sequence[Path] = ()
    """Files of rows; none: those that the run was trained on."""
    against: Path | None = None
    """A model to compare a model with."""
    out: Path | None = None
    """Directory of the results; None: the run's, or `evaluation-NAME` of a model."""
    ep_size: int | None = None
    """Ranks that share experts; None: as `evaluation.ep_size` says."""
    alphas: Sequence[float] = ()
    """Of a run: shares of the trained experts' change, above 0 and up to 1, each of which is evaluated as its export
    would be; none: the trained experts as they are."""
    max_over_refusal: float | None = None
    """Say which of them is the largest at which so many safe prompts are refused at most."""
    silence: str | None = None
    """A mask store: compare a model with itself without the experts of these masks."""
    batches: Sequence[int] = ()
    """Of these batches only; none: of all."""
    tasks: Tasks | None = None
    """What lm-evaluation-harness measures beside, with the model that it loads itself."""
    settings: Sequence[str] = ()
    """Words of a command line, such as `--evaluation.max_new_tokens 64`."""
    base_answers: Path | None = None
    """File that keeps what the model before says to these rows: it is asked only if the file is not there, or is of
    something else."""
    section: EvaluationConfig | None = None
    """All settings of `evaluation`, instead of those that a run was trained with."""

    def check(self) -> None:
        """Refuse what needs something else that is not asked for.

        Raises:
            UserError: says what is missing.
        """
        if self.max_over_refusal is not None and not self.alphas:
            raise UserError("--max-over-refusal chooses one of several alphas: give --alphas, such as 0.3,0.5,1")
        if self.batches and self.silence is None:
            raise UserError("--batches says whose experts are silenced: give --silence STORE")

    def applied(self, config: Config) -> Config:
        """The configuration with this request's own settings of `evaluation`."""
        section = replace(self.section or config.evaluation)
        section.ep_size = self.ep_size or section.ep_size
        return replace(config, evaluation=section)
