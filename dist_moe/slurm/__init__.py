"""A run as jobs of Slurm: what a site needs, which jobs a run is, their batch files, and what the scheduler says."""

from __future__ import annotations

from typing import Literal

Stage = Literal["count", "select", "train", "evaluate", "report"]
STAGES: tuple[Stage, ...] = ("count", "select", "train", "evaluate", "report")
"""In their order."""
