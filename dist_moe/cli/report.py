"""`dist-moe report`: its arguments, and the function that it calls."""

from __future__ import annotations

from typing import Any

from dist_moe.cli.arguments import path
from dist_moe.cli.call import Call


def add_report_command(commands: Any) -> None:
    """Add it to the subparsers of `dist-moe`."""
    command = commands.add_parser(
        "report",
        help="one HTML page about runs and comparisons, that needs no network: what was done, and what came of it",
        description="Writes one HTML page about runs, comparisons and evaluations, from what there is in their "
        "directories. The page needs no network and no other file; it says what is missing, and which command does it.",
    )
    command.add_argument("runs", metavar="RUN", type=path, nargs="+", help="directory of a run or a comparison")
    command.add_argument("--out", type=path, help="file of the page (default: report.html in the first directory)")
    command.add_argument(
        "--export", type=path, help="what the first run was exported to: it is compared with its base, byte by byte"
    )
    command.set_defaults(run_command=_report)


def _report(call: Call) -> int:
    call.output.outlive_reader()
    from dist_moe.workflows.report import report

    report(call.args.runs, call.args.out, call.args.export)
    return 0
