"""The description of a setting, for help, completion and pages. It imports nothing, so that help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Described:
    """Description of one setting."""

    key: str
    """Dotted name, such as `train.lr`."""
    kind: str
    """Type as shown to users: `FLOAT`, `route|update`, `PATH ...`."""
    choices: tuple[str, ...]
    """All possible values, if there are few; else empty."""
    required: bool
    default: Any
    """The default as a plain YAML value; None if the setting is required."""
    help: str

    @property
    def section(self) -> str:
        """First part of the key; "" for top-level settings."""
        return self.key.partition(".")[0] if "." in self.key else ""
