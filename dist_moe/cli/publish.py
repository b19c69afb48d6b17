"""`dist-moe publish` and `dist-moe fetch`: their arguments, and the functions that they call."""

from __future__ import annotations

from typing import Any

from dist_moe.cli.arguments import path, text
from dist_moe.cli.call import Call


def add_publish_commands(commands: Any) -> None:
    """Add both to the subparsers of `dist-moe`."""
    command = commands.add_parser("publish", help="write a run, an export, a store or an evaluation to a URL")
    command.add_argument("directory", type=path, help="what to publish; of a run not what it would resume from")
    command.add_argument("url", type=text, metavar="URL", help="where fsspec can write, such as s3://bucket/name")
    command.set_defaults(run_command=_publish)
    command = commands.add_parser("fetch", help="copy what is published at a URL, comparing every file with its digest")
    command.add_argument("url", type=text, metavar="URL", help="where it is published")
    command.add_argument("directory", type=path, help="new directory")
    command.set_defaults(run_command=_fetch)


def _publish(call: Call) -> int:
    call.output.outlive_reader()
    from dist_moe.workflows.publish import publish

    publish(call.args.directory, call.args.url)
    return 0


def _fetch(call: Call) -> int:
    call.output.outlive_reader()
    from dist_moe.workflows.publish import fetch

    fetch(call.args.url, call.args.directory)
    return 0
