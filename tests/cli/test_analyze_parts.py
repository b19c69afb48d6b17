"""An analysis that was killed, or shared out over jobs, gives the store of one that was not."""

import pytest

from dist_moe.cli.main import main
from dist_moe.store.read import MaskStore
from dist_moe.workflows import analyze


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(analyze, "ROWS_AT_ONCE", 12)


@pytest.fixture
def counted(monkeypatch):
    """How many rows were counted, call by call."""
    numbers, original = [], analyze.count_rows

    def count_rows(model, rows, **settings):
        numbers.append(len(rows))
        return original(model, rows, **settings)

    monkeypatch.setattr(analyze, "count_rows", count_rows)
    return numbers


@pytest.mark.usefixtures("small_parts")
def test_jobs_that_share_an_analysis_give_the_store_of_one(fresh, counted, tmp_path):
    whole = ["analyze", "--config", str(fresh.config), "--run-dir", str(tmp_path / "whole")]
    assert main(whole) == 0
    rows = sum(counted)
    shared = ["analyze", "--config", str(fresh.config), "--run-dir", str(tmp_path / "shared")]
    for part in ("2/2", "1/2"):
        counted.clear()
        assert main([*shared, "--analysis.part", part]) == 0
        assert 0 < sum(counted) < rows
    assert not (tmp_path / "shared" / "masks.zarr").exists()
    counted.clear()
    assert main(shared) == 0
    assert counted == []
    assert not (tmp_path / "shared" / "counts").exists()
    one, two = (MaskStore.open(tmp_path / name / "masks.zarr") for name in ("whole", "shared"))
    assert one.digest == two.digest


@pytest.mark.usefixtures("small_parts")
def test_an_analysis_that_broke_off_counts_the_rest_only(fresh, counted, monkeypatch):
    original = analyze.count_rows

    def broken(*arguments, **settings):
        if counted:
            raise KeyboardInterrupt
        return original(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(analyze, "count_rows", broken)
        with pytest.raises(KeyboardInterrupt):
            main(["analyze", "--config", str(fresh.config)])
    first = sum(counted)
    counted.clear()
    assert main(["analyze", "--config", str(fresh.config)]) == 0
    num_rows = len(MaskStore.open(fresh.masks).prompts)
    assert first == 12
    assert sum(counted) == num_rows - first


def test_a_wrong_part_is_one_line(fresh, capsys):
    assert main(["analyze", "--config", str(fresh.config), "--analysis.part", "3/2"]) == 2
    assert "analysis.part is '3/2': expected I/N" in capsys.readouterr().err
