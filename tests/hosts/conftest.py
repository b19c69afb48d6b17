"""Two hosts for all tests of this directory, and a tiny run that they see as on a shared file system."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.conftest import Run, new_run
from tests.hosts.network import Host, search_path, two_hosts

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 200
PORT = "29400"


@dataclass(frozen=True, slots=True)
class Launchers:
    """Commands as one types them, in the repository, on one or on both of two hosts."""

    hosts: tuple[Host, Host]
    directory: Path

    def deepspeed(self, script: str, *words: str | Path) -> subprocess.Popen[str]:
        """On the first host: `deepspeed --hostfile`, which starts a rank on each by pdsh and ssh."""
        return self._begin(
            self.hosts[0].command("deepspeed", "--hostfile", self.directory / "hosts", f"launch/{script}.py", *words)
        )

    def torchrun(self, script: str, *words: str | Path) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
        """On both hosts: `torchrun --rdzv-backend c10d`, which starts a rank there."""
        meet = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"host0:{PORT}", "--nnodes", "2", "--nproc-per-node", "1")
        first, second = (
            self._begin(host.command("torchrun", *meet, f"launch/{script}.py", *words)) for host in self.hosts
        )
        return first, second

    def on_one_host(self, script: str, *words: str | Path) -> subprocess.Popen[str]:
        """Two ranks on the first host."""
        return self._begin(
            self.hosts[0].command("torchrun", "--standalone", "--nproc-per-node", "2", f"launch/{script}.py", *words)
        )

    def _begin(self, command: list[str]) -> subprocess.Popen[str]:
        path = f"{Path(sys.executable).parent}:{search_path()}"
        settings = {"OMP_NUM_THREADS": "1", "DS_ENV_FILE": str(self.directory / "deepspeed_env"), "PATH": path}
        outside = {name: value for name, value in os.environ.items() if not name.startswith("GLOO_")}
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=outside | settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


def ended(*processes: subprocess.Popen[str], limit_s: float = LIMIT_S) -> str:
    """What they have written, when all have ended well."""
    texts = ["\n".join(process.communicate(timeout=limit_s)) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(texts)
    return "\n".join(texts)


@pytest.fixture(scope="session")
def launchers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launchers]:
    directory = tmp_path_factory.mktemp("hosts")
    (directory / "hosts").write_text("host0 slots=1\nhost1 slots=1\n")
    # What DeepSpeed is to set on the other hosts.
    (directory / "deepspeed_env").write_text("OMP_NUM_THREADS=1\n")
    with two_hosts(directory) as hosts:
        yield Launchers(hosts, directory)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Inputs of a run; nothing has run."""
    return new_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def masks(launchers: Launchers, run: Run) -> Path:
    """Of an analysis on both hosts, by deepspeed."""
    ended(launchers.deepspeed("analyze", "--config", run.config))
    return run.masks


@pytest.fixture(scope="session")
def undisturbed(launchers: Launchers, run: Run, masks: Path) -> Path:
    """A training by two ranks of one host."""
    ended(launchers.on_one_host("train", *training(run, run.root / "one-host")))
    return run.root / "one-host"


def training(run: Run, run_dir: Path, *words: str) -> tuple[str | Path, ...]:
    """The words of a training of 60 steps, with a checkpoint every 5."""
    of_masks = ("--config", run.config, "--run_dir", run_dir, "--train.masks", run.masks)
    return (*of_masks, "--train.epochs", "30", "--checkpoint.every", "5", *words)
