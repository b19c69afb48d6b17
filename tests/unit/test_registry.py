"""A module of a package is all that a name needs; parameters of one name are one setting; values are looked at."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from dist_moe.errors import UserError
from dist_moe.ranges import Count, Share
from dist_moe.registry import Registry, field_docs, parameters, require_values

MODULE = """
from __future__ import annotations
from dataclasses import dataclass
from {package} import SHAPES

@SHAPES.register
@dataclass(frozen=True, kw_only=True)
class Shape:
    name = "{name}"
    {field}
"""
SIDES = "sides: int = 4\n    '''How many\n    there are.'''"


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """A function that makes a package of modules, each of which registers a class with this field."""
    package = f"shapes_of_{tmp_path.name.replace('-', '_')}"

    def make(**fields_of):
        folder = tmp_path / package
        folder.mkdir()
        (folder / "__init__.py").write_text(
            f"from dist_moe.registry import Registry\nSHAPES = Registry('shape', '{package}')\n"
        )
        for name, field in fields_of.items():
            (folder / f"{name}.py").write_text(MODULE.format(package=package, name=name, field=field))
        return __import__(package).SHAPES

    monkeypatch.syspath_prepend(tmp_path)
    yield make
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def test_every_module_of_the_package_registers_itself(shapes):
    found = shapes(square=SIDES, circle="radius: float = 1.0\n    '''Of it.'''")
    assert list(found) == ["circle", "square"]
    assert len(found) == 2
    assert found["square"]().sides == 4


def test_an_unknown_name_is_told_the_names_and_the_nearest(shapes):
    found = shapes(square=SIDES, circle=SIDES)
    assert found.find("circle") is found["circle"]
    with pytest.raises(UserError) as error:
        found.find("squre")
    assert str(error.value) == "no shape 'squre': expected one of circle, square; did you mean square?"
    with pytest.raises(UserError, match=r"no shape \['square'\]: expected one of circle, square$"):
        found.find(["square"])


def test_parameters_of_one_name_are_one_setting(shapes):
    found = shapes(square=SIDES, circle="radius: float = 1.0\n    '''Of it.'''", hexagon=SIDES).parameters()
    assert list(found) == ["radius", "sides"]
    assert found["sides"].readers == ("hexagon", "square")
    assert (found["sides"].type, found["sides"].written, found["sides"].default) == (int, "int", 4)
    assert found["sides"].help == "How many there are."


@pytest.mark.parametrize(
    "other",
    ["sides: float = 4\n    '''How many there are.'''", "sides: int = 6\n    '''How many there are.'''"]
    + ["sides: int = 4\n    '''How few there are.'''"],
)
def test_parameters_of_one_name_that_differ_are_refused(shapes, other):
    with pytest.raises(AssertionError, match="square and circle have different parameters sides"):
        shapes(square=SIDES, circle=other).parameters()


def test_a_field_without_default_or_help_is_no_parameter(shapes):
    with pytest.raises(AssertionError, match=r"Shape\.sides has no docstring"):
        shapes(square="sides: int = 4").parameters()


def test_two_classes_of_one_name_are_refused():
    found: Registry = Registry("shape", "dist_moe")

    @dataclass(frozen=True)
    class First:
        name: ClassVar[str] = "same"

    @dataclass(frozen=True)
    class Second:
        name: ClassVar[str] = "same"

    found.register(First)
    found.register(First)
    with pytest.raises(AssertionError, match="Second and First are both the shape same"):
        found.register(Second)


@dataclass(frozen=True, kw_only=True)
class Base:
    name: ClassVar[str] = "base"
    number: Count = 3
    """Inherited."""


@dataclass(frozen=True, kw_only=True)
class Own(Base):
    share: Share = 0.5
    """Own."""
    kind: Literal["a", "b"] = "a"
    """Kind."""


def test_help_is_inherited_with_the_field():
    assert field_docs(Own) == {"number": "Inherited.", "share": "Own.", "kind": "Kind."}
    assert [(each.name, each.written) for each in parameters(Own)] == [
        ("number", "Count"),
        ("share", "Share"),
        ("kind", "Literal['a', 'b']"),
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"share": float("nan")}, "share is nan: expected"),
        ({"share": float("inf")}, "share is inf: expected less than or equal to 1"),
        ({"share": "0.5"}, "share is '0.5': expected a valid number"),
        ({"share": True}, "share is True: expected a valid number"),
        ({"number": 0}, "number is 0: expected greater than or equal to 1"),
        ({"number": 2.0}, "number is 2.0: expected a valid integer"),
        ({"number": True}, "number is True: expected a valid integer"),
        ({"kind": "c"}, "kind is 'c': expected 'a' or 'b'"),
    ],
)
def test_a_value_of_another_type_or_out_of_its_range_is_refused(change, says):
    require_values(Own(share=1, number=1))
    with pytest.raises(UserError) as error:
        require_values(Own(**change))
    assert says in str(error.value)
