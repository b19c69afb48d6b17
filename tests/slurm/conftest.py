"""One Slurm for all tests of this directory, and a run that is submitted there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dist_moe.cli.main import main
from tests.slurm.cluster import Cluster, slurm_cluster


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def cluster(started: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Slurm's programs in this process reach it."""
    for name in set(os.environ) - set(started.environment):
        monkeypatch.delenv(name)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, started.environment[name])
    return started


@dataclass(frozen=True, slots=True)
class Chain:
    """What `dist-moe slurm submit` has submitted."""

    run_dir: Path

    @property
    def jobs(self) -> dict[str, str]:
        """Numbers of the jobs by stage."""
        record = json.loads((self.run_dir / "slurm" / "jobs.json").read_text())
        return {each["stage"]: each["job"] for each in record["jobs"]}


def submit(run_dir: Path, *words: str) -> Chain:
    """Submit a run from the current directory, by the command."""
    assert main(["slurm", "submit", "--config", "run.yaml", "--run_dir", str(run_dir), *words]) == 0
    return Chain(run_dir)
