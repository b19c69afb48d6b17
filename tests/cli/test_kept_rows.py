"""Commands of one run make their rows once, and a run whose rows were kept has the same bits."""

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file

from dist_moe.cli.main import main
from dist_moe.workflows import inputs
from tests.cli.conftest import Run, new_run

FAST = ["--analysis.statistics.permutations", "0"]
TIMES = ("seconds", "tokens_per_second")


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = new_run(tmp_path_factory.mktemp("kept"))
    assert main(["analyze", "--config", str(run.config), *FAST]) == 0
    assert (run.run_dir / "rows.safetensors").is_file()
    return run


def trained(run: Run, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, bytes], list[str]]:
    """The weights after training, and what is said of the rows."""
    capsys.readouterr()
    assert main(["train", "--config", str(run.config), "--overwrite"]) == 0
    experts = load_file(run.run_dir / "experts" / "experts-00000.safetensors")
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith(("Batches", "rows ", "safe rows", "  ", "One row"))]
    return {name: weight.numpy().tobytes() for name, weight in experts.items()}, told


def test_training_from_kept_rows_has_the_same_bits_and_says_the_same(
    counted: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (counted.run_dir / "rows.safetensors").unlink()
    made = trained(counted, capsys)
    assert (counted.run_dir / "rows.safetensors").is_file()
    assert any("One row" in line for line in made[1])
    monkeypatch.delattr(inputs, "made_rows")
    assert trained(counted, capsys) == made


def test_a_run_with_masks_of_another_has_its_rows(
    counted: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is in a comparison, whose variants are trained with masks of one count."""
    here = trained(counted, capsys)
    monkeypatch.delattr(inputs, "made_rows")
    there = counted.run_dir.parent / "variant"
    words = ["--run-dir", str(there), "--train.masks", str(counted.run_dir / "masks.zarr")]
    assert main(["train", "--config", str(counted.config), *words]) == 0
    experts = load_file(there / "experts" / "experts-00000.safetensors")
    assert {name: weight.numpy().tobytes() for name, weight in experts.items()} == here[0]
    assert not (there / "rows.safetensors").exists()
    shutil.rmtree(there)


def test_a_row_that_is_refused_later_is_refused_although_rows_are_kept(
    counted: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = counted.data.read_text()
    counted.data.write_text(rows + '{"prompt": "w1"}\n')
    assert main(["train", "--config", str(counted.config), "--overwrite"]) == 2
    counted.data.write_text(rows)
    assert f"{counted.data}:{len(rows.splitlines()) + 1}: `label` must be safe or unsafe" in capsys.readouterr().err


def test_what_is_published_has_no_kept_rows(counted: Run) -> None:
    place = counted.run_dir.parent / "published"
    assert main(["publish", str(counted.run_dir), f"file://{place}"]) == 0
    assert (place / "masks.zarr" / "zarr.json").is_file()
    assert not (place / "rows.safetensors").exists()
    shutil.rmtree(place)
