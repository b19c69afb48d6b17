"""Pushes in a process of its own, as `tests.hub_places`.

python -m tests.hub_pushes    reads a JSON list of [folder, name, private]; prints one JSON line for each
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.hub.push import push, require_pushable
from tests.hub_places import ask


def pushes(questions: list[tuple[str, str, bool]], cwd: Path, **environment: str) -> list:
    """Of each push the facts, or the line that refuses it."""
    return ask("tests.hub_pushes", questions, cwd, **environment)


if __name__ == "__main__":
    for folder, name, private in json.load(sys.stdin):
        try:
            require_pushable(name, private=private)
            answer = asdict(push(Path(folder), name, private=private, message="of a test"))
        except UserError as error:
            answer = str(error)
        print(json.dumps(answer), flush=True)
