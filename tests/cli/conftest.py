"""A finished run on a tiny model, shared by the tests that only read it."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from dist_moe.cli.main import main
from tests.checkpoint import prompt_rows, save_checkpoint, write_config, write_jsonl


@dataclass(frozen=True)
class Run:
    """Paths of a run's inputs and results."""

    root: Path
    model: Path
    data: Path
    config: Path
    run_dir: Path

    @property
    def masks(self) -> Path:
        return self.run_dir / "masks.zarr"


def new_run(root: Path, family: str = "qwen3_moe") -> Run:
    """Inputs only; nothing has run."""
    model = save_checkpoint(root / "model", family)
    data = write_jsonl(root / "prompts.jsonl", prompt_rows())
    run_dir = root / "run"
    return Run(root, model, data, write_config(root / "run.yaml", model, data, run_dir), run_dir)


@pytest.fixture
def fresh(tmp_path):
    return new_run(tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Analyzed and trained in one process. Read only."""
    run = new_run(tmp_path_factory.mktemp("trained"))
    assert main(["analyze", "--config", str(run.config)]) == 0
    assert main(["train", "--config", str(run.config)]) == 0
    return run
