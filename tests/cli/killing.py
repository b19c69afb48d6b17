"""Runs a program of tests that kills ranks of runs and starts them again, and reads what it says of each."""

import json
import os
import subprocess
import sys

from tests.cli.test_kills import REPOSITORY
from tools.soak.__main__ import SINGLE_THREADED


def statuses_of(module, *words, limit_s):
    """By (layout, moment), the statuses of both starts; `words` are the program's arguments."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        cwd=REPOSITORY,
        env={**os.environ, **SINGLE_THREADED},
        capture_output=True,
        text=True,
        check=False,
        timeout=limit_s,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
    return {(layout, moment): statuses for layout, moment, *statuses in lines}
