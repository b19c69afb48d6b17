"""Says which versions a run is with, and what it leaves out because of them; gives tests a place at a URL."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.buckets import Bucket, bucket_at


def pytest_report_header() -> list[str]:
    """With another transformers than the pinned one, also the model types of the tests that it cannot make."""
    lines = [f"torch {version('torch')}, transformers {version('transformers')}"]
    pins = (Path(__file__).resolve().parents[1] / "constraints.txt").read_text(encoding="utf-8").split()
    if f"transformers=={version('transformers')}" not in pins:
        from dist_moe.conformance.sizes import ALL_CONFIGS, EVERY_TYPE, FAMILY_CONFIGS, SUPPORTED_FROM

        names = sorted(EVERY_TYPE - ALL_CONFIGS.keys() | SUPPORTED_FROM.keys() - FAMILY_CONFIGS.keys())
        lines.append(
            "left out, as this transformers does not know them or has no experts interface for them: "
            + (", ".join(names) or "nothing")
        )
    return lines


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bucket", help="run the tests of places at URLs alone, with their files there: s3://bucket")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("bucket") is not None:
        items[:] = [item for item in items if "bucket" in getattr(item, "fixturenames", ())]


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> Iterator[Bucket]:
    """An empty place at a URL: in memory, or below `--bucket`."""
    with bucket_at(request.config.getoption("bucket") or "memory://bucket") as found:
        yield found
