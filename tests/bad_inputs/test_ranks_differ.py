"""A launcher's variables that make no job, in commands that start no second process."""

import pytest

from tests.bad_inputs.harness import Case, check, ids, nothing

LAUNCHED = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}

ENVIRONMENTS = {
    "RANK alone": ({"WORLD_SIZE": None}, "RANK is set, but WORLD_SIZE is not"),
    "WORLD_SIZE alone": ({"RANK": None}, "WORLD_SIZE is set, but RANK is not"),
    "no address": ({"MASTER_ADDR": None}, "MASTER_ADDR is not"),
    "empty address": ({"MASTER_ADDR": ""}, "MASTER_ADDR is not"),
    "no port": ({"MASTER_PORT": None}, "MASTER_PORT is not"),
    **{
        f"{name} {text!r}": ({name: text}, f"{name} is {text!r}: expected a whole number")
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
        for text in ("two", "-1", "1.0", "", "٣", "1 ")
    },
    "no ranks": ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0': expected a whole number from 1"),
    "port 0": ({"MASTER_PORT": "0"}, "MASTER_PORT is '0': expected a whole number from 1 to 65535"),
    "port beyond the last": ({"MASTER_PORT": "65536"}, "from 1 to 65535"),
    "long": ({"WORLD_SIZE": "9" * 4000 + "x"}, "WORLD_SIZE is '999"),
}
CASES = [
    Case(f"{command}, {name}", nothing, f"{command} --config run.yaml", (says,))
    for name, (_, says) in ENVIRONMENTS.items()
    for command in ("analyze", "train")
]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_what_a_launcher_says(copy, capsys, monkeypatch, case):
    for name, value in (LAUNCHED | ENVIRONMENTS[case.name.split(", ", 1)[1]][0]).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    check(case, capsys)
