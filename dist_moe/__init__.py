"""dist_moe: find the experts of a mixture-of-experts model that answer for unsafe behaviour, and repair only them.

Importing the package is cheap: it loads no torch, no transformers, no zarr and no engine. The functions of
`dist_moe.api` and what they take and return are loaded when they are first named; import everything else from its room.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dist_moe.version import __version__ as __version__

if TYPE_CHECKING:
    from dist_moe.api import (
        RoutingCallback,
        analyze,
        apply,
        compare,
        count,
        difference,
        evaluate,
        evaluate_alphas,
        export,
        older_structure,
        select,
        train,
        verify,
        write_report,
    )
    from dist_moe.config import Config, load_config
    from dist_moe.errors import UserError
    from dist_moe.store import Counts, MaskStore

__all__ = [
    "Config",
    "Counts",
    "MaskStore",
    "RoutingCallback",
    "UserError",
    "analyze",
    "apply",
    "compare",
    "count",
    "difference",
    "evaluate",
    "evaluate_alphas",
    "export",
    "load_config",
    "older_structure",
    "select",
    "train",
    "verify",
    "write_report",
]

_MODULES = {"Config": "config", "load_config": "config", "Counts": "store", "MaskStore": "store", "UserError": "errors"}
"""Where a name is, if not in `dist_moe.api`."""

logging.getLogger(__name__).addHandler(logging.NullHandler())  # a library prints nothing unasked


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
