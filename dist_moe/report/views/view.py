"""What a view is, and how a batch is looked up."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dist_moe.errors import UserError
from dist_moe.store.read import BatchInfo, MaskStore


@dataclass(frozen=True, slots=True)
class View:
    """An answer: named facts (JSON values), and tables by title, the main table first."""

    facts: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]


def find_batch(store: MaskStore, key: str) -> BatchInfo:
    """The batch with this index ("3") or id.

    Raises:
        UserError: there is no such batch.
    """
    for batch in store.batches:
        if key in (str(batch.index), batch.id):
            return batch
    last = len(store.batches) - 1
    raise UserError(f"no batch {key!r} in {store.path}: expected an index from 0 to {last}, or a batch's id")
