"""`dist-moe count|analyze|train|checkpoint|demo`: their arguments, and the functions that they call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_moe.cli.arguments import path
from dist_moe.cli.call import Call
from dist_moe.cli.ranks import add_configured

if TYPE_CHECKING:
    from dist_moe.config.schema import Config
    from dist_moe.parallel.comm import Comm


def add_run_commands(commands: Any) -> None:
    """Add them to the subparsers of `dist-moe`."""
    command = add_configured(
        commands,
        "count",
        "run the model on all prompts and count which experts their tokens are routed to",
        _count,
        ("model", "data", "batches", "analysis"),
    )
    source = command.add_mutually_exclusive_group()
    source.add_argument(
        "--routes",
        nargs="+",
        type=path,
        metavar="FILE",
        help="count the routes that a server has recorded, .jsonl or .npz, without the model's weights",
    )
    source.add_argument(
        "--requests", type=path, metavar="FILE", help="only write what to ask a server for: a line of JSON a prompt"
    )
    add_configured(
        commands,
        "analyze",
        "find each batch's unsafe experts: count, then select",
        _analyze,
        ("model", "data", "batches", "analysis"),
    )
    add_configured(
        commands,
        "train",
        "train each batch's unsafe experts, and nothing else",
        _train,
        ("model", "data", "batches", "train", "parallel", "checkpoint", "evaluation"),
    )


def add_checkpoint_command(commands: Any) -> None:
    """Add it to the subparsers of `dist-moe`."""
    command = commands.add_parser("checkpoint", help="verify a run's checkpoints and print what they contain")
    command.add_argument("action", choices=["show"], help="verify every byte, then print the contents")
    command.add_argument("path", type=path, help="run directory, or one checkpoint in it")
    command.set_defaults(run_command=_checkpoint)


def add_demo_command(commands: Any) -> None:
    """Add it to the subparsers of `dist-moe`."""
    command = commands.add_parser("demo", help="run the whole pipeline on a small model that is made on the spot")
    command.add_argument(
        "--out", type=path, default=Path("runs/demo"), help="directory to write everything to (default: %(default)s)"
    )
    command.add_argument("--fast", action="store_true", help="a smaller demo that takes about a minute")
    command.set_defaults(run_command=_demo)


def _count(config: Config, comm: Comm, call: Call) -> None:
    if call.args.routes is None and call.args.requests is None:
        from dist_moe.workflows.count import count

        count(config, comm)
        return
    from dist_moe.workflows.count_routes import count_routes, write_requests

    if call.args.requests is not None:
        write_requests(config, comm, call.args.requests)
    else:
        count_routes(config, comm, call.args.routes)


def _analyze(config: Config, comm: Comm, call: Call) -> None:
    from dist_moe.workflows.analyze import analyze

    analyze(config, comm)


def _train(config: Config, comm: Comm, call: Call) -> None:
    from dist_moe.workflows.train import train

    train(config, comm, call.launcher, call.interruption)


def _checkpoint(call: Call) -> int:
    from dist_moe.report.checkpoint import checkpoint_lines
    from dist_moe.workflows.checkpoint import checkpoints

    for found in checkpoints(call.args.path):
        for line in checkpoint_lines(found):
            print(line)
    return 0


def _demo(call: Call) -> int:
    call.output.outlive_reader()
    from dist_moe.demo.run import run_demo

    run_demo(call.args.out, fast=call.args.fast)
    return 0
