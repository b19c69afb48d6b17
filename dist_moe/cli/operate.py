"""`dist-moe status|watch|doctor`: what a run is doing, and whether a machine is fit for one."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_moe.cli.arguments import count, path, seconds
from dist_moe.cli.call import Call

if TYPE_CHECKING:
    from dist_moe.doctor.check import Finding
    from dist_moe.training.run_status import RunStatus


def add_operate_commands(commands: Any) -> None:
    """Add them to the subparsers of `dist-moe`."""
    command = commands.add_parser("status", help="print what a run is doing, or how it has ended")
    command.add_argument("run", type=path, help="run directory")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run_command=_status)
    command = commands.add_parser("watch", help="show a run's status until it ends")
    command.add_argument("run", type=path, help="run directory")
    command.add_argument(
        "--interval", metavar="S", type=seconds, default=2.0, help="seconds between two looks (default: %(default)s)"
    )
    command.set_defaults(run_command=_watch)
    command = commands.add_parser("doctor", help="check whether this machine is fit for a run, with remedies")
    command.add_argument(
        "--run-dir", type=path, default=Path(), help="where a run would write (default: the current directory)"
    )
    command.add_argument(
        "--ranks", metavar="N", type=count, default=2, help="processes that exchange something (default: %(default)s)"
    )
    command.set_defaults(run_command=_doctor)


def _status(call: Call) -> int:
    from dist_moe.report.status import status_lines
    from dist_moe.workflows.status import status

    found = status(call.args.run)
    lines = [json.dumps(asdict(found), indent=2)] if call.args.json else status_lines(found)
    for line in lines:
        print(line)
    return 0


def _watch(call: Call) -> int:
    """Ctrl-C is the usual way to end it, and no error."""
    show = _on_terminal if sys.stdout.isatty() else _in_log
    try:
        show(call.args.run, call.args.interval)
    except KeyboardInterrupt:
        print()
    return 0


def _on_terminal(run: Path, interval: float) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from dist_moe.report.status import status_lines
    from dist_moe.workflows.status import status

    def shown(found: RunStatus) -> Text:
        return Text("\n".join(status_lines(found)), no_wrap=True, overflow="ellipsis")

    found = status(run)
    with Live(shown(found), console=Console(file=sys.stdout), auto_refresh=False) as live:
        while not found.is_over:
            time.sleep(interval)
            found = status(run)
            live.update(shown(found), refresh=True)


def _in_log(run: Path, interval: float) -> None:
    """A line when something has changed, and all that is known at the end."""
    from dist_moe.report.status import one_line, status_lines
    from dist_moe.workflows.status import status

    found, said = status(run), None
    while not found.is_over:
        if (found.state, found.done) != said:
            said = found.state, found.done
            print(one_line(found), flush=True)
        time.sleep(interval)
        found = status(run)
    for line in status_lines(found):
        print(line)


def _doctor(call: Call) -> int:
    """The status is 1 if a check has failed."""
    from dist_moe.doctor.check import Asked
    from dist_moe.doctor.examine import examine
    from dist_moe.report.doctor import doctor_lines

    failed = list[str]()

    def found() -> Iterator[tuple[str, Finding]]:
        for name, finding in examine(Asked(run_dir=call.args.run_dir, ranks=call.args.ranks)):
            if not finding.ok:
                failed.append(name)
            yield name, finding

    for line in doctor_lines(found()):
        print(line, flush=True)
    return 1 if failed else 0
