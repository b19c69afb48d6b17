"""Arrays and tables from what a pickle says of them, by NumPy's plain constructors on checked types and sizes."""

import itertools
import re
from math import prod
from typing import Any

import numpy as np
import pandas as pd

from dist_moe.errors import UserError
from dist_moe.store.pickles.machine import Call, Name

PLAIN = re.compile(r"[biuf](1|2|4|8)")
DEEPEST = 64
MOST_BITS = 128
TIMES, LEAST = 64, 1 << 20
"""How much a file may stand for: so many times its bytes, and so much in any case."""
MOST_COLUMNS = 1000


class Decoder:
    """Makes plain values of a `read_pickle` result; each shared part once."""

    def __init__(self, place: str, num_bytes: int) -> None:
        """`place` is how errors call the file, which has so many bytes."""
        self.place = place
        self._size, self._most = 0, LEAST + TIMES * num_bytes
        self._made: dict[int, tuple[Any, int]] = {}

    def value(self, what: Any, depth: int = 0) -> Any:
        """The same value with `Call`s made into arrays, tables and numbers.

        Whoever looks at every part of it is done soon: a part that the file has once and names often counts each time.

        Raises:
            UserError: something in it is not known, nested too deep, or larger than a file of this size can mean.
        """
        if depth > DEEPEST:
            raise UserError(f"{self.place} is nested more than {DEEPEST} deep: no older analysis is")
        if not isinstance(what, list | tuple | dict | Call | Name | set | frozenset):
            if isinstance(what, int) and what.bit_length() > MOST_BITS:
                raise UserError(f"{self.place} has a number of {what.bit_length()} bits: no older analysis has")
            self._count(1 + (len(what) if isinstance(what, str | bytes | bytearray) else 0))
            return what
        if id(what) in self._made:
            made, size = self._made[id(what)]
            self._count(size)
            return made
        before = self._size
        self._count(1)
        try:
            made = self._make(what, depth)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
            if isinstance(error, UserError):
                raise
            kind = what.name if isinstance(what, Call | Name) else type(what).__name__
            raise UserError(f"{self.place} has a {kind} of an unknown form") from None
        self._made[id(what)] = made, self._size - before
        return made

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > self._most:
            raise UserError(
                f"{self.place} stands for more than {TIMES} times its own size, as it repeats its parts or claims "
                "large empty ones: no older analysis does"
            )

    def _make(self, what: Any, depth: int) -> Any:
        if isinstance(what, list):
            return [self.value(item, depth + 1) for item in what]
        if isinstance(what, tuple):
            return tuple(self.value(item, depth + 1) for item in what)
        if isinstance(what, dict):
            made = {self.value(key, depth + 1): self.value(item, depth + 1) for key, item in what.items()}
            _require(len(made) == len(what))
            return made
        if isinstance(what, set | frozenset):
            return {self.value(item, depth + 1) for item in what}
        return self._called(what, depth)

    def _called(self, call: Call | Name, depth: int) -> Any:
        if isinstance(call, Name):
            raise TypeError
        match call.name, call.arguments:
            case "_reconstruct" | "ndarray", _:
                return self._array(call, depth)
            case "_frombuffer", (buffer, dtype, shape, order):
                return self._filled(_raw(buffer), _dtype(dtype), shape, order)
            case "scalar", (dtype, data):
                return self._filled(_raw(data), _dtype(dtype), (), "C").item()
            case "slice", arguments:
                return slice(*map(_optional_int, arguments))
            case "DataFrame", ():
                return self._frame(call.state, depth)
            case "_new_Index", (Name(), dict() as facts) if "start" in facts:
                return pd.RangeIndex(*(_int(facts[part]) for part in ("start", "stop", "step")))
            case "_new_Index", (Name(), dict() as facts):
                return pd.Index(self.value(facts["data"], depth + 1))
            case "ArrowStringArray", _:
                return self._texts(call.state["_pa_array"])
            case "encode" | "bytearray" | "bytes", _:
                return _raw(call)
            case "set", (list() as items,):
                return {self.value(item, depth + 1) for item in items}
        raise TypeError

    def _array(self, call: Call, depth: int) -> np.ndarray:
        _, shape, dtype, is_fortran, data = call.state
        if isinstance(data, list):
            _require(_type_name(dtype) == "O8")
            values = np.empty(len(data), object)
            values[:] = [self.value(item, depth + 1) for item in data]
            return values.reshape(_shape(shape), order="F" if is_fortran else "C")
        return self._filled(_raw(data), _dtype(dtype), shape, "F" if is_fortran else "C")

    def _filled(self, data: bytes, dtype: np.dtype, shape: Any, order: str) -> np.ndarray:
        sizes = _shape(shape)
        self._count(dtype.itemsize * prod(max(1, size) for size in sizes))
        _require(dtype.itemsize * prod(sizes) == len(data))
        values = np.frombuffer(data, dtype).reshape(sizes, order="F" if order == "F" else "C")
        return values.astype(dtype.newbyteorder("="))

    def _texts(self, call: Any) -> np.ndarray:
        """An Arrow array of text without gaps, as pandas 3 stores it."""
        _require(call.name == "_restore_array")
        kind, length, nulls, offset, buffers = call.arguments[0][:5]
        _require(kind.name == "type_for_alias" and kind.arguments == ("large_string",))
        _require(nulls == 0 and offset == 0)
        ends, text = (_raw(buffer.arguments[0]) for buffer in buffers[1:])
        self._count(len(ends) + len(text))
        ends_n = np.frombuffer(ends, "<i8")[: length + 1]
        _require(len(ends_n) == length + 1 and ends_n[0] == 0 and ends_n[-1] <= len(text))
        _require((np.diff(ends_n) >= 0).all())
        values = np.empty(length, object)
        values[:] = [text[start:end].decode() for start, end in itertools.pairwise(ends_n)]
        return values

    def _frame(self, state: dict[str, Any], depth: int) -> pd.DataFrame:
        manager = state["_mgr"] if "_mgr" in state else state["_data"]
        _require(manager.name == "BlockManager")
        if manager.arguments:
            blocks, axes = manager.arguments
            parts = []
            for block in blocks:
                _require(block.name == "_unpickle_block")
                values, places, _ = block.arguments
                parts.append((self.value(values, depth + 1), self.value(places, depth + 1)))
        else:  # before pandas 1.3
            (facts,) = (item for item in manager.state if isinstance(item, dict))
            axes, blocks = facts["0.14.1"]["axes"], facts["0.14.1"]["blocks"]
            parts = [(self.value(b["values"], depth + 1), self.value(b["mgr_locs"], depth + 1)) for b in blocks]
        columns, index = (self.value(axis, depth + 1) for axis in axes)
        _require(len(columns) <= MOST_COLUMNS and all(isinstance(name, str | int) for name in columns))
        found: dict[int, np.ndarray] = {}
        for values, places in parts:
            rows = values[None] if values.ndim == 1 else values
            for place, row in zip(np.arange(len(columns))[places], rows, strict=True):
                _require(row.shape == (len(index),))
                found[int(place)] = row
        table = pd.DataFrame({place: found[place] for place in range(len(columns))}, index=index)
        table.columns = columns
        return table


