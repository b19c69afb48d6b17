"""Mask stores as wholes: what `dist-moe store check|repair|copy|diff` run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.report import views
from dist_moe.select.stored import open_masks, stored_rule
from dist_moe.store import MaskStore
from dist_moe.store.copy import copy_store
from dist_moe.store.repair import repair

log = logging.getLogger(__name__)


def check_stores(places: Sequence[str]) -> int:
    """Compare every file with its digest; 0 if all stores are whole, 1 if one is damaged or incomplete.

    Raises:
        UserError: there is no mask store at one of the places.
    """
    status = 0
    for place in places:
        try:
            store = MaskStore.open(place)
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
            log.info(f"{place} is damaged: {len(damage)} files; dist-moe store repair {place} restores what can be")
        else:
            log.info(f"{place} is whole: {len(store.batch_ids)} batches, digest {store.digest}")
    return status


def repair_store(place: Path, out: Path | None) -> int:
    """Restore a damaged store as a new one; 0 if it is whole after that.

    Raises:
        UserError: something is lost for good, or `out` exists.
    """
    store = MaskStore.open(place)
    stored_rule(store)
    out = out or place.with_name(f"{place.name}.repaired")
    if not store.damage():
        store.check_plan()
        log.info(f"{place} is whole: there is nothing to repair")
        return 0
    done = repair(store, out)
    for each in done.damage:
        log.info(f"array {each.array}: {each.file} {each.how}")
    if done.recomputed:
        log.info(f"Computed from the prompt counts: {', '.join(done.recomputed)}")
    proof = "every byte is as it was written" if done.exact else "its digest is another: another version wrote it"
    log.info(f"{out} is whole ({proof}); {place} is as it was")
    return 0


def copy_to(store: str, place: str) -> int:
    """Copy a whole store, from and to a directory or URL.

    Raises:
        UserError: there is no whole store, there is something at `place`, or it cannot be written.
    """
    copy_store(open_masks(store), place)
    copied = MaskStore.open(place)
    log.info(f"{place}: {len(copied.batch_ids)} batches of {store}, digest {copied.digest}")
    return 0


def diff_stores(first: str, second: str, *, as_json: bool) -> int:
    """Log in what two stores differ; 0 if in nothing, else 1.

    Raises:
        UserError: one is no whole store, or they are of different models.
    """
    view = views.diff(open_masks(first), open_masks(second))
    log.info(views.as_json(view) if as_json else views.as_text(view))
    return 0 if view.facts["same"] else 1
