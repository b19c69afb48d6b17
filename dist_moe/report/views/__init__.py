"""Views: questions about a mask store, each answered by facts and tables. Nothing is printed here."""

from dist_moe.report.views.compare import check, diff
from dist_moe.report.views.experts import aggregated, batch, category, expert
from dist_moe.report.views.overlap import categories, growth, overlap, overlap_of_two
from dist_moe.report.views.render import as_csv, as_json, as_text
from dist_moe.report.views.rules import diff_rule, prefill
from dist_moe.report.views.sizes import layers, summary
from dist_moe.report.views.view import View, find_batch

__all__ = [
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
