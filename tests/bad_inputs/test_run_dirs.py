"""Commands on run directories that are not what they should be."""

import shutil
from pathlib import Path

import pytest

from tests.bad_inputs.harness import Case, check, ids, nothing

CASES = [
    Case("export without a run", nothing, "export nowhere --out out", ("no run directory nowhere",)),
    Case("export onto a directory", lambda: Path("out").mkdir(), "export run --out out", ("out exists",)),
    Case(
        "export without experts",
        lambda: shutil.rmtree("run/experts"),
        "export run --out out",
        ("no finished training",),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_run_dirs(copy, capsys, case):
    check(case, capsys)
