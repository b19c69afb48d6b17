"""Two kinds of stores, each one Zarr v3 group: what was measured (`Counts`), and what was selected from it
(`MaskStore`).

`write_store` writes a whole store; `StoreWriter` lets many processes write one. `require_same_origin` checks that masks
belong to a run. docs/formats.md describes both formats. Uses NumPy, pandas and Zarr only: stores are read without
torch.
"""

from dist_moe.store.counts import Counts
from dist_moe.store.counts_plan import CountsPlan
from dist_moe.store.mask_plan import MaskPlan, MaskResults
from dist_moe.store.origin import require_same_origin
from dist_moe.store.read import BatchInfo, MaskStore
from dist_moe.store.write import StoreWriter, write_store

__all__ = [
    "BatchInfo",
    "Counts",
    "CountsPlan",
    "MaskPlan",
    "MaskResults",
    "MaskStore",
    "StoreWriter",
    "require_same_origin",
    "write_store",
]
