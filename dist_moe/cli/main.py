"""`dist-moe`: one command for each stage. Commands are imported when they are called, so `--help` is quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING

from dist_moe import __version__
from dist_moe.cli.arguments import Parser, path, text
from dist_moe.cli.process import is_first, print_end, run_process
from dist_moe.cli.store import add_store_commands, run_import, run_store
from dist_moe.cli.streams import Output
from dist_moe.errors import UserError

if TYPE_CHECKING:
    from dist_moe.parallel.comm import Comm

CONFIG_COMMANDS = ("analyze", "train")
PRINTING_COMMANDS = ("checkpoint", "store", "import", "inspect-model", "families", "verify")
"""Their product is what they print; of `store` and `import` only where they write nothing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a `UserError` is one line on stderr and status 2, anything else keeps its traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_process(lambda output: _run(words, output))


def launched_main(command: str) -> int:
    """What launch/*.py run: one process of many. A `UserError` reaches all ranks, and the first one prints it."""
    launcher = os.getppid()  # first of all, as it may die at any moment
    return run_process(lambda output: _run_launched(command, launcher, output))


def _run_launched(command: str, launcher: int, output: Output) -> int:
    parser = Parser(f"launch/{command}.py", description=f"dist-moe {command} on many processes")
    parser.add_argument("--config", type=path, required=True, help="YAML file; further arguments override its keys")
    parser.add_argument("--local_rank", type=int, help="given by the deepspeed launcher; not used")
    try:
        args, overrides = parser.parse_known_args()
    except UserError:
        if is_first():
            raise
        return 2
    output.outlive_reader()

    from dist_moe.parallel.launch import process_group

    with process_group() as comm:
        try:
            _run_workflow(command, args.config, overrides, comm, launcher)
        except UserError as error:
            if comm.rank == 0:
                print_end("dist-moe", f"error: {error}")
            # leaving the block waits for all ranks, so that no launcher ends the first one before it has spoken
            return 2
    return 0


def _run_workflow(
    command: str, config_path: Path, overrides: Sequence[str], comm: Comm, launcher: int | None = None
) -> None:
    from dist_moe.config.load import load_config, settings_of
    from dist_moe.parallel.launch import together

    with together(comm) as same:
        same |= {"command": command, **_versions()}
        config = load_config(config_path, overrides, prog=f"dist-moe {command}")
        same |= settings_of(config)
    if command == "analyze":
        from dist_moe.workflows.analyze import analyze

        analyze(config, comm)
    else:
        from dist_moe.workflows.train import train

        train(config, comm, launcher)


def _versions() -> dict[str, str]:
    """What computes; importing it all would take seconds."""
    libraries = ("torch", "transformers", "deepspeed")
    return {"dist_moe": __version__, "python": python_version()} | {name: version(name) for name in libraries}


def _run(argv: list[str], output: Output) -> int:
    parser, commands = _parsers()
    args, overrides = parser.parse_known_args(argv)
    if args.command in CONFIG_COMMANDS:
        output.outlive_reader()
        from dist_moe.parallel.launch import process_group

        with process_group() as comm:
            _run_workflow(args.command, args.config, overrides, comm)
        return 0
    commands[args.command].refuse(overrides)
    if args.command not in PRINTING_COMMANDS:
        output.outlive_reader()
    if args.command == "export":
        from dist_moe.workflows.export import export, export_delta

        if args.delta:
            export_delta(args.run, args.out)
        else:
            export(args.run, args.out, link=args.link)
    elif args.command == "apply":
        from dist_moe.workflows.export import apply

        apply(args.base, args.delta, args.out)
    elif args.command == "verify":
        from dist_moe.workflows.export import verify

        return 0 if verify(args.base, args.model, args.masks) else 1
    elif args.command == "evaluate":
        from dist_moe.workflows.evaluate import evaluate

        evaluate(args.run, tuple(args.data))
    elif args.command == "checkpoint":
        from dist_moe.workflows.checkpoint import show

        show(args.path)
    elif args.command == "import":
        return run_import(args, output)
    elif args.command == "store":
        return run_store(args, output)
    elif args.command == "inspect-model":
        from dist_moe.workflows.inspect_model import inspect_model

        inspect_model(args.model, as_json=args.json)
    elif args.command == "families":
        from dist_moe.workflows.families import families

        families(args.types, as_json=args.json)
    else:
        from dist_moe.demo.run import run_demo

        run_demo(args.out, fast=args.fast)
    return 0


def _parsers() -> tuple[Parser, Mapping[str, Parser]]:
    """The whole, and each command's."""
    parser = Parser("dist-moe", description="Find the experts that answer for unsafe behaviour, and repair only them.")
    parser.add_argument("--version", action="version", version=f"dist-moe {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, what in (
        ("analyze", "prompts -> masks: count routing per batch and choose each batch's unsafe experts"),
        ("train", "masks -> repaired experts: train only each batch's experts, in one process"),
    ):
        further = "Further arguments override the file's keys, as --train.lr 1e-5; docs/configuration.md lists them."
        command = commands.add_parser(name, help=what, description=f"{what}. {further}")
        command.add_argument("--config", type=path, required=True, help="YAML file of the run")
    command = commands.add_parser("export", help="a trained run -> a Hugging Face checkpoint, or a delta")
    command.add_argument("run", type=path, help="run directory")
    command.add_argument("--out", type=path, required=True, help="new directory for the checkpoint, or new delta file")
    form = command.add_mutually_exclusive_group()
    form.add_argument(
        "--link",
        action="store_true",
        help="hard-link the shards without changes instead of copying them: editing one later edits the base's too",
    )
    form.add_argument("--delta", action="store_true", help="write only the trained experts, as one safetensors file")
    command = commands.add_parser("apply", help="a base and a delta -> the checkpoint that export would write")
    command.add_argument("base", type=path, help="base model directory that the delta was made from")
    command.add_argument("delta", type=path, help="delta file")
    command.add_argument("--out", type=path, required=True, help="new directory for the checkpoint")
    command = commands.add_parser("verify", help="prove that only the union's experts differ; status 1 if not")
    command.add_argument("base", type=path, help="base model directory")
    command.add_argument("model", type=path, help="exported model directory")
    command.add_argument("--masks", type=text, required=True, help="mask store of the run, a directory or URL")
    command = commands.add_parser("evaluate", help="before and after per batch and category, unmasked")
    command.add_argument("run", type=path, help="run directory")
    command.add_argument("--data", type=path, nargs="+", default=[], help="prompt files to score instead of the run's")
    command = commands.add_parser("checkpoint", help="what is in a run's checkpoints, after a check of every byte")
    command.add_argument("action", choices=["show"])
    command.add_argument("path", type=path, help="run directory, or one checkpoint in it")
    add_store_commands(commands)
    command = commands.add_parser("inspect-model", help="what a model is to dist-moe: layers, experts, routing, sizes")
    command.add_argument("model", type=path, help="model directory")
    command.add_argument("--json", action="store_true", help="one JSON object")
    command = commands.add_parser("families", help="which model types work with the installed transformers, by trying")
    command.add_argument("types", nargs="*", metavar="TYPE", help="model types; default: all")
    command.add_argument("--json", action="store_true", help="a JSON array, one object a model type")
    command = commands.add_parser("demo", help="the whole path on a small model made on the spot")
    command.add_argument(
        "--out", type=path, default=Path("runs/demo"), help="directory of the demo (default: %(default)s)"
    )
    command.add_argument("--fast", action="store_true", help="a smaller demo, about a minute")
    return parser, commands.choices


if __name__ == "__main__":
    sys.exit(main())
