"""Where models of the hub are found, asked in a process of its own, since the hub's client reads its environment when
it is imported.

    python -m tests.hub_places    reads a JSON list of [path, revision]; prints one JSON line for each
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.weights.fetched import model_directory

ROOT = Path(__file__).parents[1]


def hub_environment(cwd: Path, **own: str) -> dict[str, str]:
    """The hub's cache is in `cwd`/hf, and no setting of the machine is in force."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return clean | {"HF_HOME": str(cwd / "hf"), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)} | own


def ask(module: str, questions: list, cwd: Path, *, most_kib: int | None = None, **environment: str) -> list:
    """Answers of `python -m module`, one for each question; `most_kib` limits the size of the files that it writes,
    where a write fails as on a full disk."""
    limited = () if most_kib is None else ("bash", "-c", f'ulimit -f {most_kib}; exec "$@"', "-")
    done = subprocess.run(
        [*limited, sys.executable, "-m", module],
        input=json.dumps(questions),
        cwd=cwd,
        env=hub_environment(cwd, **environment),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def kill_when(module: str, questions: list, cwd: Path, due: Callable[[], bool], **environment: str) -> None:
    """Start `python -m module`, and kill it once something is so."""
    client = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        cwd=cwd,
        env=hub_environment(cwd, **environment),
        text=True,
    )
    assert client.stdin is not None
    client.stdin.write(json.dumps(questions))
    client.stdin.close()
    end = time.monotonic() + 120
    while not due():
        assert client.poll() is None, "it has ended"
        assert time.monotonic() < end, "nothing has happened in 120 s"
        time.sleep(0.05)
    client.kill()
    client.wait()


def places(
    questions: list[tuple[str, str | None]], cwd: Path, *, most_kib: int | None = None, **environment: str
) -> list[str]:
    """Of each (path, revision) its directory, or the line that refuses it."""
    return ask("tests.hub_places", questions, cwd, most_kib=most_kib, **environment)


if __name__ == "__main__":
    for path, revision in json.load(sys.stdin):
        try:
            answer = str(model_directory(Path(path), "model.path", revision=revision))
        except UserError as error:
            answer = str(error)
        print(json.dumps(answer), flush=True)
