"""Analysis and training on two hosts without Slurm have the bits of one host's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dist_moe.cli.main import main
from dist_moe.store.read import MaskStore
from tests.cli.conftest import Run
from tests.hosts.conftest import Launchers, ended, training
from tools.soak.compare import differing_bits

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]


def test_an_analysis_on_two_hosts_is_that_of_one_process(run: Run, masks: Path, tmp_path: Path) -> None:
    assert main(["analyze", "--config", str(run.config), "--run_dir", str(tmp_path)]) == 0
    one, two = MaskStore.open(tmp_path / "masks.zarr"), MaskStore.open(masks)
    assert np.array_equal(one.counts.prompt_counts[:], two.counts.prompt_counts[:])
    assert [batch.mask_hash for batch in one.batches] == [batch.mask_hash for batch in two.batches]


def test_a_training_by_deepspeed_on_two_hosts_is_that_of_one_host(
    launchers: Launchers, run: Run, undisturbed: Path
) -> None:
    said = ended(launchers.deepspeed("train", *training(run, run.root / "deepspeed")))
    assert "host0: Engine: deepspeed, 2 rank(s)" in said
    assert differing_bits(run.root / "deepspeed", undisturbed) == 0


def test_a_training_by_torchrun_on_two_hosts_is_that_of_one_host(
    launchers: Launchers, run: Run, undisturbed: Path
) -> None:
    ended(*launchers.torchrun("train", *training(run, run.root / "torchrun")))
    logs = {path.name: path.read_text() for path in (run.root / "torchrun" / "logs").glob("*.log")}
    assert [f"on host{rank}, cpu" in logs[f"rank-{rank}.log"] for rank in (0, 1)] == [True, True], logs
    assert differing_bits(run.root / "torchrun", undisturbed) == 0
