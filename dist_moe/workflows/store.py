"""`dist-moe store check|copy|diff|export`: verify, copy and compare whole stores, and write them for older scripts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.files import atomic_directory
from dist_moe.report import views
from dist_moe.selection.stored import open_masks, stored_rule
from dist_moe.selection.structure import write_structure
from dist_moe.store import Counts, MaskStore
from dist_moe.store.copy import copy_store
from dist_moe.store.files import ADVICE
from dist_moe.store.layout import COUNTS
from dist_moe.store.root import kind_at
from dist_moe.store.source import open_source
from dist_moe.store.store import Store

log = logging.getLogger(__name__)


def check_stores(places: Sequence[str]) -> int:
    """Compare every file with its digest; returns 0 if all stores are undamaged, else 1.

    Raises:
        UserError: there is no store at one of the places.
    """
    status = 0
    for place in places:
        try:
            store = _type(place).open(place)
            if isinstance(store, MaskStore):
                stored_rule(store)
            damage = store.damage()
            if not damage:
                store.check_plan()
        except UserError as error:
            if not any(words in str(error) for words in (" is damaged: ", " is incomplete, ")):
                raise
            log.info(str(error))
            status = 1
            continue
        for each in damage:
            log.info(f"{place}: array {each.array}: {each.file} {each.how}")
        if damage:
            status = 1
            log.info(f"{place} is damaged: {len(damage)} files; {ADVICE}")
        else:
            log.info(f"{place} is whole: {len(store.batch_ids)} batches, digest {store.digest}")
    return status


def copy_to(store: str, place: str) -> int:
    """Copy a store from and to a directory or URL.

    Raises:
        UserError: the store is incomplete or damaged, `place` exists, or it cannot be written.
    """
    copy_store(_open(store), place)
    copied = _type(place).open(place)
    log.info(f"{place}: {len(copied.batch_ids)} batches of {store}, digest {copied.digest}")
    return 0


def export_structure(place: str, out: Path) -> int:
    """Write a mask store's lists, masks and tables as older scripts expect them, into the new directory `out`.

    Raises:
        UserError: the store or its counts are missing, incomplete or damaged, or `out` exists.
    """
    store = open_masks(place)
    with atomic_directory(out) as directory:
        write_structure(directory, store)
    log.info(f"{out}: lists and masks of {len(store.batch_ids)} batches, and the table of all experts")
    return 0


def diff_stores(first: str, second: str, *, as_json: bool) -> int:
    """Log how two stores differ; returns 0 if they are equal, else 1.

    Raises:
        UserError: one is incomplete or damaged, or they are of different models.
    """
    view = views.diff(open_masks(first), open_masks(second))
    log.info(views.as_json(view) if as_json else views.as_text(view))
    return 0 if view.facts["same"] else 1


def _type(place: str) -> type[Store]:
    return Counts if kind_at(open_source(place)) is COUNTS else MaskStore


def _open(place: str) -> Store:
    return Counts.open_whole(place) if _type(place) is Counts else open_masks(place)
