"""Views: questions about a mask store, each answered by facts and tables. Nothing is printed here.

A view is imported when it is asked for: pandas, which some need, takes as long to import as others take.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dist_moe.report.views.compare import check, diff
    from dist_moe.report.views.experts import aggregated, batch, category, expert
    from dist_moe.report.views.overlaps import categories, overlap, overlap_of_two
    from dist_moe.report.views.render import as_csv, as_json, as_text
    from dist_moe.report.views.rules import diff_rule, prefill
    from dist_moe.report.views.sizes import growth, layers, summary
    from dist_moe.report.views.view import Table, View, find_batch

__all__ = [
    "Table",
    "View",
    "aggregated",
    "as_csv",
    "as_json",
    "as_text",
    "batch",
    "categories",
    "category",
    "check",
    "diff",
    "diff_rule",
    "expert",
    "find_batch",
    "growth",
    "layers",
    "overlap",
    "overlap_of_two",
    "prefill",
    "summary",
]

_MODULES = {
    **dict.fromkeys(("check", "diff"), "compare"),
    **dict.fromkeys(("aggregated", "batch", "category", "expert"), "experts"),
    **dict.fromkeys(("categories", "overlap", "overlap_of_two"), "overlaps"),
    **dict.fromkeys(("as_csv", "as_json", "as_text"), "render"),
    **dict.fromkeys(("diff_rule", "prefill"), "rules"),
    **dict.fromkeys(("growth", "layers", "summary"), "sizes"),
    **dict.fromkeys(("Table", "View", "find_batch"), "view"),
}
"""Where a name is; none has the name of its module."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
