"""`dist-moe select` as a person types it: several mask sets of one run's counts, without torch."""

import json
import subprocess
import sys

import numpy as np
import pytest

from dist_moe.cli.main import main
from dist_moe.store import MaskStore

SETS = ("two.zarr", "masks.zarr")
WITHOUT_TORCH = """
import sys
from dist_moe.cli.main import main
status = main(sys.argv[1:])
print(sorted({"torch", "transformers", "deepspeed", "accelerate", "datasets"} & {m.split(".")[0] for m in sys.modules}))
sys.exit(status)
"""


def select(*arguments):
    command = [sys.executable, "-c", WITHOUT_TORCH, "select", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


@pytest.fixture(scope="module")
def run(tmp_path_factory, trained):
    """Counts and masks of a run, in a directory of its own."""
    copy = tmp_path_factory.mktemp("select") / "run"
    for name in ("counts.zarr", "masks.zarr"):
        assert main(["store", "copy", str(trained.run_dir / name), str(copy / name)]) == 0
    (copy / "analyze.yaml").write_bytes((trained.run_dir / "analyze.yaml").read_bytes())
    return copy


def test_another_rule_is_another_mask_set_and_loads_no_torch(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = select(run, "--rule", "lowest", "--out", "lowest")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-2:] == [f"Masks: {run / 'lowest.zarr'}", "[]"]
    masks, lowest = MaskStore.open_whole(run / "masks.zarr"), MaskStore.open_whole(run / "lowest.zarr")
    assert lowest.selection_rule == {**masks.selection_rule, "name": "lowest"}
    assert lowest.counts_digest == masks.counts_digest == masks.counts.digest
    # by hand: as many experts as the reference, from the other end
    for batch, diff_LE in enumerate(masks.counts.risk_diff[:]):
        number = int(masks.masks[batch].sum())
        order = np.argsort(diff_LE.ravel(), kind="stable")[:number]
        assert set(np.flatnonzero(lowest.masks[batch].ravel())) == set(order.tolist())
    assert {path: path.read_bytes() for path in before} == before


def test_the_function_loads_no_torch_either(run):
    """Nor does naming what else the package offers, as a notebook's completion does."""
    code = (
        f"import sys, dist_moe\nmasks = dist_moe.select({str(run)!r}, 'lowest', out='by-function')\n"
        "offered = [getattr(dist_moe, name) for name in dist_moe.__all__]\n"
        "print(masks.digest, sorted({'torch', 'transformers', 'deepspeed', 'datasets'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{MaskStore.open(run / 'by-function.zarr').digest} []\n"


def test_the_same_rule_gives_the_same_bytes_as_the_analysis(run):
    assert main(["select", str(run), "--out", "again"]) == 0
    assert MaskStore.open(run / "again.zarr").digest == MaskStore.open(run / "masks.zarr").digest


def test_parameters_are_those_of_the_run_but_for_what_is_said(run):
    assert main(["select", str(run), "top_k=1", "--out", "one"]) == 0
    one = MaskStore.open(run / "one.zarr")
    assert one.selection_rule["top_k"] == 1
    assert one.selection_rule["threshold"] == MaskStore.open(run / "masks.zarr").selection_rule["threshold"]
    assert one.masks[:].sum(axis=(1, 2)).tolist() == [1, 1]


def test_a_run_trains_by_any_of_its_mask_sets(run, trained, tmp_path):
    assert main(["select", str(run), "top_k=2", "--out", "two"]) == 0
    (run / "counts.zarr").rename(run / "gone.zarr")  # training needs no counts
    settings = ["--run-dir", str(tmp_path / "run"), "--train.masks", str(run / "two.zarr")]
    try:
        assert main(["train", "--config", str(trained.config), *settings]) == 0
    finally:
        (run / "gone.zarr").rename(run / "counts.zarr")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    two, first = ({each.id: each.mask_hash for each in MaskStore.open(run / name).batches} for name in SETS)
    assert {line["batch_id"]: line["mask_hash"] for line in lines} == two != first
    assert max(line["num_active"] for line in lines) <= 2


def test_batches_without_an_expert_are_told_with_the_cause_and_their_steps_say_so(run, trained, tmp_path, capsys):
    counts = MaskStore.open(run / "masks.zarr").counts
    low, high = sorted(float(diff_LE.max()) for diff_LE in counts.risk_diff[:])
    between = (low + high) / 2
    capsys.readouterr()
    assert main(["select", str(run), f"threshold={between}", "--out", "half"]) == 0
    assert (
        "WARNING: 1 of 2 batches have no expert, so their steps train none: no expert in any of these "
        f"batches has a risk_diff above analysis.threshold = {between}: the largest is {low:.6g}; set "
        "analysis.threshold below that" in capsys.readouterr().out
    )
    settings = ["--run-dir", str(tmp_path / "run"), "--train.masks", str(run / "half.zarr")]
    assert main(["train", "--config", str(trained.config), *settings]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["is_empty"] for line in lines} == {True, False}
    assert all(line["is_empty"] == (line["num_active"] == 0) for line in lines)
    num_empty = sum(line["is_empty"] for line in lines)
    assert capsys.readouterr().out.count("experts 0 (EMPTY MASK)") == num_empty


def test_masks_with_an_expert_for_every_batch_give_no_such_warning(run, capsys):
    assert main(["select", str(run), "top_k=3", "--out", "three"]) == 0
    assert "have no expert" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("control", "words", "warns"),
    [("lowest", [], False), ("random_matched", [], None), ("load", ["threshold=-1"], True)],
)
def test_a_control_says_how_far_it_is_what_it_is_compared_with(run, capsys, control, words, warns):
    assert main(["select", str(run), *words, "--out", f"rule-{control}"]) == 0
    assert "of this control" not in capsys.readouterr().out
    assert main(["select", str(run), "--rule", control, *words, "--out", f"control-{control}"]) == 0
    rule, found = (MaskStore.open(run / f"{kind}-{control}.zarr").masks[:] for kind in ("rule", "control"))
    share = (rule & found).sum() / found.sum()
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "of this control" in line)
    assert f"{share:.0%} of the experts in the masks of this control are also in those of threshold_top_k" in line
    assert line.startswith("WARNING: ") == (share > 0.5)
    assert warns in (None, share > 0.5)


def test_a_baseline_is_not_meant_to_select_other_experts(run, capsys):
    assert main(["select", str(run), "--rule", "pooled", "--out", "one-for-all"]) == 0
    assert "of this control" not in capsys.readouterr().out
