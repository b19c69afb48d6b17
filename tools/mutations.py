#!/usr/bin/env python
"""Break the code in one place, and see that the test which guards the place goes red.

    python tools/mutations.py                    all mutations, minutes
    python tools/mutations.py wiring monitor     those of tests/mutations/wiring.toml and monitor.toml
    python tools/mutations.py wiring:scope       those of wiring.toml with "scope" in what they break
    python tools/mutations.py --table            rewrite the table in docs/testing.md

A mutation is an entry of a file in tests/mutations:

    [[mutation]]
    what = "max_norm is not passed to the optimizer"
    file = "dist_moe/workflows/train.py"
    old = "        max_norm=train.max_norm,\n"
    new = ""
    test = "tests/cli/test_wiring.py::test_name"

`old` stands in the file exactly once. `test` is what pytest takes: a file, a test, or one of its cases. All happens in
a copy of the tree, where the tests must first be green without a mutation. The status is 1 if one survives.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = Path("tests/mutations")
PAGE = Path("docs/testing.md")
TABLE = re.compile(r"^\| edit \|.*\n(?:\|.*\n)*", re.MULTILINE)
LIMIT_SECONDS = 600  # for each test
LOG, TEMPORARY = "pytest.log", "pytest.tmp"
LIBRARIES = ("pandas", "pytest", "torch", "zarr", "transformers.models.qwen3_moe.modeling_qwen3_moe")
RED = 1
"""pytest's status if a test failed; others mean that none ran."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """One wrong edit and the test that must see it."""

    part: str
    """Name of the file of entries."""
    what: str
    file: str
    old: str
    new: str
    test: str


def read_mutations(root: Path) -> list[Mutation]:
    """All entries under `root`, sorted by part, in the order of their files."""
    return [
        Mutation(path.stem, **entry)
        for path in sorted((root / ENTRIES).glob("*.toml"))
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mutation"]
    ]


def chosen(mutations: list[Mutation], words: list[str]) -> list[Mutation]:
    """Those that one of the words, `part` or `part:text`, names; without words all."""

    def is_named(mutation: Mutation, word: str) -> bool:
        part, _, text = word.partition(":")
        return part == mutation.part and text in mutation.what

    return [m for m in mutations if not words or any(is_named(m, word) for word in words)]


def problems(root: Path, mutation: Mutation) -> list[str]:
    """Why the entry cannot be tried: its text is not there once, or its test is not there."""
    text = (root / mutation.file).read_text(encoding="utf-8")
    found = []
    if text.count(mutation.old) != 1:
        found.append(f"its old text stands in {mutation.file} {text.count(mutation.old)} times, expected once")
    path, *names = mutation.test.split("::")
    function = names[-1].partition("[")[0] if names else ""
    if not (root / path).is_file() or f"def {function}" not in (root / path).read_text(encoding="utf-8"):
        found.append(f"there is no test {mutation.test}")
    return [f"{mutation.part}: {mutation.what}: {problem}" for problem in found]


def table(mutations: list[Mutation]) -> str:
    """The mutations as Markdown."""
    rows = [f"| {m.what} | `{m.file}` | `{m.test.removeprefix('tests/')}` |" for m in mutations]
    return "\n".join(["| edit | file | test that fails |", "|---|---|---|", *rows, ""])


def write_table(root: Path) -> None:
    """Put the table of all entries in the place of the one that the page has."""
    page = root / PAGE
    text, number = TABLE.subn(lambda _: table(read_mutations(root)), page.read_text(encoding="utf-8"))
    assert number == 1, f"{PAGE}: {number} tables of mutations, expected one"
    page.write_text(text, encoding="utf-8")


def copy_tree(target: Path) -> None:
    """The files that git knows, and new ones that it does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def run_tests(tree: Path, tests: list[str]) -> int:
    """pytest's status on a copy of the tree; a hang counts as a failure."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LIBRARIES))  # imported once, for all mutations
    process = context.Process(target=_pytest, args=(tree, tests))
    process.start()
    process.join(LIMIT_SECONDS * len(tests))
    if process.exitcode is None:
        process.kill()
        process.join()
        return RED
    return process.exitcode


def _pytest(tree: Path, tests: list[str]) -> None:
    os.chdir(tree)
    os.environ.update(PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1")
    sys.path.insert(0, str(tree))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("dist_moe", "tests", "tools")]:
        del sys.modules[name]  # those of the tree that is not mutated
    with (tree / LOG).open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    import pytest

    # in a directory of its own: pytest's usual one is shared with other runs, whose remains it removes at the end
    sys.exit(
        pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", f"--basetemp={tree / TEMPORARY}", *tests])
    )


def is_killed(tree: Path, mutation: Mutation) -> bool:
    """Whether the mutation's test goes red under it; the file is as before afterwards."""
    path = tree / mutation.file
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        return run_tests(tree, [mutation.test]) == RED
    finally:
        path.write_text(before, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="PART[:TEXT]", help="which; default: all")
    parser.add_argument("--table", action="store_true", help=f"rewrite the table in {PAGE}, run nothing")
    args = parser.parse_args()
    if args.table:
        write_table(ROOT)
        return 0
    mutations = chosen(read_mutations(ROOT), args.words)
    wrong = [line for mutation in mutations for line in problems(ROOT, mutation)]
    if wrong or not mutations:
        sys.exit("\n".join(wrong) or "no such mutation")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_tree(tree)
        if run_tests(tree, sorted({mutation.test for mutation in mutations})) != 0:
            print((tree / LOG).read_text(encoding="utf-8"))
            sys.exit("the tests are not green without a mutation")
        survived = 0
        for mutation in mutations:
            killed = is_killed(tree, mutation)
            survived += not killed
            print(f"{'killed  ' if killed else 'SURVIVED'}  {mutation.part}: {mutation.what}", flush=True)
            if not killed:
                print((tree / LOG).read_text(encoding="utf-8")[-2000:])
    print(f"{len(mutations)} mutations, {survived} survived")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
