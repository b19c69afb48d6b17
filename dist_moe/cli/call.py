"""What a command is given."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from dist_moe.cli.streams import Output


@dataclass(frozen=True, slots=True)
class Call:
    """A parsed command line. The function that runs it stands there as `run_command`."""

    args: argparse.Namespace
    settings: list[str]
    """Words that no option takes, and that override keys of the configuration."""
    output: Output
    launcher: int | None
    """The process that has started this one as one of several, and watches it."""
