"""Which model types work with the installed transformers: what `dist-moe families` runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from difflib import get_close_matches

import torch
import transformers

from dist_moe.conformance.sweep import sweep, table
from dist_moe.conformance.types import moe_model_types
from dist_moe.errors import UserError, shown

log = logging.getLogger(__name__)


def families(model_types: Sequence[str], *, as_json: bool) -> None:
    """Try every capability on these model types, or on all, and log the table, as Markdown or JSON."""
    known = moe_model_types()
    for name in model_types:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            expected = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
            raise UserError(
                f"{shown(name)} is no MoE causal language model type of transformers {transformers.__version__}: "
                f"{expected}"
            )
    torch.set_num_threads(1)  # the models are so small that more would wait for each other
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows = sweep(model_types or known)
    if as_json:
        log.info(json.dumps([row.record() for row in rows], indent=1))
        return
    for line in table(rows):
        log.info(line)
