"""The mask store: one Zarr v3 group with everything that the analysis found and where it came from.

`write_store` writes it whole or not at all, `StoreWriter` in parts by many processes; `MaskStore` reads it,
`require_same_origin` compares it with a run, `dist_moe.report.views` answers questions about it. The format is
described in docs/formats.md. NumPy, pandas and Zarr only: a store is read without torch.
"""

from dist_moe.store.contents import BatchResults, StorePlan
from dist_moe.store.origin import require_same_origin
from dist_moe.store.read import BatchInfo, MaskStore
from dist_moe.store.write import StoreWriter, write_store

__all__ = [
    "BatchInfo",
    "BatchResults",
    "MaskStore",
    "StorePlan",
    "StoreWriter",
    "require_same_origin",
    "write_store",
]
