"""Which interface gloo is told to use."""

from __future__ import annotations

import os

import pytest

from dist_moe.parallel.interface import NAMED, is_loopback, listen_at


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAMED, "")  # so that it is restored, whatever is set here
    monkeypatch.delenv(NAMED)


def named() -> str | None:
    return os.environ.get(NAMED)


def test_the_interface_of_the_address_is_named() -> None:
    listen_at("127.0.0.1")
    assert named() == "lo"


def test_what_the_user_has_named_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAMED, "eth7")
    listen_at("127.0.0.1")
    assert named() == "eth7"


def test_an_address_of_no_interface_names_none() -> None:
    listen_at("203.0.113.7")
    assert named() is None


@pytest.mark.parametrize(
    ("address", "is_it"),
    [("127.0.0.1", True), ("127.0.1.1", True), ("::1", True), ("10.0.0.7", False), ("fe80::1%eth0", False)],
)
def test_loopback(address: str, is_it: bool) -> None:
    assert is_loopback(address) == is_it
