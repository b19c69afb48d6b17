"""The batch file of a job: its options, its command, its container; and that bash and shellcheck take it."""

import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dist_moe.slurm import STAGES
from dist_moe.slurm.job import Job, Place, batch_file, sbatch
from dist_moe.slurm.site import read_site

PLACE = Place(run_dir=Path("/work/my runs/it's 100%"), cwd=Path("/work/x"), bin=Path("/opt/env/bin"))
GPUS = (
    *("gpus_per_node=8", "cpus_per_rank=12", "nodes=2", "mem=800G", "account=me", "time=60"),
    "options=[--exclusive, -x n1]",
)


def text(stage: str, *resources: str, num_parts: int = 1, words: tuple[str, ...] = ("train", "a b")) -> str:
    return batch_file(Job(stage=stage, words=words, num_parts=num_parts), read_site(None, resources), PLACE)


def options(text: str) -> list[str]:
    return [word for line in text.splitlines() if line.startswith("#SBATCH ") for word in shlex.split(line[8:])]


def test_the_options_are_the_sites():
    assert options(text("train", *GPUS)) == [
        *("--job-name=dist-moe-train", "--chdir=/work/x", "--output=/work/my runs/it's 100%%/slurm/train-%j.log"),
        *("--open-mode=append", "--requeue", "--signal=B:USR1@300", "--account=me", "--time=60", "--nodes=2"),
        *("--ntasks-per-node=1", "--cpus-per-task=96", "--gpus-per-node=8", "--mem=800G", "--exclusive", "-x", "n1"),
    ]
    found = options(text("count", "ranks_per_node=3", "cpus_per_rank=2", num_parts=4))
    assert {"--array=1-4", "--cpus-per-task=6", "--nodes=1"} <= set(found)
    assert "--output=/work/my runs/it's 100%%/slurm/count-%A_%a.log" in found
    assert not any(option.startswith(("--signal", "--gpus", "--mem", "--partition")) for option in found)


def test_a_job_waits_for_the_success_of_the_one_before():
    job = Job(stage="train", words=("train",))
    file = "/work/my runs/it's 100%/slurm/train.sbatch"
    assert sbatch(job, PLACE, []) == ["sbatch", "--parsable", file]
    assert sbatch(job, PLACE, ["7"]) == [
        *("sbatch", "--parsable", "--dependency=afterok:7", "--kill-on-invalid-dep=yes", file)
    ]


def test_a_job_knows_its_ranks_and_its_environment():
    on_gpus = text("train", *GPUS)
    assert "export PROCESSES_PER_NODE=8 OMP_NUM_THREADS=12" in on_gpus
    assert "DS_ACCELERATOR" not in on_gpus
    assert 'export PATH=/opt/env/bin:"$PATH"' in on_gpus
    assert "export DS_ACCELERATOR=cpu" in text("train")
    lines = text("train", "setup=[module load cuda, export NCCL_SOCKET_IFNAME=ib0]").splitlines()
    assert lines.index("module load cuda") + 1 == lines.index("export NCCL_SOCKET_IFNAME=ib0") < lines.index("set -u")


