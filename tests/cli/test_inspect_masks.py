"""tools/inspect_masks.py as a person types it; in a process where torch cannot be imported.

Imports take seconds, so one process does them for all commands: each is a fork of it, with streams of its own.
"""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.store.example import example_contents, write_contents, write_example
from tools.soak.__main__ import SINGLE_THREADED

TOOL = Path(__file__).parents[2] / "tools" / "inspect_masks.py"
WITHOUT_TORCH = """
import runpy, sys
for name in ("torch", "transformers", "deepspeed"):
    sys.modules[name] = None
"""
ONE = f"{WITHOUT_TORCH}sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
MANY = f"""{WITHOUT_TORCH}
import json, os
import dist_moe.cli.main, dist_moe.report.views, dist_moe.store
for line in sys.stdin:
    words, *streams = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, place in enumerate(streams, 1):
            os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = words
        runpy.run_path(sys.argv[0], run_name="__main__")
        raise AssertionError("the tool has not ended the process")
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Inspector:
    """What starts the tool: a process with what it imports, of which each start is a fork."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-W", "error", "-c", MANY]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | SINGLE_THREADED
        )
        self.streams = folder / "stdout", folder / "stderr"

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Status, stdout and stderr."""
        words = [str(TOOL), *map(str, arguments)]
        self.process.stdin.write(json.dumps([words, *map(str, self.streams)]) + "\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        return status, *(stream.read_text() for stream in self.streams)


@pytest.fixture(scope="module", autouse=True)
def _started(tmp_path_factory):
    global inspect
    inspect = Inspector(tmp_path_factory.mktemp("streams"))
    yield
    inspect.process.stdin.close()
    assert inspect.process.wait(timeout=60) == 0


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_example(tmp_path_factory.mktemp("run") / "masks.zarr")


def answer(*arguments):
    status, out, err = inspect(*arguments)
    assert (status, err) == (0, "")
    return out


def refusal(*arguments):
    status, out, err = inspect(*arguments)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    return line


def test_a_process_of_its_own_says_the_same(store):
    command = [sys.executable, "-W", "error", "-c", ONE, str(TOOL), str(store), "batch", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == inspect(store, "batch", 1)


def test_summary_is_the_default(store):
    lines = [line.split() for line in answer(store).splitlines()]
    assert ["mean_experts_per_batch", "1.3333"] in lines
    assert ["provenance.model_hash", "a1" * 32] in lines
    assert ["provenance.batches.batch_size", "2"] in lines
    assert ["1", "11bb22cc33dd44ee", "hexes", "2", "0", "2"] in lines
    assert ["1", "model.layers.2.mlp", "1", "0.6667", "1", "2"] in lines


def test_batch_as_text(store):
    assert answer(store, "batch", 1).endswith(
        "unsafe experts\n"
        " layer  expert Layer_Expert  a_safe_n  a_unsafe_n  risk_diff\n"
        "     0       2      L00_E02    0.0000      0.6000     0.6000\n"
        "     1       3      L01_E03    0.5000      0.9000     0.4000\n"
    )


VIEWS = {
    "summary": ["batches", "layers"],
    "batch 1": ["unsafe experts"],
    "expert 1 3": ["history"],
    "expert L01_E03": ["history"],
    "layers": ["layers", "experts of a layer in a batch"],
    "categories": ["categories", "experts in several categories"],
    "growth": ["union growth"],
    "diff threshold=0.35 top_k=1": ["batches", "experts that differ"],
    "overlap": ["Jaccard, batches", "Jaccard, categories", "experts in several categories"],
    "overlap 0 11bb22cc33dd44ee": ["experts"],
    "category heists": ["experts"],
    "aggregated": ["unsafe experts, prompts pooled", "unsafe experts, mean of batches"],
    "check": ["arrays"],
}


@pytest.mark.parametrize("view", VIEWS)
def test_each_view_in_each_form_and_nothing_is_written(store, view):
    before = {path: path.stat().st_mtime_ns for path in store.parent.rglob("*")}
    as_json = json.loads(answer(store, *view.split(), "--json"))
    assert list(as_json["tables"]) == VIEWS[view]
    main = as_json["tables"][VIEWS[view][0]]

    as_csv = list(csv.DictReader(io.StringIO(answer("--csv", store, *view.split()))))
    texts = [{name: "" if value is None else str(value) for name, value in row.items()} for row in main]
    assert as_csv == texts

    text = answer(store, *view.split())
    for title in VIEWS[view]:
        assert f"\n\n{title}\n" in text
    assert all(name in text for name in (main[0] if main else ()))
    assert {path: path.stat().st_mtime_ns for path in store.parent.rglob("*")} == before


def test_json_has_full_precision(store):
    rows = json.loads(answer(store, "--json", "expert", "1", "3"))["tables"]["history"]
    assert [row["risk_diff"] for row in rows] == [0.0, 0.9 - 0.5, 0.8 - 0.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("batch 3", "no batch '3' in {store}: expected an index from 0 to 2, or a batch's id"),
        ("category hexs", "no category 'hexs' in {store}: did you mean 'hexes'?"),
        ("expert 2 0", "no expert L02_E00 in {store}: expected a layer from 0 to 1 and an expert from 0 to 3"),
        ("expert 2", "'2' is not the name of an expert: expected the form L08_E42 (MoE layer 8, expert 42)"),
        (
            "batch",
            "no view 'batch': expected summary, batch N, expert L E, layers, overlap [A B], categories, category NAME, "
            "growth, aggregated, diff STORE, diff PARAMETER=VALUE, prefill, check or plots --out DIR",
        ),
        ("diff thresh=1", "the rule threshold_top_k has no parameter 'thresh': expected threshold, top_k"),
        ("diff name=esft", "no rule 'esft': expected one of "),
        ("diff top_k=1.5", "top_k=1.5: expected a whole number, got 1.5"),
        ("plots", "plots need both the view plots and --out DIR"),
        ("summary --out x", "plots need both the view plots and --out DIR"),
        ("--jsn", "unrecognized arguments: --jsn; did you mean --json? see dist-moe inspect --help"),
        ("--json --csv", "argument --csv: not allowed with argument --json; see dist-moe inspect --help"),
    ],
)
def test_a_wrong_question_is_one_line_and_status_2(store, arguments, message):
    found = refusal(store, *arguments.split())
    assert found.startswith(f"dist-moe: error: {message.format(store=store)}")


def test_a_wrong_store_is_one_line_and_status_2(tmp_path):
    assert "no mask store at" in refusal(tmp_path / "nothing.zarr")
    assert "is not a mask store" in refusal(tmp_path)
    path = write_example(tmp_path / "masks.zarr")
    (path / "masks" / "zarr.json").unlink()
    assert "is damaged: array masks has changed since it was written" in refusal(path, "batch", 0)


def test_counts_may_be_elsewhere(tmp_path):
    store = write_example(tmp_path / "masks.zarr")
    (tmp_path / "counts.zarr").rename(tmp_path / "moved.zarr")
    assert refusal(store, "batch", 1) == (
        f"dist-moe: error: {store} holds masks only, and what they were selected from is not at "
        f"{tmp_path}/counts.zarr: put it there, or say where it is with --counts"
    )
    assert "L01_E03" in answer(store, "batch", 1, "--counts", tmp_path / "moved.zarr")
    assert "counts" in answer(store)


def test_diff_of_two_stores(store, tmp_path):
    write_contents(tmp_path / "other.zarr", example_contents(top_k=1))
    found = json.loads(answer(store, "diff", tmp_path / "other.zarr", "--json"))
    assert found["tables"]["facts that differ"] == [{"fact": "selection_rule.top_k", "first": 50, "second": 1}]
    assert [row["Layer_Expert"] for row in found["tables"]["experts that differ"]] == ["L01_E03"]


def test_pictures(store, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in store.parent.rglob("*")}
    names = [Path(line).name for line in answer(store, "plots", "--out", tmp_path / "one" / "plots").splitlines()]
    stems = ("risk_diff", "selected", "overlap", "union_growth")
    assert names == [f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")]
    for name in names:
        data = (tmp_path / "one" / "plots" / name).read_bytes()
        assert data.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    answer(store, "plots", "--out", tmp_path / "other")
    for name in names[1::2]:
        assert (tmp_path / "other" / name).read_bytes() == (tmp_path / "one" / "plots" / name).read_bytes()
    assert {path: path.stat().st_mtime_ns for path in store.parent.rglob("*")} == before


def test_pictures_without_matplotlib(store, tmp_path):
    without = ONE.replace('"torch"', '"torch", "matplotlib"')
    command = [sys.executable, "-c", without, str(TOOL), str(store), "plots", "--out", str(tmp_path / "plots")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 2
    assert result.stderr == "dist-moe: error: plots need matplotlib: pip install matplotlib\n"
    assert not (tmp_path / "plots").exists()


def test_no_store_at_all():
    assert "the following arguments are required: store" in refusal()


def test_a_reader_that_stops_early_is_no_error(store):
    # `true` is gone long before the first line comes.
    command = ["bash", "-c", f"{sys.executable} {TOOL} {store} --json | true"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")


def test_help_shows_every_view():
    text = answer("--help")
    for view in VIEWS:
        assert f"masks.zarr {view.split()[0]}" in text or view == "summary"
