"""Versions of libraries with which the tests were run."""

from __future__ import annotations

TESTED = {
    "torch": ("2.11", "2.13"),
    "transformers": ("5.17", "5.23"),
    "deepspeed": ("0.19", "0.19"),
    "zarr": ("3.1", "3.1"),
}
"""First and last tested minor version of each. All tests run with the last."""
PYTHON = ("3.11", "3.13")


def minor(version: str) -> tuple[int, int]:
    """The first two numbers of a version, to compare: "2.13.0+cpu" -> (2, 13)."""
    first, second = version.split(".")[:2]
    return int(first), int("".join(c for c in second if c.isdigit()) or 0)


def is_tested(version: str, tested: tuple[str, str]) -> bool:
    """Whether a version is in a range of minor versions, ends included."""
    return minor(tested[0]) <= minor(version) <= minor(tested[1])
