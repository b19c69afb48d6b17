"""Bad input as a table: what is wrong, the command, the words that its one line must have.

Each case gets a private copy of a finished run in the current directory:

    model/  prompts.jsonl  run.yaml  run/{masks.zarr, train.yaml, experts/, metrics.jsonl, evaluation.json, ...}
    delta.safetensors  stopped/checkpoints/step-00000001/  old.pkl

`change` makes something in it bad; the command must then end with status 2 and exactly one line, and leave every file
as it was. Paths in commands and files are relative.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dist_moe.cli.main import main

LONGEST_LINE = 700

Change = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """`argv` as a shell has it, after dist-moe; `says` are parts of the
    line, in any order.
    """

    name: str
    change: Change
    argv: str
    says: tuple[str, ...]
    new: tuple[str, ...] = ()
    """Places under which a refused command may leave files: what it has counted by then, for the next try."""


def nothing() -> None:
    """For a case in which only the command line is wrong."""


def ids(cases: list[Case]) -> list[str]:
    """Names for pytest; each once."""
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
    return names


def check(case: Case, capsys) -> str:
    """Run a case in the current directory, and return its line."""
    case.change()
    before = contents(Path())
    capsys.readouterr()
    words = shlex.split(case.argv)
    status = main(words)
    printed = capsys.readouterr().err.splitlines()
    errors = [line for line in printed if line.startswith("dist-moe: error: ")]
    assert status == 2, (status, printed)
    assert len(errors) == 1, printed
    assert printed[-1] == errors[0], printed
    assert len(errors[0]) <= LONGEST_LINE, errors[0]
    missing = [words for words in case.says if words not in errors[0]]
    assert not missing, f"{missing} not in: {errors[0]}"
    after = contents(Path())
    allowed = {name for name in after if name not in before and name.startswith(case.new or ("\0",))}
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} - allowed
    assert not changed, changed
    return errors[0]


def contents(root: Path) -> dict[str, str]:
    """Digest of every file, and "directory" or link target of everything else, by its path."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            found[str(path)] = f"-> {path.readlink()}"
        elif path.is_file():
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if readable(path) else "not readable"
        else:
            found[str(path)] = "directory"
    return found


def readable(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o400)
