"""Names of experts and batches in tables, messages and files."""

import re

from dist_moe.errors import UserError


def expert_name(layer: int, expert: int) -> str:
    """`(8, 42)` -> `"L08_E42"`; at least two digits each. `layer` counts MoE layers only."""
    return f"L{layer:02d}_E{expert:02d}"


def parse_expert_name(name: str) -> tuple[int, int]:
    """`"L08_E42"` -> `(8, 42)`.

    Raises:
        UserError: `name` has another form.
    """
    match = re.fullmatch(r"L([0-9]+)_E([0-9]+)", name)
    if match is None:
        raise UserError(f"{name!r} is not the name of an expert: expected the form L08_E42 (MoE layer 8, expert 42)")
    return int(match[1]), int(match[2])


def batch_name(index: int, category: str, batch_id: str) -> str:
    """`(3, "hacking", "1f2e3d4c5b6a7988")` -> `"batch 3 (hacking, 1f2e3d4c5b6a)"`."""
    return f"batch {index} ({category}, {batch_id[:12]})"
