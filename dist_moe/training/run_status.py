"""What a run is doing, as `dist-moe status` finds it in the files that the run writes anyway."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dist_moe.stats.measured import Estimate
from dist_moe.trackers.rank_state import RankState

State = Literal[
    "not started", "starting", "running", "finished", "stopped", "interrupted", "failed", "killed", "unknown"
]
"""starting: a job holds the run directory, and has not begun to write. stopped: asked to, with a checkpoint.
interrupted: by a signal, as Ctrl-C. failed: ended with an error. killed: ended without a word. unknown: the file system
has no locks, and the last job has been silent for a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastStep:
    """From the last whole lines of metrics.jsonl."""

    step: int
    epoch: int
    batch: int
    category: str
    loss: float
    terms: dict[str, float]
    """Mean of each term of the objective, without its weight."""
    grad_norm: float
    lr: float
    num_active: int
    """Experts that the step could train."""
    mask_revision: int
    tokens_per_second: float
    """Median of the last steps, over all ranks."""
    seconds_per_step: float
    """Mean of the last steps; without what is done between steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastCheckpoint:
    """From the index of the last checkpoint whose files are there with their sizes. Their bytes are not compared."""

    path: str
    step: int
    age_seconds: float
    layout: str
    masks_digest: str
    num_owned: list[int]
    """By rank: experts whose optimizer state it keeps."""
    state_bytes: list[int]
    """By rank: memory of that optimizer state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeakBatch:
    """A batch that the last evaluation in mid-run (`train.adjust`) found weak."""

    batch: int
    category: str
    value: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LastAdjustment:
    """The last evaluation in mid-run."""

    step: int
    measure: str
    num_batches: int
    weak: list[WeakBatch]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """What is known of a run directory at one moment; None where nothing is."""

    run_dir: str
    state: State
    command: str | None = None
    """Of the last job that has begun to write."""
    job: str | None = None
    """Who holds the run directory now."""
    silent_seconds: float | None = None
    """Since when the first rank has told nothing; of a running job."""
    done: int | None = None
    total: int | None = None
    unit: str | None = None
    """What is counted: steps or parts."""
    seconds_left: float | None = None
    """Of a running job, by the speed of its last steps."""
    step: LastStep | None = None
    ranks: list[RankState] = field(default_factory=list)
    """What each rank of the last job has told."""
    token_balance: float | None = None
    """Largest number of tokens of a rank's own rows, divided by the mean over ranks; 1 is even."""
    checkpoint: LastCheckpoint | None = None
    adjustment: LastAdjustment | None = None
    results: list[str] = field(default_factory=list)
    """Names of the complete results in the run directory."""
    requests: list[str] = field(default_factory=list)
    """Files that ask the run to stop, and are there."""
    error: str | None = None
    """Why the last job has ended, if that was an error."""
    notes: list[str] = field(default_factory=list)
    """What is broken or unfinished, each with what to do."""

    @property
    def is_over(self) -> bool:
        """Whether no job works in the run directory, as far as can be known."""
        return self.state not in ("starting", "running")
