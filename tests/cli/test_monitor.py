"""Promises are the store's rows, and an audit ends a run before the step that it finds at fault is written down."""

import json

import pytest
import torch

from dist_moe.cli.main import main
from dist_moe.store.read import MaskStore
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.promise import stored_promises
from tests.wiring import Store


def test_the_monitor_s_promises_are_the_store_s_rows_by_batch_id(trained):
    promises, store = stored_promises(MaskStore.open(trained.masks)), Store(trained.masks)
    assert len(store.batch_ids) == 2
    for b in (1, 0):
        promise = promises(store.batch_ids[b])
        assert (promise.mask_LE == store.masks[b]).all()
        assert promise.mask_hash == store.mask_hash(b)
        assert (promise.num_rows, promise.num_unsafe) == (16, 8)


def change_in_third_step(monkeypatch):
    """One bit of an expert that is not its batch's."""
    step, done = SelectiveAdamW.step, []

    def changed(optimizer, closure=None):
        step(optimizer)
        done.append(None)
        if len(done) == 3:
            held = [(layer, expert) for layer in optimizer.layers for expert in layer.local]
            layer, expert = next((x, e) for x, e in held if (x.index, e) not in optimizer.active)
            layer.row(expert)["down_proj"][0, :1].view(torch.int32).bitwise_xor_(1)

    monkeypatch.setattr(SelectiveAdamW, "step", changed)


@pytest.mark.parametrize(("every", "audited"), [(0, [False] * 4), (4, [True, False, False, True])])
def test_the_monitor_s_audit_looks_at_the_steps_that_it_says(fresh, monkeypatch, every, audited):
    assert main(["analyze", "--config", str(fresh.config)]) == 0
    change_in_third_step(monkeypatch)
    assert main(["train", "--config", str(fresh.config), "--train.audit", str(every)]) == 0
    lines = [json.loads(line) for line in (fresh.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["audited"] for line in lines] == audited


def test_the_monitor_s_audit_ends_the_run_before_the_step_is_written_down(fresh, monkeypatch):
    assert main(["analyze", "--config", str(fresh.config)]) == 0
    change_in_third_step(monkeypatch)
    with pytest.raises(AssertionError, match=r"a step has changed L\d\d_E\d\d, down_proj, which is outside"):
        main(["train", "--config", str(fresh.config), "--train.audit", "3"])
    assert len((fresh.run_dir / "metrics.jsonl").read_text().splitlines()) == 2
    assert not (fresh.run_dir / "experts").exists()
