"""Reads a pickle as data. Nothing is imported or called, because there is nothing here that could.

A pickle is a program for a small stack machine, and Python's own runs whatever the program names. This one knows only
the instructions that build values; `pickletools` says what each takes from the stack. A name from the list of known
ones becomes a `Name`, a call of it a `Call`: records of what the file says, never the thing. Any other name, and any
other instruction, ends the reading. So does a key of a dict, or a member of a set, that takes more than a look to hash:
deep tuples end the process, and tuples of one tuple twice, of one tuple twice, ... take for ever.
"""

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dist_moe.errors import UserError

KNOWN = {
    "numpy": {"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"},
    "pandas": {
        *("DataFrame", "BlockManager", "_unpickle_block", "_new_Index", "Index", "RangeIndex", "Int64Index"),
        *("StringDtype", "ArrowStringArray"),
    },
    "pyarrow": {"_restore_array", "py_buffer", "type_for_alias"},
    "builtins": {"slice", "bytearray", "bytes", "set"},
    "__builtin__": {"slice", "bytearray", "bytes", "set"},
    "_codecs": {"encode"},
}
"""What NumPy arrays and pandas tables are made of, by library, in the versions that were tried. Their modules moved."""


@dataclass(frozen=True, slots=True)
class Name:
    """A name in the file, without its module."""

    name: str


@dataclass(slots=True, eq=False)
class Call:
    """What the file says is made by calling a name."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


def read_pickle(data: bytes, place: str) -> Any:
    """The value in a pickle: None, numbers, text, bytes, lists, tuples, dicts, sets, `Name`s and `Call`s.

    Args:
        data: the file.
        place: how errors call it.

    Raises:
        UserError: it is no pickle, is cut short, or holds anything else.
    """
    stacks: list[list[Any]] = [[]]
    memo: dict[int, Any] = {}
    position = 0
    try:
        for opcode, argument, found in pickletools.genops(io.BytesIO(data)):
            position = found or 0
            if opcode.name != "STOP":
                _step(opcode, argument, stacks, memo)
        ((value,),) = stacks
    except _RefusedError as error:
        raise UserError(f"{place} is refused: at byte {position} it {error}: it is not only data") from None
    except (ValueError, IndexError, KeyError, TypeError, OverflowError):
        raise UserError(f"{place} is no whole pickle: it cannot be read beyond byte {position}") from None
    return value


class _RefusedError(Exception):
    """The file asks for more than values."""


def _step(opcode: pickletools.OpcodeInfo, argument: Any, stacks: list[list[Any]], memo: dict[int, Any]) -> None:
    """One instruction. `stacks`: what is on the stack, cut at each mark."""
    stack = stacks[-1]
    match opcode.name:
        case "PROTO" | "FRAME":
            pass
        case "MARK":
            stacks.append([])
        case "POP":
            stack.pop()
        case "MEMOIZE":
            memo[len(memo)] = stack[-1]
        case "PUT" | "BINPUT" | "LONG_BINPUT":
            memo[argument] = stack[-1]
        case "GET" | "BINGET" | "LONG_BINGET":
            stack.append(memo[argument])
        case "GLOBAL":
            stack.append(_known(*argument.split(" ", 1)))
        case name if name in LITERALS:
            stack.append(argument)
        case name if name in VALUES:
            made = VALUES[name](*_taken(opcode, stacks))
            stacks[-1].append(made)
        case name:
            raise _RefusedError(f"has the instruction {name}")


def _taken(opcode: pickletools.OpcodeInfo, stacks: list[list[Any]]) -> list[Any]:
    """What an instruction takes, lowest first; what lies above the last mark is one list."""
    takes = opcode.stack_before
    if pickletools.markobject not in takes:
        return _top(stacks[-1], len(takes))
    above = stacks.pop()
    return [*_top(stacks[-1], takes.index(pickletools.markobject)), above]


def _top(stack: list[Any], number: int) -> list[Any]:
    if len(stack) < number:
        raise IndexError
    items = stack[len(stack) - number :]
    del stack[len(stack) - number :]
    return items


def _known(module: Any, name: Any) -> Name:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise _RefusedError("names what is no text")
    if name not in KNOWN.get(module.partition(".")[0], ()):
        words = f"{module}.{name}"[:120]
        raise _RefusedError(f"names {''.join(letter if letter.isprintable() else '?' for letter in words)}")
    return Name(name)


def _called(known: Any, arguments: Any) -> Call:
    if not isinstance(known, Name) or not isinstance(arguments, tuple):
        raise _RefusedError("calls what is no known name")
    return Call(known.name, arguments)


def _changed(call: Any, state: Any) -> Call:
    if not isinstance(call, Call):
        raise _RefusedError("changes what was not made by a known name")
    call.state = state
    return call


def _extended(values: Any, items: list[Any]) -> list[Any]:
    if not isinstance(values, list):
        raise TypeError
    values += items
    return values


def _updated(values: Any, items: list[Any]) -> dict[Any, Any]:
    """Keys and values in turn; none of the keys is there already, as no dict is written with a key twice."""
    if not isinstance(values, dict):
        raise TypeError
    pairs = dict(zip(_hashable(items[::2]), items[1::2], strict=True))
    if len(pairs) * 2 < len(items) or not values.keys().isdisjoint(pairs):
        raise _RefusedError("has a key twice")
    values.update(pairs)
    return values


def _added(values: Any, items: list[Any]) -> set[Any]:
    if not isinstance(values, set):
        raise TypeError
    values.update(_hashable(items))
    return values


def _hashable(keys: list[Any]) -> list[Any]:
    for key in keys:
        parts = key if type(key) is tuple and len(key) <= LONGEST_KEY else (key,)
        if not all(type(part) in KEYS and (type(part) is not int or abs(part) < MOST_OF_KEY) for part in parts):
            raise _RefusedError("has a key that is no text, number or short tuple of these")
    return keys


LONGEST_KEY = 8
MOST_OF_KEY = 1 << 60
"""Above it many numbers have one hash."""
KEYS = (str, bytes, int, float, bool, type(None), Call)
"""A `Call` is equal to itself only, so it costs nothing; it may be a number of NumPy's."""
LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
VALUES: dict[str, Callable[..., Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
    "LIST": list,
    "DICT": lambda items: _updated({}, items),
    "FROZENSET": lambda items: frozenset(_hashable(items)),
    "TUPLE": tuple,
    **dict.fromkeys(("TUPLE1", "TUPLE2", "TUPLE3"), lambda *items: items),
    "APPEND": lambda values, item: _extended(values, [item]),
    "APPENDS": _extended,
    "SETITEM": lambda values, *pair: _updated(values, list(pair)),
    "SETITEMS": _updated,
    "ADDITEMS": _added,
    "STACK_GLOBAL": _known,
    "REDUCE": _called,
    "NEWOBJ": _called,
    "BUILD": _changed,
}
"""What each instruction puts on the stack, from what it takes."""
