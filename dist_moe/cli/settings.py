"""The settings as the help of commands shows them, without importing what defines them.

settings.json holds what `dist_moe.config.describe` says of the package's own rules, judges and terms, so that help and
completion need neither NumPy nor pydantic; `make docs` writes it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dist_moe.described import Described

FILE = Path(__file__).with_name("settings.json")
REGISTRIES = ("judges", "objective", "rules")
"""Packages whose modules add settings."""


def shown_settings() -> list[Described]:
    """Every setting; from the definitions themselves where somebody has added a module, or may have registered a
    class in this process."""
    found = json.loads(FILE.read_bytes())
    if found["modules"] != _modules() or any(f"dist_moe.{package}" in sys.modules for package in REGISTRIES):
        found = as_stored()
    return [Described(**each | {"choices": tuple(each["choices"])}) for each in found["settings"]]


def as_stored() -> dict[str, Any]:
    """What settings.json has to hold."""
    from dist_moe.config.describe import described

    settings = [asdict(each) | {"choices": list(each.choices)} for each in described()]
    return {"modules": _modules(), "settings": settings}


def _modules() -> list[str]:
    folders = (FILE.parent.parent / package for package in REGISTRIES)
    return sorted(f"{folder.name}.{file.stem}" for folder in folders for file in folder.glob("*.py"))
