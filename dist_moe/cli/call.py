"""The arguments with which the function of a command is called."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from dist_moe.cli.streams import Output
from dist_moe.interruption import Interruption


@dataclass(frozen=True, slots=True)
class Call:
    """A parsed command line; its `run_command` is the function that runs the command."""

    args: argparse.Namespace
    settings: list[str]
    """Arguments that no option takes: they override settings of the configuration."""
    output: Output
    launcher: int | None
    """Process id of the launcher, if one has started this process."""
    interruption: Interruption

    def new_file(self, text: str, then: str) -> int:
        """Print a text, or write it to the new file --out, and say what to do with that.

        Raises:
            UserError: the file exists, or cannot be written.
        """
        from dist_moe.files import require_absent, write_text_atomic, writing

        out = self.args.out
        if out is None:
            print(text, end="")
            return 0
        self.output.outlive_reader()
        require_absent(out, "choose another --out or remove it")
        with writing(out):
            write_text_atomic(out, text)
        print(f"{out}: {then}")
        return 0
