"""Places that nothing can be written to: one line, and everything as before, no `.partial` and no new folder."""

import resource
import shlex
from pathlib import Path

import pytest

from dist_moe.cli.main import main
from tests.bad_inputs.harness import Case, check, contents, ids, nothing
from tests.unit.store.pickles.examples import analysis, write_pickle

LONG = "n" * 300


def older() -> None:
    write_pickle(Path("older.pkl"), analysis())


def delta() -> None:
    assert main(["export", "run", "--out", "delta", "--delta"]) == 0


def in_the_way(name: str, first=nothing):
    def change():
        first()
        Path(name).write_text("mine")

    return change


WRITERS = {
    "export": (nothing, "export run --out {}"),
    "export a delta": (nothing, "export run --delta --out {}"),
    "apply": (delta, "apply model delta --out {}"),
    "store copy": (nothing, "store copy run/masks.zarr {}"),
    "import a table": (older, "import older.pkl --out {}.csv"),
    "import Parquet": (older, "import older.pkl --out {}.parquet"),
    "import a store": (older, "import older.pkl --out {} --threshold 0.1 --top-k 3"),
}
CASES = [
    *(
        Case(f"{name}: {what}", change(first), argv.format(place), (says,))
        for name, (first, argv) in WRITERS.items()
        for what, place, change, says in (
            ("a file in the path", "file/deep/x", lambda first: in_the_way("file", first), "Not a directory"),
            ("a long name", LONG, lambda first: first, "File name too long"),
        )
    ),
    *(
        Case(f"{name}: there is something", in_the_way("x", first), argv.format("x"), ("x exists",))
        for name, (first, argv) in WRITERS.items()
        if "import" not in name
    ),
    Case("import: there is something", in_the_way("x.csv", older), "import older.pkl --out x.csv", ("x.csv exists",)),
    Case("export: a link to nothing", lambda: Path("x").symlink_to("gone"), "export run --out x", ("x exists",)),
    Case("import: unknown kind", older, "import older.pkl --out x.txt", (".parquet or .csv, or a new directory's",)),
    Case("demo: a file", in_the_way("x"), "demo --out x", ("x exists and is not an earlier demo",)),
    Case("demo: another directory", lambda: None, "demo --out model", ("model exists and is not an earlier demo",)),
    Case("demo: a file in the path", in_the_way("x"), "demo --out x/demo", ("cannot write x/demo: Not a directory",)),
    Case(
        "evaluate: a directory in the way",
        lambda: (Path("run/evaluation.json").unlink(missing_ok=True), Path("run/evaluation.json").mkdir()),
        "evaluate run",
        ("cannot write run/evaluation.json: Is a directory",),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_outputs(copy, capsys, case):
    check(case, capsys)


@pytest.mark.parametrize("name", [*WRITERS, "evaluate"])
def test_a_full_disk(copy, capsys, name):
    """A limit on the size of files makes a write fail as a full disk does."""
    first, argv = WRITERS.get(name, (nothing, "evaluate run"))
    first()
    before = contents(Path())
    capsys.readouterr()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        status = main(shlex.split(argv.format("new/x")))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dist-moe: ")]
    assert status == 2, errors
    (line,) = errors
    assert "cannot write" in line
    assert "File too large" in line
    assert contents(Path()) == before
