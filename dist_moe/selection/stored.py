"""The rule of a mask store: a store keeps its name and parameters, and knows no rules."""

from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.rules import Rule, from_facts
from dist_moe.store.files import damaged
from dist_moe.store.read import MaskStore


def stored_rule(store: MaskStore) -> Rule:
    """The rule that has selected the masks.

    Raises:
        UserError: the store names no rule of this version, or one with a parameter that is wrong.
    """
    try:
        return from_facts(store.selection_rule, "its attributes")
    except UserError as error:
        raise damaged(str(store.path), str(error)) from None


def open_masks(path: str | Path) -> MaskStore:
    """A store as `MaskStore.open_whole` opens it, whose rule is one that there is.

    Raises:
        UserError: as `MaskStore.open_whole` and `stored_rule`.
    """
    store = MaskStore.open_whole(path)
    stored_rule(store)
    return store
