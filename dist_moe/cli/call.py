"""The arguments with which the function of a command is called."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from dist_moe.cli.streams import Output


@dataclass(frozen=True, slots=True)
class Call:
    """A parsed command line; its `run_command` is the function that runs the command."""

    args: argparse.Namespace
    settings: list[str]
    """Arguments that no option takes: they override settings of the configuration."""
    output: Output
    launcher: int | None
    """Process id of the launcher, if one has started this process."""
