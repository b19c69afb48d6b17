"""Each check of `dist-moe doctor`, with the thing that it looks for broken for real, and its remedy."""

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dist_moe.doctor import exchange, machine, slurm, software, storage
from dist_moe.doctor.check import CHECKS, Asked, Finding
from dist_moe.doctor.examine import look

CAN_MOUNT = os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0


def asked(run_dir, ranks=2):
    return Asked(run_dir=run_dir, ranks=ranks)


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def program(directory, name, text):
    """An executable file of this name."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def mounted(tmp_path, mount, name):
    """What a check finds in a mount namespace of its own, in which `mount` was run; {} is an empty directory."""
    place = tmp_path / "place"
    place.mkdir()
    check = [sys.executable, "-m", "dist_moe.doctor", name, str(place), "2"]
    script = f'{mount.format(place)} && exec "$@"'
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *check], capture_output=True, text=True,
                          check=False, timeout=100)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Finding(**json.loads(done.stdout.splitlines()[-1]))


def test_the_versions_that_the_tests_run_with_are_tested(tmp_path):
    found = software.versions(asked(tmp_path))
    assert found.ok, found
    for name in ("torch", "transformers", "deepspeed", "zarr"):
        assert f"{name} {importlib.metadata.version(name)}" in found.seen


@pytest.mark.parametrize(
    ("metadata", "seen", "remedy"),
    [
        ("Version: 9.1.0", "transformers 9.1.0 is not one of the tested 5.17 to 5.23", "or install transformers 5.23"),
        ("Version: 5.16.2", "transformers 5.16.2 is not one of the tested", "`dist-moe families` tells what works"),
    ],
)
def test_another_version_is_a_failure(tmp_path, monkeypatch, metadata, seen, remedy):
    """A distribution of another version, found before the installed one."""
    place = tmp_path / "transformers-9.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: transformers\n{metadata}\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = software.versions(asked(tmp_path))
    assert not found.ok
    assert seen in found.seen
    assert remedy in found.remedy


def test_a_library_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setitem(software.TESTED, "no-such-library", ("1.0", "1.2"))
    found = software.versions(asked(tmp_path))
    assert (found.ok, found.remedy) == (False, "pip install 'no-such-library==1.2.*'")


def test_without_a_compiler(tmp_path, monkeypatch):
    assert software.compiler(asked(tmp_path)).ok
    monkeypatch.setenv("PATH", str(tmp_path))
    found = software.compiler(asked(tmp_path))
    assert not found.ok
    assert found.seen.startswith("no g++; ")
    assert "apt-get install g++" in found.remedy


@pytest.mark.parametrize("place", ["cpu_adam/lock", "py311_cpu/cpu_adam/lock"])
def test_a_lock_that_a_killed_build_has_left(tmp_path, monkeypatch, place):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert software.extensions(asked(tmp_path)) == Finding(True, str(tmp_path))
    lock = tmp_path / place
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert software.extensions(asked(tmp_path)) == Finding(True, f"{tmp_path}; a build is under way")
    os.utime(lock, (time.time() - 7200,) * 2)
    found = software.extensions(asked(tmp_path))
    assert (found.ok, found.remedy) == (False, f"rm {lock}")
    assert f"{lock} is 2.0 h old: a build was killed" in found.seen


def test_a_directory_that_can_be_written_is_left_as_it_was(tmp_path):
    found = storage.run_directory(asked(tmp_path / "run" / "one"))
    assert found.ok, found
    assert found.seen.startswith(f"{tmp_path}, ")
    assert storage.file_clock(asked(tmp_path)).ok
    assert storage.disk(asked(tmp_path)).ok
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written(tmp_path):
    if CAN_MOUNT:
        found = mounted(tmp_path, "mount -t tmpfs -o ro tmpfs {}", "run directory")
        assert "it is mounted read-only" in found.remedy
    else:
        tmp_path.chmod(0o555)
        found = storage.run_directory(asked(tmp_path))
        assert "ask for the right to write there" in found.remedy
    assert not found.ok
    assert "cannot write: " in found.seen


@pytest.mark.skipif(not CAN_MOUNT, reason="mounts a small file system, which only root may")
@pytest.mark.parametrize(
    ("name", "mount", "seen", "remedy"),
    [
        ("run directory", "mount -t tmpfs -o size=64k tmpfs {0} && cp /bin/sh {0}/x || true",
         "cannot write: No space left on device", "free some room"),
        ("disk", "mount -t tmpfs -o size=1m tmpfs {0}", "only 0.00 GB are free at ", "free some room there (du -sh "),
        ("disk", "mount -t tmpfs -o size=4g,nr_inodes=100 tmpfs {0}", "more files fit at ", "(df -i "),
        ("shared memory", "mount -t tmpfs -o size=64m tmpfs /dev/shm", "only 67 MB are free", "--shm-size=8g"),
    ],
    ids=["a full disk", "a small disk", "few files", "little shared memory"],
)  # fmt: skip
def test_a_place_without_room(tmp_path, name, mount, seen, remedy):
    found = mounted(tmp_path, mount, name)
    assert not found.ok
    assert seen in found.seen
    assert remedy in found.remedy


def test_a_file_in_the_place_of_the_run_directory(tmp_path):
    (tmp_path / "run").touch()
    assert storage.run_directory(asked(tmp_path / "run")).seen == f"{tmp_path / 'run'} is a file"


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def unsupported(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(storage.fcntl, "flock", unsupported)
    found = storage.run_directory(asked(tmp_path))
    assert not found.ok
    assert "has no locks (flock)" in found.seen
    assert "only one job at a time" in found.remedy
    monkeypatch.setattr(storage.fcntl, "flock", lambda descriptor, operation: None)  # as where locks hold nobody
    assert not storage.run_directory(asked(tmp_path)).ok
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("off", [-90.0, 90.0])
def test_a_file_server_with_another_clock(tmp_path, monkeypatch, off):
    now = time.time
    monkeypatch.setattr(storage.time, "time", lambda: now() - off)
    found = storage.file_clock(asked(tmp_path))
    assert not found.ok
    assert f"are stamped {off:+.1f} s off" in found.seen
    assert "one time server" in found.remedy


def test_two_ranks_exchange(tmp_path):
    found = exchange.exchange(asked(tmp_path, ranks=2))
    assert found.ok, found
    assert found.seen.startswith("2 ranks by ")


def test_a_rank_that_fails_says_why(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('libcuda.so.1: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = exchange.exchange(asked(tmp_path))
    assert not found.ok
    assert "of 2 failed: ImportError: libcuda.so.1: cannot open shared object file" in found.seen


@pytest.mark.long
def test_ranks_that_cannot_meet(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "no-such-interface")
    found = exchange.exchange(asked(tmp_path))
    assert not found.ok
    assert "of 2 failed: " in found.seen
    assert "GLOO_SOCKET_IFNAME" in found.remedy


def test_ranks_that_wait_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "LIMIT_S", 0.05)
    found = exchange.exchange(asked(tmp_path))
    assert (found.ok, found.seen) == (False, "2 ranks have not met within 0 s")


def test_memory_and_environment_of_this_machine(tmp_path, monkeypatch):
    assert machine.shared_memory(asked(tmp_path)).ok
    monkeypatch.setattr(machine, "LEAST_MEMORY", 2**60)
    assert "sbatch --mem" in machine.memory(asked(tmp_path)).remedy


def test_the_environment_shows_named_variables_only(tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "s3cret")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    found = machine.environment(asked(tmp_path))
    assert found.ok
    assert "NCCL_DEBUG=INFO" in found.seen
    assert "s3cret" not in found.seen
    monkeypatch.setenv("RANK", "0")
    assert "unset RANK" in machine.environment(asked(tmp_path)).remedy
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert "unset OMP_NUM_THREADS" in machine.environment(asked(tmp_path)).remedy


def job(monkeypatch, **values):
    for name, value in {"SLURM_JOB_ID": "7", **values}.items():
        monkeypatch.setenv(name, value)


def test_a_job_that_uses_more_than_it_has(tmp_path, monkeypatch):
    assert slurm.slurm(asked(tmp_path)).seen.startswith("not in a job; ")
    for name in ("srun", "scontrol"):
        program(tmp_path, name, "")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    job(monkeypatch, SLURM_CPUS_ON_NODE="8", PROCESSES_PER_NODE="2")
    assert slurm.slurm(asked(tmp_path)) == Finding(True, "SLURM_JOB_ID=7, SLURM_CPUS_ON_NODE=8, PROCESSES_PER_NODE=2")
    job(monkeypatch, SLURM_CPUS_ON_NODE="4")
    assert "2 rank(s) of 4 threads on 4 core(s)" in slurm.slurm(asked(tmp_path)).seen
    job(monkeypatch, SLURM_CPUS_ON_NODE="8", SLURM_GPUS_ON_NODE="2", CUDA_VISIBLE_DEVICES="0")
    assert "do not set CUDA_VISIBLE_DEVICES in a job" in slurm.slurm(asked(tmp_path)).remedy
    (tmp_path / "srun").unlink()
    assert "no srun in PATH" in slurm.slurm(asked(tmp_path)).seen


@pytest.mark.parametrize(
    ("srun", "ok", "seen"),
    [
        ("echo 100.25; echo 101.50", True, "2 nodes agree to 1.25 s"),
        ("echo 100.0; echo 190.5", False, "the clocks of 2 nodes differ by 90.5 s"),
        ("echo 'srun: error: no node' >&2; exit 1", False, "srun cannot ask the nodes: srun: error: no node"),
    ],
)
def test_clocks_of_nodes(tmp_path, monkeypatch, srun, ok, seen):
    """`srun` is a program that prints what nodes with such clocks would."""
    assert slurm.node_clocks(asked(tmp_path)) == Finding(True, "one node")
    program(tmp_path, "srun", srun)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    job(monkeypatch, SLURM_JOB_NUM_NODES="2")
    found = slurm.node_clocks(asked(tmp_path))
    assert (found.ok, bool(found.remedy)) == (ok, not ok)
    assert seen in found.seen


def test_a_check_that_hangs_is_a_failure(tmp_path, monkeypatch):
    """`srun` waits for ever, and so does what it has started; neither is left."""
    program(tmp_path, "srun", f"sleep 600 & echo $! > {tmp_path}/pid; wait")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    job(monkeypatch, SLURM_JOB_NUM_NODES="2")
    found = look("node clocks", asked(tmp_path), limit_s=4)
    assert (found.ok, found.seen) == (False, "no answer within 4 s")
    assert "hangs" in found.remedy
    state = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    limit = time.monotonic() + 20  # what is killed ends when it is next to run
    while state.exists() and state.read_text().split()[2] != "Z":
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_a_check_that_crashes_is_a_failure(tmp_path, monkeypatch):
    job(monkeypatch, SLURM_JOB_NUM_NODES="two")
    found = look("node clocks", asked(tmp_path), limit_s=60)
    assert not found.ok
    assert "the check ended with status 1: ValueError: invalid literal for int()" in found.seen
    assert "-m dist_moe.doctor 'node clocks'" in found.remedy


def test_each_check_is_registered_with_a_limit():
    assert {"versions", "gpus", "exchange", "compiler", "extensions", "disk", "shared memory", "run directory",
            "file clock", "node clocks", "slurm", "memory", "environment"} == {*CHECKS}  # fmt: skip
    assert all(0 < check.limit_s <= 200 for check in CHECKS.values())
