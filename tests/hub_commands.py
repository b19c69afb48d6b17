"""Runs commands in a process of its own, as `tests.hub_places`.

python -m tests.hub_commands    reads a JSON list of command lines; prints one JSON line for each
"""

import contextlib
import io
import json
import sys
from pathlib import Path

from dist_moe.cli.main import main
from tests.hub_places import ask


def run(commands: list[list[str]], cwd: Path, **environment: str) -> list[dict]:
    """What each command has answered, in one process: status, out, err."""
    return ask("tests.hub_commands", commands, cwd, **environment)


if __name__ == "__main__":
    answers = sys.stdout
    for command in json.load(sys.stdin):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(command)
        print(json.dumps({"status": status, "out": out.getvalue(), "err": err.getvalue()}), file=answers, flush=True)
