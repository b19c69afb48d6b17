"""Exports and pushes from Python in a process of its own, as `tests.hub_places`.

python -m tests.hub_exports    reads a JSON list of [run, out, settings]; prints one JSON line for each
"""

import json
import sys
from dataclasses import asdict

import dist_moe
from tests.hub_places import ask


def exports(questions: list[tuple[str, str, dict]], cwd, **environment: str) -> list:
    """Of each export its number of trained experts and what is on the hub; or the line that refuses it."""
    return ask("tests.hub_exports", questions, cwd, **environment)


if __name__ == "__main__":
    for run, out, settings in json.load(sys.stdin):
        try:
            done = dist_moe.export(run, out, **settings)
            answer = [done.facts.num_trained_experts, asdict(done.pushed)]
        except dist_moe.UserError as error:
            answer = str(error)
        print(json.dumps(answer), flush=True)
