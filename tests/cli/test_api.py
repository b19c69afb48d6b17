"""`import dist_moe` as a library: what it offers, that it computes what the commands do, and that it prints nothing."""

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import dist_moe
from dist_moe.weights.directory import read_tensors
from dist_moe.weights.verify import Verification
from tools.soak.compare import differing_bits


@pytest.fixture(autouse=True)
def _quiet(caplog):
    """As for whoever has not set up logging."""
    caplog.set_level(logging.WARNING)


def nothing_printed(capsys):
    """Neither lines nor progress bars of ours."""
    printed = capsys.readouterr()
    return printed.out == "" and not any(bar in printed.err for bar in ("Routing", "Batches", "Scoring"))


def test_everything_offered_is_there_and_no_room_takes_its_name():
    code = (
        "import sys, dist_moe\n"
        "offered = {name: getattr(dist_moe, name) for name in dist_moe.__all__}\n"
        "import dist_moe.api, dist_moe.cli.main\n"
        "assert all(getattr(dist_moe, name) is value for name, value in offered.items())\n"
        "assert all(callable(value) for value in offered.values())\n"
        "assert set(dist_moe.__all__) <= set(dir(dist_moe))\n"
        "assert not hasattr(dist_moe, 'nonsense')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_analyze_and_train_are_what_the_commands_do(trained, tmp_path, capsys):
    config = replace(dist_moe.load_config(trained.config), run_dir=tmp_path / "run")
    store = dist_moe.analyze(config)
    assert isinstance(store, dist_moe.MaskStore)
    assert store.digest == dist_moe.MaskStore.open(trained.masks).digest
    result = dist_moe.train(config)
    assert result.path == tmp_path / "run"
    assert result.union == tuple(map(tuple, np.argwhere(store.union()).tolist()))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert result.metrics["step"].tolist() == [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert result.metrics["loss"].tolist() == pytest.approx([line["loss"] for line in lines])
    assert differing_bits(tmp_path / "run", trained.run_dir) == 0
    assert nothing_printed(capsys)


def test_evaluate_gives_the_tables_of_the_file(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained.run_dir, run)
    found = dist_moe.evaluate(run, max_new_tokens=3, resamples=50)
    written = json.loads((run / "evaluation.json").read_text())
    assert found.path == run
    assert found.kinds == ["trained"]
    num_estimates = 0
    for by in ("all", "batch", "category", "file"):
        table = found.table(by)
        groups = [group for group in written["groups"] if group["by"] == by]
        assert table.index.tolist() == [group["name"] for group in groups]
        for group in groups:
            for measure, times in group["measures"].items():
                for when, estimate in times.items():
                    if estimate is not None:
                        num_estimates += 1
                        assert table.loc[group["name"], (measure, when)] == estimate["value"]
    assert len(found.estimates) == num_estimates
    assert {"kind", "by", "group", "measure", "when", "value", "low", "high"} <= {*found.estimates}
    assert max(found.rows["after.num_tokens"]) == 3
    assert len(found.rows) == 32
    assert nothing_printed(capsys)
    with pytest.raises(dist_moe.UserError, match="there are no held out rows, only trained"):
        found.table("all", "held out")
    with pytest.raises(dist_moe.UserError, match="max_new_tokens: expected greater"):
        dist_moe.evaluate(run, max_new_tokens=0)


def test_export_and_verify(trained, tmp_path, capsys):
    out, delta = tmp_path / "out", tmp_path / "delta.safetensors"
    exported = dist_moe.export(trained.run_dir, out)
    seen = dist_moe.verify(trained.model, out, trained.masks)
    assert isinstance(seen, Verification)
    assert seen.holds
    assert len(seen.changed_experts) == exported.facts.num_trained_experts
    assert seen.num_union == dist_moe.MaskStore.open(trained.masks).union().sum()
    assert dist_moe.export(trained.run_dir, delta, delta=True).path == delta
    assert nothing_printed(capsys)
    applied = dist_moe.apply(trained.model, delta, tmp_path / "applied")
    assert (applied.path, applied.facts) == (tmp_path / "applied", exported.facts)
    assert read_tensors(tmp_path / "applied").keys() == read_tensors(out).keys()

    found = dist_moe.difference(trained.model, out)
    assert {(each.layer, each.expert) for each in found.experts} == seen.changed_experts
    assert found.tensors == []

    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 1}))
    other = dist_moe.verify(trained.model, out, trained.masks)
    assert not other.holds
    assert any("config.json" in line for line in other.violations)


def test_bad_input_is_a_users_error(trained, fresh, tmp_path):
    for call in (
        lambda: dist_moe.load_config(tmp_path / "nowhere.yaml"),
        lambda: dist_moe.analyze(tmp_path / "nowhere.yaml"),
        lambda: dist_moe.train(fresh.config),  # without masks
        lambda: dist_moe.analyze(trained.config),  # there are masks
        lambda: dist_moe.evaluate(tmp_path),
        lambda: dist_moe.export(trained.run_dir, trained.model),
        lambda: dist_moe.export(trained.run_dir, tmp_path / "new", link=True, delta=True),
        lambda: dist_moe.export(trained.run_dir, tmp_path / "new", push="owner/name", delta=True),
        lambda: dist_moe.export(trained.run_dir, tmp_path / "new", public=True),
        lambda: dist_moe.apply(trained.model, trained.masks, tmp_path / "new"),
        lambda: dist_moe.verify(trained.model, tmp_path, trained.masks),
        lambda: dist_moe.verify(trained.model, trained.model),  # without masks
        lambda: dist_moe.difference(trained.model, tmp_path),
    ):
        with pytest.raises(dist_moe.UserError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_an_analysis_of_which_a_part_is_left_is_told(fresh):
    config = dist_moe.load_config(fresh.config, ["--analysis.part", "2/2"])
    with pytest.raises(dist_moe.UserError, match="a part of the analysis is left to other jobs"):
        dist_moe.analyze(config)


def test_a_training_that_was_stopped_is_told(trained, tmp_path):
    config = dist_moe.load_config(trained.config, ["--run-dir", str(tmp_path), "--train.masks", str(trained.masks)])
    (tmp_path / "STOP").touch()
    with pytest.raises(dist_moe.UserError, match="stopped before its end, as requested, with a checkpoint"):
        dist_moe.train(config)
    assert len(dist_moe.train(config).metrics) == 4


def test_count_and_select_are_what_the_commands_do(trained, tmp_path, capsys):
    config = replace(dist_moe.load_config(trained.config), run_dir=tmp_path / "run")
    counts = dist_moe.count(config)
    assert isinstance(counts, dist_moe.Counts)
    masks = dist_moe.MaskStore.open(trained.masks)
    assert counts.digest == masks.counts_digest
    assert dist_moe.select(config.run_dir).digest == masks.digest
    lowest = dist_moe.select(config.run_dir, "lowest", out="lowest", top_k=3)
    assert lowest.path == config.run_dir / "lowest.zarr"
    assert lowest.selection_rule == {"name": "lowest", "threshold": masks.selection_rule["threshold"], "top_k": 3}
    assert lowest.masks[:].sum(axis=(1, 2)).max() <= 3
    with pytest.raises(dist_moe.UserError, match="exists"):
        dist_moe.select(config.run_dir, "lowest", out="lowest")
    assert nothing_printed(capsys)
