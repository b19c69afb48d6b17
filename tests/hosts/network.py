"""Two hosts on this machine: network namespaces with names, addresses and an sshd of their own, joined by a cable.

Nothing of the machine's own network or of /etc is changed. `ip netns exec` lays what is in /etc/netns/NAME over /etc
for the programs of a host, so each host has its own /etc/hosts and /etc/ssh; both are removed at the end, and every
process that was started in a host is ended. As Debian writes it, a host's own name is a loopback address in its
/etc/hosts.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("ip", "sshd", "ssh-keygen", "pdsh", "unshare")
INSTALL = "apt-get install --no-install-recommends iproute2 openssh-server openssh-client pdsh (make test-hosts does)"
NETNS = Path("/etc/netns")
START_LIMIT_S = 30

SSHD = """\
ListenAddress 0.0.0.0
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
PidFile none
"""
SSH = """\
Host *
  IdentityFile /etc/ssh/key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  ServerAliveInterval 2
  ServerAliveCountMax 3
"""


@dataclass(frozen=True, slots=True)
class Host:
    name: str
    address: str
    space: str
    """Name of its network namespace, which is also that of its end of the cable."""

    def command(self, *words: str | Path) -> list[str]:
        """A command line that runs there, in the current directory."""
        there = 'hostname "$0" && exec "$@"'
        return ["ip", "netns", "exec", self.space, "unshare", "--uts", "sh", "-c", there, self.name, *map(str, words)]

    @property
    def processes(self) -> list[int]:
        return [int(each) for each in _call("ip", "netns", "pids", self.space).split()]

    def cut(self) -> None:
        """Take the cable out: packets are lost, and nobody is told."""
        _call("ip", "-n", self.space, "link", "set", self.space, "down")

    def mend(self) -> None:
        _call("ip", "-n", self.space, "link", "set", self.space, "up")


@contextmanager
def two_hosts(directory: Path) -> Iterator[tuple[Host, Host]]:
    """Context manager: host0 and host1, which reach each other by name and by ssh; their logs are in `directory`."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=search_path()) is None]
    if missing:
        raise FileNotFoundError(f"no {', '.join(missing)} on PATH: two hosts are tested here; {INSTALL}")
    if os.geteuid() != 0:
        raise PermissionError("two hosts are network namespaces, which only root can make: run these tests as root")
    mark = secrets.token_hex(3)
    hosts = Host("host0", "10.213.7.1", f"dm{mark}0"), Host("host1", "10.213.7.2", f"dm{mark}1")
    with ExitStack() as stack:
        for host in hosts:
            stack.enter_context(_space(host))
        _call("ip", "link", "add", hosts[0].space, "netns", hosts[0].space, "type", "veth",
              "peer", "name", hosts[1].space, "netns", hosts[1].space)  # fmt: skip
        key = directory / "key"
        _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        for host in hosts:
            _call("ip", "-n", host.space, "link", "set", "lo", "up")
            _call("ip", "-n", host.space, "address", "add", f"{host.address}/24", "dev", host.space)
            host.mend()
            _write_etc(host, hosts, key)
            stack.enter_context(_sshd(host, directory))
        for one, other in (hosts, hosts[::-1]):
            _wait_for_ssh(one, other, directory)
        yield hosts[0], hosts[1]


def search_path() -> str:
    """PATH with the system's programs, which Debian leaves out for ordinary users."""
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


@contextmanager
def _space(host: Host) -> Iterator[None]:
    _call("ip", "netns", "add", host.space)
    try:
        yield
    finally:
        while left := host.processes:
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)
        _call("ip", "netns", "delete", host.space)
        shutil.rmtree(NETNS / host.space, ignore_errors=True)
        with suppress(OSError):
            NETNS.rmdir()  # others may have something there


def _write_etc(host: Host, hosts: tuple[Host, ...], key: Path) -> None:
    etc = NETNS / host.space
    (etc / "ssh").mkdir(parents=True)
    names = ["127.0.0.1 localhost", f"127.0.1.1 {host.name}"]
    names += [f"{each.address} {each.name}" for each in hosts if each is not host]
    (etc / "hosts").write_text("\n".join(names) + "\n")
    (etc / "ssh" / "sshd_config").write_text(SSHD)
    (etc / "ssh" / "ssh_config").write_text(SSH)
    for name, source in (("key", key), ("host_key", key), ("key.pub", key.with_suffix(".pub"))):
        shutil.copy(source, etc / "ssh" / name)


@contextmanager
def _sshd(host: Host, directory: Path) -> Iterator[None]:
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with (directory / f"sshd-{host.name}.log").open("w") as log:
        process = subprocess.Popen(host.command("/usr/sbin/sshd", "-D", "-e"), stdout=log, stderr=log)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _wait_for_ssh(one: Host, other: Host, directory: Path) -> None:
    end = time.monotonic() + START_LIMIT_S
    ask = one.command("ssh", "-o", "ConnectTimeout=3", other.name, "hostname")
    while (done := subprocess.run(ask, capture_output=True, text=True, timeout=20, check=False)).returncode:
        if time.monotonic() > end:
            logs = "\n".join(path.read_text()[-2000:] for path in directory.glob("sshd-*.log"))
            raise TimeoutError(f"no ssh from {one.name} to {other.name}: {done.stderr}\n{logs}")
        time.sleep(0.2)
    assert done.stdout.strip() == other.name, done


def _call(*command: str) -> str:
    environment = os.environ | {"PATH": search_path()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout
