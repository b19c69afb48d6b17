"""The lines that `dist-moe verify` prints."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from dist_moe.stats.names import expert_name
from dist_moe.weights.verify import Verification

SHOWN_VIOLATIONS = 20


def verification_lines(seen: Verification) -> Iterator[str]:
    """What was compared, what has changed, and what should not have changed."""
    yield f"Compared {seen.num_tensors} tensors ({seen.num_bytes / 1e6:,.1f} MB) of {seen.model} with {seen.base}"
    yield (
        f"Changed: {len(seen.changed_tensors)} tensors, {len(seen.changed_experts)} experts; "
        f"the union has {seen.num_union} of {seen.num_experts} experts"
    )
    if seen.num_dense:
        yield f"Dense tensors changed: {len(seen.changed_dense)} of {seen.num_dense} that may be"
    for _, experts in groupby(sorted(seen.changed_experts), lambda expert: expert[0]):  # a line for each layer
        yield "  " + " ".join(expert_name(*expert) for expert in experts)
    if seen.unread:
        yield f"Not read by transformers, so not compared: {', '.join(seen.unread)}"
    for line in seen.violations[:SHOWN_VIOLATIONS]:
        yield f"VIOLATION {line}"
    if len(seen.violations) > SHOWN_VIOLATIONS:
        yield f"... and {len(seen.violations) - SHOWN_VIOLATIONS} more"
    if seen.holds:
        also = " and these dense tensors" if seen.num_dense else ""
        yield f"Verified: every bit outside the union's experts{also} is the base's"
    else:
        also = " and the dense tensors that may differ" if seen.num_dense else ""
        yield f"NOT verified: {len(seen.violations)} differences outside the union{also}"