def test_the_container_comes_between_srun_and_the_program():
    def started(*resources: str) -> list[str]:
        (line,) = (line for line in text("train", *resources).splitlines() if "--kill-on-bad-exit=1" in line)
        words = shlex.split(line)
        return words[words.index("--kill-on-bad-exit=1") + 1 :]

    run = "/work/my runs/it's 100%"
    assert started() == ["${start[@]}"]
    image = ("container.image=m.sif", "container.mounts=[/data, /a:/b]", "container.options=[--x]")
    assert started("container.kind=apptainer", "gpus_per_node=1", *image) == [
        *("apptainer", "exec", "--nv", "--pwd", "/work/x", "--bind", "/work/x", "--bind", run),
        *("--bind", "/data", "--bind", "/a:/b", "--x", "m.sif", "${start[@]}"),
    ]
    mounts = f"/work/x:/work/x,{run}:{run},/data:/data,/a:/b"
    assert started("container.kind=pyxis", *image) == [
        *("--container-image=m.sif", f"--container-mounts={mounts}", "--container-workdir=/work/x", "--x"),
        "${start[@]}",
    ]
    assert "export PATH" not in text("train", "container.kind=pyxis", *image)


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
@pytest.mark.parametrize("stage", STAGES)
def test_shellcheck_has_nothing_to_say(stage, launcher, tmp_path):
    program = Path(sys.executable).parent / "shellcheck"
    file = tmp_path / "job.sh"
    file.write_text(text(stage, *GPUS, f"launcher={launcher}", num_parts=3 if stage == "count" else 1))
    done = subprocess.run([program, file], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def run(text: str, tmp_path: Path, *, part: str = "2", **programs: str) -> subprocess.CompletedProcess[str]:
    """Run a batch file by bash, where srun and scontrol are programs given as bash."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir(exist_ok=True)
    for name, body in {"scontrol": "echo n1", **programs}.items():
        (bin_dir / name).write_text(f"#!/bin/bash\n{body}\n")
        (bin_dir / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1", "SLURM_ARRAY_TASK_ID": part}
    path = f"{bin_dir}:{shutil.which('bash').removesuffix('/bash')}"
    return subprocess.run(
        ["bash", "-c", text], env={"PATH": path, **job}, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_words_reach_the_program_unchanged(tmp_path):
    words = ("count", "--data.refusal", 'I\'m $HOME; "no" `x`\\')
    srun = 'while [[ "$1" == --* ]]; do shift; done; printf "%s\\n" "${@:5}"'
    done = run(text("count", num_parts=3, words=words), tmp_path, srun=srun)
    assert done.stdout.splitlines() == [*words, "--analysis.part", "2/3"], done.stderr


@pytest.mark.parametrize(
    ("made", "status", "requeued"),
    [
        ("mkdir -p run/experts", 0, False),
        ("mkdir -p run/experts run/training", 75, False),  # what it replaces is still there
        ("true", 75, False),
        ("exit 3", 3, False),
        ("kill -USR1 $(cat pid); while [[ ! -e run/REQUEUE ]]; do sleep .01; done", 0, True),
        ("kill -USR1 $(cat pid); while [[ ! -e run/REQUEUE ]]; do sleep .01; done; rm run/REQUEUE", 75, False),
        ("kill -USR1 $(cat pid); while [[ ! -e run/REQUEUE ]]; do sleep .01; done; exit 4", 4, False),
    ],
)
def test_a_training_ends_well_when_it_is_finished_or_requeued(made, status, requeued, tmp_path, monkeypatch):
    """Without its end it has failed for what waits for it; a person's STOP makes it remove the file REQUEUE."""
    monkeypatch.chdir(tmp_path)
    place = replace(PLACE, run_dir=Path("run"), cwd=tmp_path)
    file = batch_file(Job(stage="train", words=("train",)), read_site(None), place)
    done = run(f"echo $$ >pid\n{file}", tmp_path, srun=made, scontrol='[[ "$1" != requeue ]] || touch requeued')
    assert done.returncode == status, done.stderr
    assert (tmp_path / "requeued").exists() == requeued


@pytest.mark.parametrize("preempted", [True, False])
def test_a_preempted_job_is_requeued_and_a_failed_one_is_not(preempted, tmp_path):
    said = "PreemptTime=2026-11-27T12:22:45" if preempted else "PreemptTime=None"
    scontrol = f'if [[ "$1" == requeue ]]; then touch {tmp_path}/requeued; else echo {said}; fi'
    done = run(text("count"), tmp_path, srun="exit 143", scontrol=scontrol)
    assert done.returncode == 143
    assert (tmp_path / "requeued").exists() == preempted
