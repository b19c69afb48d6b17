"""Registries: classes that a setting chooses by name (rules, loss terms, trackers, judges). Each registers itself.

    RULES: Registry[Rule] = Registry("selection rule", "dist_moe.rules")

    @RULES.register
    @dataclass(frozen=True, kw_only=True)
    class Lowest(Rule):
        name = "lowest"
        top_k: Count = 50
        "Help."

The modules of the package are imported when the registry is first used, so a new module is enough to add a class. The
fields of a class are its parameters: each has a type with its range, a default, and a docstring, which is its help.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from itertools import pairwise
from pkgutil import iter_modules
from typing import Any, ClassVar, Protocol, TypeVar, cast, get_type_hints

from pydantic import TypeAdapter, ValidationError

from dist_moe.errors import UserError, shown


class Named(Protocol):
    """A class with a name."""

    name: ClassVar[str]


Kind = TypeVar("Kind", bound=Named)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of one or several registered classes."""

    name: str
    type: Any
    """Type with its range, as `Annotated`."""
    written: str
    """The type as in the source text."""
    default: Any
    help: str
    readers: tuple[str, ...]
    """Names of the classes that have it, sorted."""


class Registry(Mapping[str, type[Kind]]):
    """Maps names to classes, sorted by name."""

    def __init__(self, what: str, package: str) -> None:
        """`what` is what messages call such a class; `package` has the modules that register classes."""
        self.what, self._package = what, package
        self._classes: dict[str, type[Kind]] = {}
        self._is_loaded = False

    def register(self, cls: type[Kind]) -> type[Kind]:
        """Decorator, above `@dataclass`."""
        assert hasattr(cls, "__dataclass_fields__"), f"{cls.__name__} is no dataclass"
        other = self._classes.setdefault(cls.name, cls)
        assert other is cls, f"{cls.__name__} and {other.__name__} are both the {self.what} {cls.name}"
        return cls

    def find(self, name: object) -> type[Kind]:
        """The class of this name.

        Raises:
            UserError: there is none; lists the names, and suggests the most similar one.
        """
        if isinstance(name, str) and name in self:
            return self[name]
        nearest = get_close_matches(name, self, n=1) if isinstance(name, str) else []
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise UserError(f"no {self.what} {shown(name)}: expected one of {', '.join(self)}{hint}")

    def parameters(self) -> dict[str, Parameter]:
        """The parameters of all classes together, in the order of their first reader. Those of the same name are one
        setting.

        Raises:
            AssertionError: two classes have parameters of the same name that differ in type, default or help.
        """
        found: dict[str, Parameter] = {}
        for name, cls in self.items():
            for own in parameters(cls):
                known = found.get(own.name)
                if known is not None:
                    same = (known.type, known.default, known.help) == (own.type, own.default, own.help)
                    assert same, f"{self.what}: {name} and {known.readers[0]} have different parameters {own.name}"
                readers = (*(known.readers if known else ()), name)
                found[own.name] = Parameter(own.name, own.type, own.written, own.default, own.help, readers)
        return found

    def __getitem__(self, name: str) -> type[Kind]:
        return self._loaded()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._loaded()))

    def __len__(self) -> int:
        return len(self._loaded())

    def _loaded(self) -> dict[str, type[Kind]]:
        if not self._is_loaded:
            self._is_loaded = True
            for module in iter_modules(import_module(self._package).__path__):
                import_module(f"{self._package}.{module.name}")
        return self._classes


def parameters(cls: type[Named]) -> list[Parameter]:
    """The parameters of one class.

    Raises:
        AssertionError: one has no default, or no docstring.
    """
    types, helps = get_type_hints(cls, include_extras=True), field_docs(cls)
    found = []
    for field in fields(cls):  # type: ignore[arg-type]  # a registered class is a dataclass
        assert field.default is not MISSING, f"{cls.__name__}.{field.name} has no default"
        assert field.name in helps, f"{cls.__name__}.{field.name} has no docstring under it"
        written = field.type if isinstance(field.type, str) else str(field.type)
        found.append(Parameter(field.name, types[field.name], written, field.default, helps[field.name], (cls.name,)))
    return found


def field_docs(cls: type) -> dict[str, str]:
    """The docstrings of a dataclass' fields, including inherited ones, each on one line."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if is_dataclass(base) and base.__module__ != "types":  # of make_dataclass there is no source text
            found |= _own_docs(base)
    return found


@lru_cache
def _own_docs(cls: type) -> dict[str, str]:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    return {
        statement.target.id: " ".join(following.value.value.split())
        for statement, following in pairwise(node.body)
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and isinstance(following, ast.Expr)
        and isinstance(following.value, ast.Constant)
        and isinstance(following.value.value, str)
    }


def require_values(settings: object) -> None:
    """Compare every field of a dataclass with its type and range, strictly: "3" is not a number, true is not 1.

    Raises:
        UserError: names the first wrong field.
    """
    for name, adapter in _adapters(cast(Any, type(settings))).items():
        value = getattr(settings, name)
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            said = error.errors()[0]["msg"].replace("Input should be", "expected")
            raise UserError(f"{name} is {shown(value)}: {said}") from None


@lru_cache
def _adapters(cls: Any) -> dict[str, TypeAdapter[Any]]:
    types = get_type_hints(cls, include_extras=True)
    return {field.name: TypeAdapter(types[field.name]) for field in fields(cls)}
