"""What a view is, and how a batch is looked up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from dist_moe.errors import UserError
from dist_moe.store.read import BatchInfo, MaskStore

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Table: TypeAlias = "pd.DataFrame | Mapping[str, np.ndarray | Sequence[Any]]"
"""Columns of one length by name; a table of pandas is one, too."""


@dataclass(frozen=True, slots=True)
class View:
    """An answer: named facts (JSON values), and tables by title, the main table first."""

    facts: Mapping[str, Any]
    tables: Mapping[str, Table]


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
