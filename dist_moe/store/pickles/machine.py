"""Reads a pickle as data. Nothing is imported or called, because there is nothing here that could.

A pickle is a program for a small stack machine, and Python's own runs whatever the program names. This one knows only
the instructions that build values. A name from the list of known ones becomes a `Name`, a call of it a `Call`: records
of what the file says, never the thing. Any other name, and any other instruction, ends the reading.
"""

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dist_moe.errors import UserError

NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
PANDAS = (
    *("pandas", "pandas.arrays", "pandas._libs.internals", "pandas.core.frame", "pandas.core.internals"),
    *("pandas.core.internals.managers", "pandas.core.indexes.base", "pandas.core.indexes.range"),
    *("pandas.core.indexes.numeric", "pandas.core.arrays.string_", "pandas.core.arrays.string_arrow"),
)
KNOWN = {
    *((module, name) for module in NUMPY for name in ("_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer")),
    *((module, name) for module in PANDAS for name in ("DataFrame", "BlockManager", "_unpickle_block", "_new_Index")),
    *((module, name) for module in PANDAS for name in ("Index", "RangeIndex", "Int64Index", "StringDtype")),
    *((module, name) for module in PANDAS for name in ("ArrowStringArray",)),
    *(("pyarrow.lib", name) for name in ("_restore_array", "py_buffer", "type_for_alias")),
    *((module, name) for module in ("builtins", "__builtin__") for name in ("slice", "bytearray", "bytes", "set")),
    ("_codecs", "encode"),
}
"""Module and name of what NumPy arrays and pandas tables are made of, in the versions that were tried."""


@dataclass(frozen=True, slots=True)
class Name:
    """A name in the file; only the last part counts, as libraries moved their modules."""

    name: str


@dataclass(slots=True, eq=False)
class Call:
    """What the file says is made by calling a name."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


class _Mark:
    pass


MARK = _Mark()


def read_pickle(data: bytes, place: str) -> Any:
    """The value in a pickle: None, numbers, text, bytes, lists, tuples, dicts, sets, `Name`s and `Call`s.

    Args:
        data: the file.
        place: how errors call it.

    Raises:
        UserError: it is no pickle, is cut short, or holds anything else.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    position = 0
    try:
        for opcode, argument, found in pickletools.genops(io.BytesIO(data)):
            position = found or 0
            if opcode.name == "STOP":
                break
            _step(opcode.name, argument, stack, memo)
        (value,) = stack
    except _RefusedError as error:
        raise UserError(f"{place} is refused: at byte {position} it {error}: it is not only data") from None
    except (ValueError, IndexError, KeyError, TypeError, OverflowError):
        raise UserError(f"{place} is no whole pickle: it cannot be read beyond byte {position}") from None
    return value


class _RefusedError(Exception):
    """The file asks for more than values."""


def _step(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    if name in CONSTANTS:
        stack.append(CONSTANTS[name])
    elif name in LITERALS:
        stack.append(argument)
    elif name in COLLECTIONS:
        COLLECTIONS[name](stack)
    elif name in ("PROTO", "FRAME"):
        pass
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "GLOBAL":
        stack.append(_known(*argument.split(" ", 1)))
    elif name == "STACK_GLOBAL":
        last = stack.pop()
        stack.append(_known(stack.pop(), last))
    elif name in ("REDUCE", "NEWOBJ"):
        arguments, called = stack.pop(), stack.pop()
        if not isinstance(called, Name) or not isinstance(arguments, tuple):
            raise _RefusedError("calls what is no known name")
        stack.append(Call(called.name, arguments))
    elif name == "BUILD":
        state = stack.pop()
        if not isinstance(stack[-1], Call):
            raise _RefusedError("changes what was not made by a known name")
        stack[-1].state = state
    else:
        raise _RefusedError(f"has the instruction {name}")


def _known(module: Any, name: Any) -> Name:
    if not (isinstance(module, str) and isinstance(name, str)) or (module, name) not in KNOWN:
        words = f"{module}.{name}"[:120]
        raise _RefusedError(f"names {''.join(letter if letter.isprintable() else '?' for letter in words)}")
    return Name(name)


def _marked(stack: list[Any]) -> list[Any]:
    """What is above the last mark, taken from the stack with it."""
    for place in range(len(stack) - 1, -1, -1):
        if stack[place] is MARK:
            items = stack[place + 1 :]
            del stack[place:]
            return items
    raise IndexError


def _tuple_of(num: int) -> Callable[[list[Any]], None]:
    def build(stack: list[Any]) -> None:
        if len(stack) < num:
            raise IndexError
        items = tuple(stack[len(stack) - num :])
        del stack[len(stack) - num :]
        stack.append(items)

    return build


def _extend(items: list[Any], stack: list[Any]) -> None:
    if not isinstance(stack[-1], list):
        raise TypeError
    stack[-1].extend(items)


def _update(items: list[Any], stack: list[Any]) -> None:
    if not isinstance(stack[-1], dict):
        raise TypeError
    stack[-1].update(_pairs(items, stack[-1]))


def _pairs(items: list[Any], there: dict[Any, Any]) -> dict[Any, Any]:
    """Keys and values in turn; none of the keys is there already, as no dict is written with a key twice."""
    pairs = dict(zip(items[::2], items[1::2], strict=True))
    if len(pairs) * 2 < len(items) or not there.keys().isdisjoint(pairs):
        raise _RefusedError("has a key twice")
    return pairs


def _add(items: list[Any], stack: list[Any]) -> None:
    if not isinstance(stack[-1], set):
        raise TypeError
    stack[-1].update(items)


CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": MARK}
LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
COLLECTIONS: dict[str, Callable[[list[Any]], None]] = {
    "EMPTY_LIST": lambda stack: stack.append([]),
    "EMPTY_DICT": lambda stack: stack.append({}),
    "EMPTY_SET": lambda stack: stack.append(set()),
    "EMPTY_TUPLE": lambda stack: stack.append(()),
    "TUPLE": lambda stack: stack.append(tuple(_marked(stack))),
    "LIST": lambda stack: stack.append(_marked(stack)),
    "DICT": lambda stack: _update(_dict_items(stack), stack),
    "FROZENSET": lambda stack: stack.append(frozenset(_marked(stack))),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPEND": lambda stack: _extend([stack.pop()], stack),
    "APPENDS": lambda stack: _extend(_marked(stack), stack),
    "SETITEM": lambda stack: _update([stack.pop(), stack.pop()][::-1], stack),
    "SETITEMS": lambda stack: _update(_marked(stack), stack),
    "ADDITEMS": lambda stack: _add(_marked(stack), stack),
    "POP": lambda stack: stack.__delitem__(-1),
    "DUP": lambda stack: stack.append(stack[-1]),
}


def _dict_items(stack: list[Any]) -> list[Any]:
    items = _marked(stack)
    stack.append({})
    return items
