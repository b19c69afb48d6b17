"""`dist-moe slurm` as a person types it, as far as no scheduler is needed; `tests/slurm` has one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dist_moe.cli.main import main

REPOSITORY = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "deepspeed", "zarr")
STAGES = ("count", "select", "train", "evaluate", "report")


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "run.yaml").write_text("run_dir: runs/x\nmodel: {path: m}\ndata: {paths: [d]}\n")
    (tmp_path / "site.yaml").write_text("partition: gpu\ntrain: {nodes: 2}\n")
    (tmp_path / "held out.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def preview(capsys, *words):
    """The words of each stage's batch file, and the commands that would submit them."""
    assert main(["slurm", "preview", "--config", "run.yaml", *words]) == 0
    out = capsys.readouterr().out
    assert not Path("runs").exists() or not Path("runs/x/slurm").exists()
    return re.findall(r"^words=\((.*)\)$", out, re.MULTILINE), re.findall(r"^==> (\w+=\$.*)$", out, re.MULTILINE), out


def test_the_whole_chain_is_shown(place, capsys):
    words, commands, out = preview(
        capsys,
        *("--site", "site.yaml", "--parts", "4", "--held-out", "held out.jsonl", "--resources", "count.mem=8G"),
        *("--train.lr", "1e-4", "--evaluation.judges", "phrases", "likelihood", "--analysis.no_gates"),
    )
    settings = "--config run.yaml --train.lr 1e-4 --evaluation.judges phrases likelihood --analysis.no_gates"
    assert words == [
        *(f"{command} {settings}" for command in ("count", "analyze", "train")),
        "evaluate runs/x --data 'held out.jsonl' --evaluation.judges phrases likelihood",
        "report runs/x",
    ]
    assert commands[0] == f"count=$(sbatch --parsable {place}/runs/x/slurm/count.sbatch)"
    for before, stage, command in zip(STAGES, STAGES[1:], commands[1:], strict=False):
        assert command == (
            f"{stage}=$(sbatch --parsable --dependency=afterok:${before} --kill-on-invalid-dep=yes "
            f"{place}/runs/x/slurm/{stage}.sbatch)"
        )
    assert out.count("#SBATCH --partition=gpu\n") == 5
    assert (out.count("#SBATCH --nodes=2\n"), out.count("#SBATCH --mem=8G\n")) == (1, 1)
    assert "#SBATCH --array=1-4\n" in out


def test_stages_whose_results_are_there_are_left_out(place, capsys):
    run = place / "runs" / "x"
    left = []
    for made in ("counts.zarr", "masks.zarr", "experts", "training", "evaluation.json"):
        (run / made).mkdir(parents=True)
        words, _, out = preview(capsys)
        left.append([each.split()[0] for each in words])
        assert out.count("not needed: ") == 5 - len(words)
    assert left[:3] == [
        *(["analyze", "train", "evaluate", "report"], ["train", "evaluate", "report"], ["evaluate", "report"])
    ]
    assert left[3] == left[4] == ["train", "evaluate", "report"]  # a training that replaces it is not finished
    (run / "training").rmdir()
    assert [each.split()[0] for each in preview(capsys)[0]] == ["report"]
    words = preview(capsys, "--stages", "evaluate", "count")[0]
    assert [each.split()[0] for each in words] == ["count", "evaluate"]


def test_masks_that_are_given_need_no_counts(place, capsys):
    words, _, out = preview(capsys, "--train.masks", "other.zarr")
    assert [each.split()[0] for each in words] == ["train", "evaluate", "report"]
    assert "count     not needed: masks are in other.zarr" in out


def test_a_login_node_loads_nothing_large(place):
    code = (
        "import sys; from dist_moe.cli.main import main; main(['slurm', 'preview', '--config', 'run.yaml', '--site', "
        f"'site.yaml']); print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_site_file_is_written_once(place, capsys):
    assert main(["slurm", "site", "--out", "new.yaml"]) == 0
    assert capsys.readouterr().out == "new.yaml: set what the jobs of this cluster need\n"
    assert main(["slurm", "site", "--out", "new.yaml"]) == 2
    preview(capsys, "--site", "new.yaml")


def test_without_a_scheduler_nothing_is_written(place, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(place))
    assert main(["slurm", "submit", "--config", "run.yaml"]) == 2
    assert "there is no program sbatch here: run this on a login node" in capsys.readouterr().err
    assert not (place / "runs").exists()


def test_a_refused_job_cancels_those_before_it(place, capsys, monkeypatch):
    """The programs here only note their arguments; the third job is refused."""
    for name, body in {
        "sbatch": 'echo "$@" >>calls; [[ "$*" != *train.sbatch ]] || { echo No account >&2; exit 1; }; wc -l <calls',
        "scancel": 'echo scancel "$@" >>calls',
        "squeue": "",
    }.items():
        (place / name).write_text(f"#!/bin/bash\n{body}\n")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:/usr/bin:/bin")
    assert main(["slurm", "submit", "--config", "run.yaml"]) == 2
    assert capsys.readouterr().err == "dist-moe: error: sbatch failed: No account\n"
    assert (place / "calls").read_text().splitlines()[-1] == "scancel --quiet 2 1"
    assert not (place / "runs").exists()


@pytest.mark.parametrize("name", ["site", "gpus", "apptainer"])
def test_the_repositorys_site_files_are_sites(place, capsys, name):
    file = REPOSITORY / "slurm" / f"{name}.yaml"
    words, *_ = preview(capsys, "--site", str(file))
    assert len(words) == len(STAGES)


def test_the_repository_has_every_key_of_a_site(capsys):
    assert main(["slurm", "site"]) == 0
    assert (REPOSITORY / "slurm" / "site.yaml").read_text() == capsys.readouterr().out
