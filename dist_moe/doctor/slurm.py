"""Checks inside a Slurm job: what it was given, and whether its nodes' clocks agree."""

from __future__ import annotations

import os
import shutil
import subprocess

from dist_moe.doctor.check import Asked, Finding, check

NAMED = (
    *("SLURM_JOB_ID", "SLURM_JOB_NUM_NODES", "SLURM_JOB_NODELIST", "SLURM_NTASKS_PER_NODE", "SLURM_CPUS_ON_NODE"),
    *("SLURM_GPUS_ON_NODE", "SLURM_MEM_PER_NODE", "SLURM_JOB_PARTITION", "SLURM_RESTART_COUNT", "PROCESSES_PER_NODE"),
)
SKEW_S = 2.0


@check()
def slurm(asked: Asked) -> Finding:
    """Slurm's programs, and whether ranks, GPUs and threads fit what the job has been given."""
    given = {name: os.environ[name] for name in NAMED if name in os.environ}
    if "SLURM_JOB_ID" not in given:
        place = shutil.which("sbatch")
        return Finding(True, f"not in a job; {f'sbatch is {place}' if place else 'there is no sbatch here'}")
    problems = {
        f"no {program} in PATH": "load the site's Slurm module, or put Slurm's bin into PATH (`setup` in the site file)"
        for program in ("srun", "scontrol")
        if shutil.which(program) is None
    }
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = given.get("SLURM_GPUS_ON_NODE")
    if visible is not None and gpus is not None and len([x for x in visible.split(",") if x]) != int(gpus):
        problems[f"the job has {gpus} GPU(s), but CUDA_VISIBLE_DEVICES is {visible!r}"] = (
            "do not set CUDA_VISIBLE_DEVICES in a job: Slurm does"
        )
    cores, ranks = given.get("SLURM_CPUS_ON_NODE"), given.get("PROCESSES_PER_NODE", gpus or "1")
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    if cores is not None and threads.isdecimal() and int(ranks) * int(threads) > int(cores):
        problems[f"{ranks} rank(s) of {threads} threads on {cores} core(s)"] = (
            "ask for more cores (--cpus-per-task), or set OMP_NUM_THREADS to cores / ranks"
        )
    return Finding.of(", ".join(f"{name}={value}" for name, value in given.items()), problems)


@check(limit_s=60)
def node_clocks(asked: Asked) -> Finding:
    """The clocks of a job's nodes, asked at about the same moment."""
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    if "SLURM_JOB_ID" not in os.environ or nodes < 2:
        return Finding(True, "one node")
    command = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "date", "+%s.%N"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding(False, f"srun cannot ask the nodes: {last[:300]}", "see that `srun date` works in this job")
    times = [float(line) for line in done.stdout.split()]
    spread = max(times) - min(times)
    problems = {}
    if spread > SKEW_S:
        problems[f"the clocks of {len(times)} nodes differ by {spread:.1f} s"] = (
            "synchronise them (chronyd, ntpd), or give the node that is off to the administrators (`srun -l date`)"
        )
    return Finding.of(f"{len(times)} nodes agree to {spread:.2f} s, the start of srun included", problems)
