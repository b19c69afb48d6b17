"""Settings that a registry makes: a name of it, and the parameters of all that have one."""

from __future__ import annotations

from dataclasses import field, make_dataclass
from functools import partial
from typing import Any, Literal

from dist_moe.registry import Registry


def chosen_settings(class_name: str, key: str, registry: Registry[Any], default: str, text: str) -> type:
    """A dataclass for a section of the configuration to inherit from.

    Each field's metadata has its `help`, and its type as it is `written` in the source.

    Args:
        class_name: of the dataclass.
        key: the setting that takes one of the registry's names.
        registry: all parameters of its classes become settings; their help says which of the classes read them.
        default: a name.
        text: help of `key`.

    Raises:
        AssertionError: two of the classes differ in a parameter that both have; or, later, the section that inherits
            has a setting of its own with the name of a parameter.
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