def _dtype(call: Any) -> np.dtype:
    name = _type_name(call)
    _require(PLAIN.fullmatch(name))
    order = call.state[1] if call.state else "|"
    _require(order in ("<", ">", "|", "="))
    return np.dtype(name if order == "|" else f"{order}{name}")


def _type_name(call: Any) -> str:
    _require(isinstance(call, Call) and call.name == "dtype")
    name = call.arguments[0]
    _require(isinstance(name, str))
    # Subtypes, fields and metadata are for types that no older analysis used.
    _require(call.state is None or all(part is None for part in call.state[2:5]))
    return name


def _shape(shape: Any) -> tuple[int, ...]:
    _require(isinstance(shape, tuple) and len(shape) <= 8)
    _require(all(type(size) is int and size >= 0 for size in shape))
    return shape


def _raw(data: Any) -> bytes:
    """Bytes as protocols 2 to 5 write them."""
    if isinstance(data, Call) and data.name == "bytearray" and len(data.arguments) == 1:
        (data,) = data.arguments
    match data:
        case bytes() | bytearray():
            return bytes(data)
        case Call(name="encode", arguments=(str() as text, "latin1")):
            return text.encode("latin1")
        case Call(name="bytearray" | "bytes", arguments=()):
            return b""
        case Call(name="bytearray", arguments=(str() as text, "latin-1")):
            return text.encode("latin-1")
    raise TypeError


def _int(value: Any) -> int:
    _require(type(value) is int)
    return value


def _optional_int(value: Any) -> int | None:
    return None if value is None else _int(value)


def _require(condition: Any) -> None:
    # No assert: what comes from a file is checked with `python -O` too.
    if not condition:
        raise ValueError
