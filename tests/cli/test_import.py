"""`dist-moe import` as a person types it."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from dist_moe.cli.main import main
from dist_moe.store import MaskStore
from tests.unit.store.pickles.examples import activations, analysis, write_pickle
from tests.unit.store.pickles.test_hostile import Reduced


@pytest.fixture
def run(capsys):
    def run(*arguments):
        status = main(["import", *map(str, arguments)])
        said = capsys.readouterr()
        assert said.err.count("\n") == (status == 2)
        return status, said.out + said.err

    return run


@pytest.fixture
def older(tmp_path):
    return write_pickle(tmp_path / "sft_dataset_x.pkl", analysis())


def test_what_it_is(run, older):
    status, text = run(older)
    assert status == 0
    assert "sft_dataset_x.pkl: 3 batches with " in text
    assert "risk_diff = a_unsafe_n - a_safe_n" in text


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables(run, older, tmp_path, kind):
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet}[kind]
    value = analysis()
    assert run(older, "--out", tmp_path / f"experts.{kind}")[0] == 0
    experts = read(tmp_path / f"experts.{kind}")
    lists = experts.groupby("batch")[["layer", "expert"]].apply(
        lambda part: list(part.itertuples(index=False, name=None))
    )
    assert lists.tolist() == value["batch_unsafe_experts"]
    assert run(older, "--out", tmp_path / f"risk.{kind}", "--table", "risk")[0] == 0
    pd.testing.assert_frame_equal(
        read(tmp_path / f"risk.{kind}"), value["aggregated_risk_diff"], check_dtype=False, rtol=1e-12
    )
    table = write_pickle(tmp_path / "activations.pkl", activations())
    assert run(table, "--out", tmp_path / f"activations.{kind}")[0] == 0
    pd.testing.assert_frame_equal(read(tmp_path / f"activations.{kind}"), activations(), rtol=1e-12)


def test_routing_alone(run, tmp_path):
    value = {name: analysis()[name] for name in ("batch_data_list", "num_experts_per_tok")}
    path = write_pickle(tmp_path / "batch_data_x.pkl", value)
    assert run(path) == (0, "batch_data_x.pkl: routing of 3 batches, no lists of unsafe experts\n")
    assert run(path, "--out", tmp_path / "run", "--threshold", 0.15, "--top-k", 3)[0] == 0
    assert len(MaskStore.open(tmp_path / "run" / "masks.zarr").masks) == 3
    status, text = run(path, "--out", tmp_path / "x.csv")
    assert status == 2
    assert "has no table: write counts and masks (--out NAME)" in text


def test_counts_and_masks(run, older, tmp_path):
    status, text = run(older, "--out", tmp_path / "run", "--threshold", 0.15, "--top-k", 3)
    assert status == 0
    assert "3 batches, masks selected anew from the counts; " in text
    store = MaskStore.open_whole(tmp_path / "run" / "masks.zarr")
    value = analysis()
    for batch, table in enumerate(value["batch_risk_diffs"]):
        np.testing.assert_allclose(store.counts.risk_diff[batch].ravel(), table["risk_diff"], atol=1e-12)
        above = table[table["risk_diff"] > 0.15].sort_values("risk_diff", ascending=False, kind="stable").head(3)
        assert store.unsafe_experts(batch) == list(zip(above["layer"], above["expert"], strict=True))
    assert store.provenance["model_hash"] == "unknown: imported"
    assert main(["select", str(tmp_path / "run"), "threshold=0.15", "top_k=3", "--out", "again"]) == 0
    again = MaskStore.open(tmp_path / "run" / "again.zarr")
    assert (again.masks[:] == store.masks[:]).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            "{older} --out {tmp}/x",
            "masks need the rule that selects them: give --threshold and --top",
        ),
        ("{older} --out {tmp}/x.txt", "expected a name that ends in .parquet or .csv, or a new directory's"),
        ("{older} --out {older}", "exists: choose another path or remove it"),
        ("{table} --out {tmp}/x --threshold 0.1 --top-k 5", "has no batch_data_list with its prompts' routing"),
        ("{table} --out {tmp}/x.csv --table experts", "has no table experts: expected --table risk"),
        ("{tmp}/nothing.pkl", "cannot read {tmp}/nothing.pkl: No such file or directory"),
    ],
)
def test_bad_input(run, older, tmp_path, arguments, words):
    table = write_pickle(tmp_path / "table.pkl", activations())
    places = {"older": older, "table": table, "tmp": tmp_path}
    status, text = run(*arguments.format(**places).split())
    assert status == 2
    assert words.format(**places) in text
    assert not list(tmp_path.glob("x*"))


def test_a_hostile_file_is_one_line_and_runs_nothing(tmp_path):
    path = write_pickle(tmp_path / "x.pkl", {"batch_unsafe_experts": Reduced(os.system, f"touch {tmp_path}/ran")})
    command = [sys.executable, "-m", "dist_moe.cli.main", "import", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"dist-moe: error: {path} is refused: at byte ")
    assert "posix.system" in line
    assert not (tmp_path / "ran").exists()
