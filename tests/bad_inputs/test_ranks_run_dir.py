"""Run directories that cannot be written: found before anything is read or counted."""

from pathlib import Path

import pytest

from dist_moe.workflows import count, train_given
from tests.bad_inputs.harness import Case, check, ids


def file(path):
    """A file in the place of a directory."""

    def make():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("not a directory")

    return make


PLACES = {
    "run_dir below a file": (file("taken"), "--run-dir taken/run", "cannot write taken"),
    "run_dir is a file": (file("taken"), "--run-dir taken", "cannot write taken"),
    "run_dir has a name that is too long": (lambda: None, f"--run-dir {'x' * 300}", "File name too long"),
    "run_dir is a link to nowhere": (lambda: Path("link").symlink_to("nowhere"), "--run-dir link", "cannot write link"),
}
CASES = [
    *(
        Case(f"{command}: {name}", change, f"{command} --config run.yaml {words}", (says,))
        for name, (change, words, says) in PLACES.items()
        for command in ("analyze", "train")
    ),
    Case("analysis is a file", file("new/analysis"), "analyze --config run.yaml --run-dir new", ("new/analysis/",)),
    Case(
        "checkpoints is a file", file("new/checkpoints"), "train --config run.yaml --run-dir new", ("new/checkpoints/",)
    ),
    Case("training is a file", file("run/training"), "train --config run.yaml --overwrite", ("run/training/",)),
]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_a_run_directory_that_cannot_be_written(copy, capsys, monkeypatch, case):
    for workflow in (count, train_given):  # it is known before the model's files are
        monkeypatch.setattr(workflow, "read_inputs", lambda *_: pytest.fail("read first"))
    check(case, capsys)
