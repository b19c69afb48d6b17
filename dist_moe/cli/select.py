"""`dist-moe select`: its arguments, and the function that it calls; without torch."""

from __future__ import annotations

from typing import Any

from dist_moe.cli.arguments import path, text
from dist_moe.cli.call import Call
from dist_moe.errors import UserError


def add_select_command(commands: Any) -> None:
    """Add it to the subparsers of `dist-moe`."""
    what = "select each batch's unsafe experts from stored counts, by any rule; takes seconds, needs no model"
    command = commands.add_parser("select", help=what, description=f"{what[0].upper()}{what[1:]}.")
    command.add_argument("run", type=path, help="run directory in which `dist-moe count` or `analyze` has finished")
    command.add_argument(
        "parameters",
        nargs="*",
        type=text,
        metavar="NAME=VALUE",
        help="parameters of the rule, such as threshold=0.1 (default: those of the run's configuration)",
    )
    command.add_argument("--rule", type=text, help="name of the rule (default: that of the run's configuration)")
    command.add_argument(
        "--out", type=text, default="masks", help="name for the new masks, stored in RUN/OUT.zarr (default: masks)"
    )
    command.intermixes()
    command.set_defaults(run_command=_select)


def _select(call: Call) -> int:
    call.output.outlive_reader()
    from dist_moe.workflows.select import select

    args = call.args
    words = {} if args.rule is None else {"name": args.rule}
    for parameter in args.parameters:
        name, is_pair, value = parameter.partition("=")
        if not is_pair or name == "name" or name in words:
            raise UserError(f"{parameter}: expected NAME=VALUE, each name once; the rule's own name is --rule")
        words[name] = value
    select(args.run, words, args.out)
    return 0
