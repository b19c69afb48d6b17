"""By which network interface the other hosts of a job reach this one.

gloo listens at the address of the host's own name. On many systems that is a loopback address (Debian writes
`127.0.1.1 NAME` into /etc/hosts), at which ranks on other hosts wait in vain. So ranks take the address by which they
have come to the store; and those that have come by loopback, as they are on its host, the one that others came to.
"""

from __future__ import annotations

import ipaddress
import os

import psutil

NAMED = "GLOO_SOCKET_IFNAME"


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def listen_at(address: str) -> None:
    """Let gloo use the interface that has this address. Not if the user has named one, or if none has the address, as
    where addresses are translated: then the host's own name counts."""
    found = [name for name, has in psutil.net_if_addrs().items() if address in {each.address for each in has}]
    if found:
        os.environ.setdefault(NAMED, found[0])
