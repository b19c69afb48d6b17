"""A model's summary, as `dist-moe inspect-model` prints it."""

from __future__ import annotations

from collections.abc import Iterator

from dist_moe.moe.summary import ModelSummary


def table(summary: ModelSummary) -> Iterator[str]:
    """One line for each fact."""
    for name in summary.__slots__:
        value = getattr(summary, name)
        if isinstance(value, bool):
            value = "yes" if value else "no"
        elif "bytes" in name:
            value = f"{value:,} ({value / 2**20:,.1f} MiB)"
        elif isinstance(value, int):
            value = f"{value:,}"
        yield f"{name.replace('_', ' '):<19}{value}"
