"""Rows of datasets of the hub, read in a process of its own, as `tests.hub_places`.

python -m tests.hub_rows    reads a JSON list of paths; prints one JSON line for each
"""

import json
import sys
from pathlib import Path

import torch

from dist_moe.data.rows import read_prompts
from dist_moe.errors import UserError
from dist_moe.parallel.comm import SoloComm
from dist_moe.workflows.model_place import placed_data
from tests.hub_places import ask


def rows(paths: list[str], cwd: Path, **environment: str) -> list:
    """Of each path where it is then said to be, its data hash and its first source; or the line that refuses it."""
    return ask("tests.hub_rows", paths, cwd, **environment)


if __name__ == "__main__":
    for path in json.load(sys.stdin):
        try:
            (place,) = placed_data([Path(path)], SoloComm(torch.device("cpu")))
            found = read_prompts([place], "no")
            answer = [str(place), found.data_hash, min(prompt.source for prompt in found.prompts)]
        except UserError as error:
            answer = str(error)
        print(json.dumps(answer), flush=True)
