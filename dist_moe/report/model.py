"""What is printed about a model: a checkpoint's summary (`dist-moe inspect-model`), and how a loaded one is used."""

from __future__ import annotations

from collections.abc import Iterator

from dist_moe.model.model import MoEModel
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


def forward_passes(model: MoEModel) -> Iterator[str]:
    """Lines about the forward passes of a loaded model, if something about them is unusual."""
    if model.rows_alone:
        family = model.module.config.model_type
        yield f"One row a forward pass: in a padded row the sparse attention of '{family}' chooses other tokens"
    if model.originals is not None:
        megabytes = 1e-6 * model.originals.num_bytes
        also = " and of the trained dense weights" if model.dense else ""
        yield f"Base model: frozen copies of the union's experts{also}, {megabytes:,.1f} MB on this rank"
