"""Commands that may run as one of many processes. A `UserError` then reaches all ranks, and rank 0 prints it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

from dist_moe.cli.arguments import path
from dist_moe.cli.call import Call
from dist_moe.cli.process import print_end
from dist_moe.errors import UserError
from dist_moe.files import read_text
from dist_moe.version import __version__

if TYPE_CHECKING:
    from dist_moe.config.schema import Config
    from dist_moe.parallel.comm import Comm


def add_configured(
    commands: Any, name: str, what: str, work: Callable[[Config, Comm, Call], object], sections: tuple[str, ...]
) -> argparse.ArgumentParser:
    """Add a command that reads a configuration."""
    further = (
        "Settings come from the YAML file; those given on the command line, as --data.max_length 512, override it."
    )
    command = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}. {further}")
    command.add_argument(
        "--config", type=path, required=True, help="YAML file of the run; `dist-moe config init` writes one"
    )
    accept_local_rank(command)
    command.take_settings("", *sections)
    command.set_defaults(run_command=lambda call: _run(call, name, work))
    return command


def _run(call: Call, name: str, work: Callable[[Config, Comm, Call], object]) -> int:
    if call.launcher is not None:
        return on_all_ranks(call, lambda comm: work(_config(call, name, comm), comm, call))
    file: Path = call.args.config
    if not os.path.isfile(file):
        read_text(file, "the config file")  # a wrong path is found before anything is imported
    from dist_moe.config.load import load_config

    config = load_config(file, call.settings)  # and a wrong setting before torch is
    return on_all_ranks(call, lambda comm: work(config, comm, call))


def accept_local_rank(command: argparse.ArgumentParser) -> None:
    """Accept the option that the deepspeed launcher gives. It is not used."""
    command.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)


def _config(call: Call, name: str, comm: Comm) -> Config:
    from dist_moe.config.load import load_config, settings_of
    from dist_moe.parallel.launch import together

    with together(comm) as same:
        same |= {"command": name, **versions()}
        config = load_config(call.args.config, call.settings)
        same |= settings_of(config)
    return config


def on_all_ranks(call: Call, work: Callable[[Comm], object]) -> int:
    """Do the work in the process group of this process. Returns the exit status."""
    call.output.outlive_reader()
    from dist_moe.parallel.launch import process_group

    with process_group() as comm:
        try:
            work(comm)
        except UserError as error:
            if call.interruption.asked:  # what a library made of it
                raise KeyboardInterrupt from error
            if comm.rank == 0:
                print_end("dist-moe", f"error: {error}")
            # leaving the block waits for all ranks, so that no launcher ends the first one before it has spoken
            return 2
    return 0


def versions() -> dict[str, str]:
    """Versions of what computes; importing it would take seconds."""
    from importlib.metadata import version

    libraries = ("torch", "transformers", "deepspeed")
    return {"dist_moe": __version__, "python": python_version()} | {name: version(name) for name in libraries}
