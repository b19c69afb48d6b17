"""Reads the selection rule of a mask store. (The store keeps its name and parameters, but does not know any rules.)"""

from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.rules import Rule, from_facts
from dist_moe.store.files import damaged
from dist_moe.store.read import MaskStore


def stored_rule(store: MaskStore) -> Rule:
    """The rule that selected the masks.

    Raises:
        UserError: the store names a rule or a parameter that this version does not have.
    """
    try:
        return from_facts(store.selection_rule, "its attributes")
    except UserError as error:
        raise damaged(str(store.path), str(error)) from None


def open_masks(path: str | Path) -> MaskStore:
    """Open a store with `MaskStore.open_whole`, and check that its rule exists.

    Raises:
        UserError: as `MaskStore.open_whole` and `stored_rule`.
    """
    store = MaskStore.open_whole(path)
    stored_rule(store)
    return store
