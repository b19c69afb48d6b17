"""`dist-moe families`: tests which model types work with the installed transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches

import torch
import transformers

from dist_moe.conformance.sweep import Support, sweep
from dist_moe.conformance.types import moe_model_types
from dist_moe.errors import UserError, shown


def families(model_types: Sequence[str]) -> Iterator[Support]:
    """Test every capability on these model types, or on all; yields each result when it is asked for."""
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
    return sweep(model_types or known)
