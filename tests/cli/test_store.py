"""`dist-moe store ...` as a person types it: what is printed, what is written, and the status."""

import pytest

from dist_moe.cli.main import main
from dist_moe.store import Counts, MaskStore, StoreWriter
from tests.unit.store.example import example_contents, write_contents, write_example
from tests.unit.store.killed_writers import visible


@pytest.fixture
def run(capsys):
    def run(*arguments):
        status = main(["store", *map(str, arguments)])
        said = capsys.readouterr()
        assert said.err.count("\n") == (status == 2)
        return status, said.out + said.err

    return run


@pytest.fixture
def store(tmp_path):
    return write_example(tmp_path / "masks.zarr")


def hurt(path):
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")


def test_check(store, run, tmp_path):
    digest = MaskStore.open(store).digest
    assert run("check", store) == (0, f"{store} is whole: 3 batches, digest {digest}\n")
    hurt(store / "masks" / "c" / "0" / "0" / "0")
    other = write_example(tmp_path / "other.zarr")
    status, text = run("check", store, other)
    assert status == 1
    assert f"{store}: array masks: c/0/0/0 has changed since it was written" in text
    assert f"{store} is damaged: 1 files; restore it from a copy, or remove it and run the analysis again" in text
    assert f"{other} is whole" in text


def test_check_of_what_is_not_finished(run, tmp_path):
    StoreWriter(tmp_path / "begun.zarr", example_contents().plan)
    status, text = run("check", tmp_path / "begun.zarr")
    assert status == 1
    assert "is incomplete, because writing it was interrupted: run the analysis again" in text


def test_check_of_nothing(run, tmp_path):
    status, text = run("check", tmp_path / "nothing.zarr")
    assert status == 2
    assert text.startswith(f"dist-moe: error: no mask store at {tmp_path}/nothing.zarr")


def test_diff(store, run, tmp_path):
    assert run("diff", store, store)[0] == 0
    write_contents(tmp_path / "other.zarr", example_contents(top_k=1))
    status, text = run("diff", store, tmp_path / "other.zarr")
    assert status == 1
    assert "selection_rule.top_k" in text
    assert "L01_E03" in text
    status, text = run("diff", store, tmp_path / "nothing.zarr", "--json")
    assert status == 2


def test_copy(store, run, tmp_path):
    digest = MaskStore.open(store).digest
    place = f"file://{tmp_path}/other/masks.zarr"
    assert run("copy", store, place) == (0, f"{place}: 3 batches of {store}, digest {digest}\n")
    assert run("copy", place, tmp_path / "back.zarr")[0] == 0
    assert visible(tmp_path / "back.zarr") == visible(store)
    assert run("copy", store, place) == (2, f"dist-moe: error: {place} exists: choose another place or remove it\n")
    hurt(store / "masks" / "c" / "0" / "0" / "0")
    status, text = run("copy", store, tmp_path / "damaged.zarr")
    assert (status, "array masks has changed since it was written" in text) == (2, True)
    assert not (tmp_path / "damaged.zarr").exists()


def test_counts_are_checked_and_copied_likewise(store, run, tmp_path):
    counts = tmp_path / "counts.zarr"
    digest = Counts.open(counts).digest
    assert run("check", counts) == (0, f"{counts} is whole: 3 batches, digest {digest}\n")
    place = tmp_path / "copy" / "counts.zarr"
    assert run("copy", counts, place) == (0, f"{place}: 3 batches of {counts}, digest {digest}\n")
    assert visible(place) == visible(counts)
    hurt(counts / "prompt_tokens" / "c" / "0" / "0")
    status, text = run("check", counts)
    assert (status, "array prompt_tokens: c/0/0 has changed since it was written" in text) == (1, True)
