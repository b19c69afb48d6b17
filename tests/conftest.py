"""Says which versions a run is with, and what it leaves out because of them."""

from importlib.metadata import version
from pathlib import Path


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
