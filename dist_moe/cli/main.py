"""The `dist-moe` program: the tree of all commands. launch/*.py start the same commands on many ranks.

A command imports what it needs when it is called, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from dist_moe.cli.arguments import Parser
from dist_moe.cli.call import Call
from dist_moe.cli.compare import add_compare_command
from dist_moe.cli.completion import SHELLS, completion
from dist_moe.cli.config import add_config_commands
from dist_moe.cli.evaluate import add_evaluate_command
from dist_moe.cli.inspect import add_inspect_command
from dist_moe.cli.models import add_model_commands
from dist_moe.cli.operate import add_operate_commands
from dist_moe.cli.plan import add_plan_command
from dist_moe.cli.process import is_first, run_process
from dist_moe.cli.publish import add_publish_commands
from dist_moe.cli.report import add_report_command
from dist_moe.cli.runs import add_checkpoint_command, add_demo_command, add_run_commands
from dist_moe.cli.select import add_select_command
from dist_moe.cli.slurm import add_slurm_commands
from dist_moe.cli.store import add_store_commands
from dist_moe.cli.streams import Output
from dist_moe.cli.verify import add_verify_command
from dist_moe.errors import UserError
from dist_moe.interruption import Interruption
from dist_moe.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. A `UserError` becomes one line on stderr and exit status 2; any other error is raised."""
    launcher = os.getppid() if "RANK" in os.environ else None  # asked first, because the launcher may die at any moment
    words = list(sys.argv[1:] if argv is None else argv)
    return run_process(lambda output, interruption: _run(words, launcher, output, interruption))


def launched_main(command: str) -> int:
    """Run a command as one of the processes that a launcher started; the entry point of launch/*.py."""
    return main([command, *sys.argv[1:]])


def _run(words: list[str], launcher: int | None, output: Output, interruption: Interruption) -> int:
    try:
        args, settings = command_tree().parse_known_args(words)
        if not args.parser.takes_settings:
            args.parser.refuse(settings)
    except UserError:
        if is_first():
            raise
        return 2
    status: int = args.run_command(Call(args, settings, output, launcher, interruption))
    return status


def command_tree() -> Parser:
    """The parser of all commands. The parsed namespace has the function that runs the command as `run_command`."""
    tree = Parser(
        "dist-moe",
        description="Find the experts of a mixture-of-experts model that unsafe prompts use, and train only those.",
    )
    tree.add_argument("--version", action="version", version=f"dist-moe {__version__}")
    tree.add_argument(
        "--print-completion", choices=SHELLS, action=_PrintCompletion, help="print a completion script for the shell"
    )
    commands = tree.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_run_commands(commands)
    add_plan_command(commands)
    add_select_command(commands)
    add_inspect_command(commands)
    add_evaluate_command(commands)
    add_compare_command(commands)
    add_report_command(commands)
    add_model_commands(commands)
    add_verify_command(commands)
    add_checkpoint_command(commands)
    add_operate_commands(commands)
    add_slurm_commands(commands)
    add_store_commands(commands)
    add_publish_commands(commands)
    add_config_commands(commands)
    add_demo_command(commands)
    return tree


class _PrintCompletion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        assert isinstance(parser, Parser)
        print(completion(values, parser), end="")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
