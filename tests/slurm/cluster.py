"""A real Slurm on this machine: munge, one controller and two nodes, all in one directory, for as long as a test runs.

Two slurmd processes with node names of their own (`-N`) make one machine a cluster of two nodes. Nothing outside the
directory is read or written (no /etc/slurm, no system service), and only processes that were started here are ended.
Debian's packages slurmctld, slurmd, slurm-client and munge are enough.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo", "squeue", "scancel")
INSTALL = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge (as root: make slurm-packages)"
START_LIMIT_S = 60

SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job waits until its old credential has expired.
AuthInfo=socket={directory}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# Nodes may claim more cores than the machine has.
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=3600
{nodes}
# A job of the partition urgent takes the nodes of one of main, which is told so and requeued.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=urgent Nodes=ALL MaxTime=30 State=UP PriorityTier=2
PartitionName=main Nodes=ALL Default=YES MaxTime=30 State=UP PriorityTier=1 GraceTime=30
"""


@dataclass(frozen=True, slots=True)
class Job:
    """A finished job."""

    state: str
    """JobState of `scontrol show job`: COMPLETED, FAILED, ..."""
    exit_code: str
    """`status:signal`"""
    log: str


@dataclass(frozen=True, slots=True)
class Cluster:
    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        # Inside somebody's own Slurm job, its SLURM_* and SBATCH_* variables would steer ours.
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return outside | {"SLURM_CONF": str(self.directory / "slurm.conf"), "PATH": search_path()}

    def call(self, *command: str | Path) -> str:
        """Standard output of a Slurm command; if it fails, the error shows its message."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def submit(self, *options: str, seconds: int, cwd: Path) -> str:
        """Submit a job that sleeps; returns its number. Its name is that of no run's job."""
        return self.call(
            "sbatch", "--parsable", f"--chdir={cwd}", "--output=/dev/null", *options, f"--wrap=sleep {seconds}"
        ).strip()

    def wait(self, job_id: str, limit_s: int) -> Job:
        """Wait for a job; if it runs for longer than `limit_s` seconds, that is an error that shows its log."""
        deadline = time.monotonic() + limit_s
        while (record := self.record(job_id))["JobState"] in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
            if time.monotonic() > deadline:
                self.call("scancel", job_id)
                raise TimeoutError(f"job {job_id} {record['JobState']} after {limit_s} s\n{_log(record)}")
            time.sleep(0.5)
        return Job(record["JobState"], record["ExitCode"], _log(record))

    def record(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, ExitCode, StdOut, ..."""
        lines = self.call("scontrol", "show", "job", job_id).splitlines()
        # Paths may have spaces; they stand alone on their lines.
        words = [word for line in lines for word in ([line] if line.strip().startswith("StdOut=") else line.split())]
        return dict(word.strip().split("=", maxsplit=1) for word in words if "=" in word)


def _log(record: dict[str, str]) -> str:
    log = Path(record["StdOut"])
    return log.read_text() if log.exists() else ""


@contextmanager
def slurm_cluster(directory: Path) -> Iterator[Cluster]:
    """Context manager: start Slurm in `directory` (empty), wait until both nodes are idle, and stop it at the end."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=search_path()) is None]
    if missing:
        raise FileNotFoundError(f"no {', '.join(missing)} on PATH: a real Slurm is tested here; {INSTALL}")
    cluster = Cluster(directory)
    _write_configuration(directory)
    with ExitStack() as stack:
        _start_munge(stack, cluster)
        stack.enter_context(_daemon(cluster, "slurmctld", "-D"))
        for node in NODES:
            stack.enter_context(_daemon(cluster, "slurmd", "-D", "-N", node))
        _wait(lambda: _idle_nodes(cluster) == len(NODES), "nodes idle", directory)
        yield cluster
        cluster.call("scancel", f"--user={getpass.getuser()}")
        _wait(lambda: cluster.call("squeue", "--noheader") == "", "no job left", directory)


def search_path() -> str:
    """PATH with the directory of the daemons, which Debian leaves out for ordinary users."""
    return f"{os.environ['PATH']}:/usr/sbin"


def _write_configuration(directory: Path) -> None:
    (directory / "state").mkdir()
    for node in NODES:
        (directory / f"spool-{node}").mkdir()
    host = socket.gethostname()
    controller_port, *node_ports = _free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2"
        for node, port in zip(NODES, node_ports, strict=True)
    )
    text = SLURM_CONF.format(
        host=host, user=getpass.getuser(), directory=directory, controller_port=controller_port, nodes=nodes
    )
    (directory / "slurm.conf").write_text(text)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _start_munge(stack: ExitStack, cluster: Cluster) -> None:
    key = cluster.directory / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    files = [
        f"--{option}={cluster.directory}/munge.{suffix}"
        for option, suffix in {
            "key-file": "key",
            "socket": "socket",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }.items()
    ]
    # --force: pytest's directories are closed to other users, which munged takes for a mistake.
    stack.enter_context(_daemon(cluster, "munged", "--foreground", "--force", *files))
    _wait(lambda: (cluster.directory / "munge.socket").exists(), "munge's socket", cluster.directory)


@contextmanager
def _daemon(cluster: Cluster, *command: str) -> Iterator[None]:
    name = "-".join(word for word in (command[0], *command[-1:]) if not word.startswith("-"))
    with (cluster.directory / f"{name}.out").open("w") as output:
        # A session of its own, so that Ctrl-C reaches pytest first, and daemons are stopped in order.
        process = subprocess.Popen(
            command, env=cluster.environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _idle_nodes(cluster: Cluster) -> int:
    done = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=START_LIMIT_S,
        check=False,
    )
    return len(set(done.stdout.split()))  # a node is listed once for each of its partitions


def _wait(condition: Callable[[], bool], what: str, directory: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            files = sorted(path for path in directory.iterdir() if path.suffix in (".log", ".out"))
            logs = "\n".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in files)
            raise TimeoutError(f"Slurm: not {what} after {START_LIMIT_S} s\n{logs}")
        time.sleep(0.2)
