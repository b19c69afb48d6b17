"""`train.revisions`: other masks in the middle of a run, through the commands."""

import json
import threading
from types import SimpleNamespace

import pytest
import torch

from dist_moe.cli.main import main
from dist_moe.training.feed import BatchFeed
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.step import MaskedStep
from dist_moe.workflows import train as workflow
from tests.cli.test_resume import result
from tests.wiring import Store

CHANGE, STEPS = 3, 8


@pytest.fixture(scope="module")
def masks(trained, tmp_path_factory):
    """Two mask stores of the same batches, whose unions are not the same."""
    other = tmp_path_factory.mktemp("other") / "run"
    settings = ("--run-dir", str(other), "--analysis.rule", "lowest", "--analysis.top-k", "9")
    assert main(["analyze", "--config", str(trained.config), *settings]) == 0
    paths = trained.masks, other / "masks.zarr"
    first, second = (Store(path).masks.any(0) for path in paths)
    assert (first & second).any()
    assert (first & ~second).any()
    assert (second & ~first).any()
    return paths


def arguments(trained, masks, run_dir, *more):
    revision = f"{CHANGE}:{masks[1]}"
    settings = ("--train.masks", str(masks[0]), "--train.revisions", revision, "--train.epochs", "4")
    return ["train", "--config", str(trained.config), "--run-dir", str(run_dir), *settings, *more]


@pytest.fixture(scope="module")
def undisturbed(trained, masks, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main(arguments(trained, masks, run_dir, "--train.audit", "1")) == 0
    experts, metrics = result(run_dir)
    return SimpleNamespace(run_dir=run_dir, experts=experts, metrics=metrics)


def test_each_step_is_under_the_masks_in_force(undisturbed, masks):
    stores = [Store(path) for path in masks]
    assert [line["mask_revision"] for line in undisturbed.metrics] == [0] * CHANGE + [1] * (STEPS - CHANGE)
    for line in undisturbed.metrics:
        store = stores[line["mask_revision"]]
        assert line["mask_hash"] == store.mask_hash(line["batch"])
        assert line["num_active"] == store.masks[line["batch"]].sum()


def test_all_unions_experts_are_saved_exported_and_verified(trained, undisturbed, masks, tmp_path, capsys):
    stores, out = [Store(path) for path in masks], tmp_path / "out"
    saved = {tuple(map(int, key.split(".")[:2])) for key in undisturbed.experts}
    left = stores[0].masks.any(0) & ~stores[1].masks.any(0)
    assert any(left[key] for key in saved)
    assert main(["export", str(undisturbed.run_dir), "--out", str(out)]) == 0
    digest = json.loads((undisturbed.run_dir / "experts" / "index.json").read_text())["facts"]["mask_revisions"]
    assert digest[0]["after_step"] == CHANGE
    assert f"| Masks after step {CHANGE} | digest `{digest[0]['masks_digest']}` |" in (out / "README.md").read_text()
    both = [word for path in masks for word in ("--masks", str(path))]
    assert main(["verify", str(trained.model), str(out), *both]) == 0
    assert main(["verify", str(trained.model), str(out), *both[:2]]) == 1
    assert "VIOLATION" in capsys.readouterr().out


def test_stopped_after_each_step_and_gone_on_has_the_same_bits(trained, masks, undisturbed, tmp_path, capsys):
    run_dir = tmp_path / "run"
    for step in range(1, CHANGE + 2):
        run_dir.mkdir(exist_ok=True)
        (run_dir / "STOP").touch()
        assert main(arguments(trained, masks, run_dir, "--train.audit", "1")) == 0
        assert f"Stopped after step {step} of {STEPS}" in capsys.readouterr().out
    assert main(["checkpoint", "show", str(run_dir)]) == 0
    assert "masks r1" in capsys.readouterr().out
    without = arguments(trained, masks, run_dir)
    place = without.index("--train.revisions")
    assert main(without[:place] + without[place + 2 :]) == 2
    assert f"mask_revisions is [[{CHANGE}, " in capsys.readouterr().err
    assert main(arguments(trained, masks, run_dir, "--train.audit", "1")) == 0
    assert f"From step {CHANGE + 1} on masks of {masks[1]}: " in capsys.readouterr().out
    assert result(run_dir) == (undisturbed.experts, undisturbed.metrics)


def test_batches_that_are_made_ready_ahead_train_the_same_bits(trained, masks, undisturbed, tmp_path, monkeypatch):
    """As on a GPU, where another thread makes them; also the first batch after a revision, which has other masks."""
    made_by = []

    def pin(tensor):
        made_by.append(threading.current_thread().name)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(workflow, "BatchFeed", lambda rows, device: BatchFeed(rows, torch.device("meta")))
    run_dir = tmp_path / "run"
    assert main(arguments(trained, masks, run_dir, "--train.audit", "1")) == 0
    assert result(run_dir) == (undisturbed.experts, undisturbed.metrics)
    of_a_step = len(made_by) // STEPS
    assert [name.startswith("next batch") for name in made_by] == [False] * of_a_step + [True] * of_a_step * (STEPS - 1)


@pytest.mark.parametrize(("where", "name"), [(SelectiveAdamW, "reconcile"), (MaskedStep, "promise")])
def test_the_monitor_sees_a_revision_that_only_some_parts_know(trained, masks, tmp_path, monkeypatch, where, name):
    monkeypatch.setattr(where, name, lambda *arguments: None)
    with pytest.raises(AssertionError, match=r"experts that would move|gradients are kept for|outside the batch"):
        main(arguments(trained, masks, tmp_path / "run"))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == CHANGE


@pytest.mark.parametrize(
    ("revisions", "message"),
    [
        (["3"], "train.revisions: expected STEP:STORE, such as 40:masks.r1.zarr, got '3'"),
        (["x:{}"], "train.revisions: expected STEP:STORE"),
        (["0:{}"], "train.revisions: expected STEP:STORE"),
        (["3:"], "train.revisions: expected STEP:STORE"),
        (["3:{}", "3:{}"], "train.revisions: expected ascending steps, got 3, 3"),
        (["8:{}"], "train.revisions: masks after step 8 would train nothing, as the run has 8 steps"),
        (["3:nowhere"], "nowhere"),
    ],
)
def test_a_revision_that_is_none_is_one_line(trained, masks, tmp_path, capsys, revisions, message):
    words = [each.format(masks[1]) for each in revisions]
    settings = ("--train.masks", str(masks[0]), "--train.epochs", "4", "--train.revisions", *words)
    assert main(["train", "--config", str(trained.config), "--run-dir", str(tmp_path / "run"), *settings]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_weights_of_the_state_are_those_of_the_steps(trained, masks, tmp_path):
    run_dir = tmp_path / "run"
    assert main(arguments(trained, masks, run_dir, "--train.weights", "hacking=0", "--train.repeats", "weapons=2")) == 0
    _, metrics = result(run_dir)
    assert [line["batch"] for line in metrics].count(1) == 8
    assert len(metrics) == 12
    assert [line["weight"] for line in metrics] == [float(line["batch"]) for line in metrics]
    assert all((line["num_stepped"] == 0) == (line["batch"] == 0) for line in metrics)


def test_a_revision_of_other_batches_is_refused(trained, masks, tmp_path, capsys):
    settings = ("--run-dir", str(tmp_path / "other"), "--seed", "5")
    assert main(["analyze", "--config", str(trained.config), *settings]) == 0
    others = masks[0], tmp_path / "other" / "masks.zarr"
    assert main(arguments(trained, others, tmp_path / "run")) == 2
    assert f"{others[1]} was made for other batches" in capsys.readouterr().err
