"""Settings that a registry makes, and what they may not be called."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, get_args, get_type_hints

import pytest

from dist_moe.config.chosen import chosen_settings
from dist_moe.ranges import Count
from dist_moe.registry import Registry

SHAPES: Registry = Registry("shape", "tests.unit.config")
SHAPES._is_loaded = True  # no modules of a package: all are here


@SHAPES.register
@dataclass(frozen=True, kw_only=True)
class Square:
    name: ClassVar[str] = "square"
    sides: Count = 4
    """How many there are."""


@SHAPES.register
@dataclass(frozen=True, kw_only=True)
class Circle:
    name: ClassVar[str] = "circle"


def test_a_name_and_all_parameters_are_settings():
    made = chosen_settings("ShapeSettings", "shape", SHAPES, "square", "Which.")

    @dataclass(kw_only=True, slots=True)
    class Section(made):
        other: int = 1

    assert get_args(get_type_hints(Section, localns={"made": made})["shape"]) == ("circle", "square")
    assert (Section().shape, Section(sides=7).sides, Section().other) == ("square", 7, 1)
    helps = {field.name: field.metadata.get("help") for field in fields(Section)}
    assert helps == {"shape": "Which.", "sides": "How many there are. Read by square.", "other": None}


@pytest.mark.parametrize("name", ["shape", "sides"])
def test_a_section_has_no_setting_of_the_same_name(name):
    made = chosen_settings("ShapeSettings", "shape", SHAPES, "square", "Which.")
    with pytest.raises(AssertionError, match=rf"Section\.{name} is a setting already: a shape must name its parameter"):
        type("Section", (made,), {"__annotations__": {name: "int"}, name: 3})
