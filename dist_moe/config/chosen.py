"""Makes the configuration settings of registered classes: one that names a class, and all parameters of the classes."""

from __future__ import annotations

from dataclasses import field, make_dataclass
from functools import partial
from typing import Any, Literal

from dist_moe.registry import Registry


def chosen_settings(class_name: str, key: str, registry: Registry[Any], default: str, text: str) -> type:
    """Make a dataclass with these settings, from which a section of the configuration inherits.

    The metadata of each field has its `help`, and under `written` its type as in the source text.

    Args:
        class_name: name of the new dataclass.
        key: name of the setting that takes the name of a registered class.
        registry: the parameters of all its classes become settings; their help says which classes read them.
        default: default value of `key`.
        text: help of `key`.

    Raises:
        AssertionError: two classes have parameters of the same name that differ; or, later, the inheriting section has
            a setting with the name of a parameter.
    """
    names = Literal[tuple(registry)]  # type: ignore[valid-type]  # not known before all modules are loaded
    written = f"Literal[{', '.join(map(repr, registry))}]"
    fields = [_field(key, names, default, text, written)]
    for each in registry.parameters().values():
        readers = f"Read by {', '.join(each.readers)}."
        fields.append(_field(each.name, each.type, each.default, f"{each.help} {readers}", each.written))
    made = make_dataclass(class_name, fields, kw_only=True, slots=True)
    made.__init_subclass__ = classmethod(partial(_require_other_names, {name for name, *_ in fields}, registry.what))  # type: ignore[assignment]
    return made


def _require_other_names(names: set[str], what: str, section: type) -> None:
    both = names & section.__annotations__.keys()
    assert not both, f"{section.__name__}.{min(both)} is a setting already: a {what} must name its parameter otherwise"


def _field(name: str, kind: Any, default: Any, text: str, written: str) -> tuple[str, Any, Any]:
    return name, kind, field(default=default, metadata={"help": text, "written": written})
