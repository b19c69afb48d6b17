"""Arrays and tables from what a pickle says of them, by NumPy's plain constructors on checked types and sizes."""

import itertools
import re
from typing import Any

import numpy as np
import pandas as pd

from dist_moe.errors import UserError
from dist_moe.store.pickles.machine import Call, Name

PLAIN = re.compile(r"[biuf](1|2|4|8)")
DEEPEST = 64
MOST_COLUMNS = 1000


class Decoder:
    """Makes plain values of a `read_pickle` result; each shared part once."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._made: dict[int, Any] = {}

    def value(self, what: Any, depth: int = 0) -> Any:
        """The same value with `Call`s made into arrays, tables and numbers.

        Raises:
            UserError: something in it is not known, or nested too deep.
        """
        if depth > DEEPEST:
            raise UserError(f"{self.place} is nested more than {DEEPEST} deep: no older analysis is")
        if not isinstance(what, list | tuple | dict | Call | Name | set | frozenset):
            return what
        if id(what) not in self._made:
            try:
                self._made[id(what)] = self._make(what, depth)
            except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
                if isinstance(error, UserError):
                    raise
                kind = what.name if isinstance(what, Call | Name) else type(what).__name__
                raise UserError(f"{self.place} has a {kind} of an unknown form") from None
        return self._made[id(what)]

    def _make(self, what: Any, depth: int) -> Any:
        if isinstance(what, list):
            return [self.value(item, depth + 1) for item in what]
        if isinstance(what, tuple):
            return tuple(self.value(item, depth + 1) for item in what)
        if isinstance(what, dict):
            return {self.value(key, depth + 1): self.value(item, depth + 1) for key, item in what.items()}
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
                return _filled(_raw(buffer), _dtype(dtype), shape, order)
            case "scalar", (dtype, data):
                return _filled(_raw(data), _dtype(dtype), (), "C").item()
            case "slice", arguments:
                return slice(*map(_optional_int, arguments))
            case "DataFrame", ():
                return self._frame(call.state, depth)
            case "_new_Index", (Name(), dict() as facts) if "start" in facts:
                return pd.RangeIndex(*(_int(facts[part]) for part in ("start", "stop", "step")))
            case "_new_Index", (Name(), dict() as facts):
                return pd.Index(self.value(facts["data"], depth + 1))
            case "ArrowStringArray", _:
                return _texts(call.state["_pa_array"])
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
        return _filled(_raw(data), _dtype(dtype), shape, "F" if is_fortran else "C")

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
        _require(len(columns) <= MOST_COLUMNS)
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


def _filled(data: bytes, dtype: np.dtype, shape: Any, order: str) -> np.ndarray:
    sizes = _shape(shape)
    count = 1
    for size in sizes:
        count *= size
    _require(count * dtype.itemsize == len(data))
    values = np.frombuffer(data, dtype).reshape(sizes, order="F" if order == "F" else "C")
    return values.astype(dtype.newbyteorder("="))


def _shape(shape: Any) -> tuple[int, ...]:
    _require(isinstance(shape, tuple) and len(shape) <= 8)
    _require(all(type(size) is int and size >= 0 for size in shape))
    return shape


def _raw(data: Any) -> bytes:
    """Bytes as protocols 2 to 5 write them."""
    match data:
        case bytes() | bytearray():
            return bytes(data)
        case Call(name="encode", arguments=(str() as text, "latin1")):
            return text.encode("latin1")
        case Call(name="bytearray", arguments=(inner,)):
            return _raw(inner)
        case Call(name="bytearray" | "bytes", arguments=()):
            return b""
        case Call(name="bytearray", arguments=(str() as text, "latin-1")):
            return text.encode("latin-1")
    raise TypeError


def _texts(call: Any) -> np.ndarray:
    """An Arrow array of text without gaps, as pandas 3 stores it."""
    _require(call.name == "_restore_array")
    kind, length, nulls, offset, buffers = call.arguments[0][:5]
    _require(kind.name == "type_for_alias" and kind.arguments == ("large_string",))
    _require(nulls == 0 and offset == 0)
    ends, text = (_raw(buffer.arguments[0]) for buffer in buffers[1:])
    ends_n = np.frombuffer(ends, "<i8")[: length + 1]
    _require(len(ends_n) == length + 1 and ends_n[0] == 0 and ends_n[-1] <= len(text))
    _require((np.diff(ends_n) >= 0).all())
    words = [text[start:end].decode() for start, end in itertools.pairwise(ends_n)]
    values = np.empty(length, object)
    values[:] = words
    return values


def _int(value: Any) -> int:
    _require(type(value) is int)
    return value


def _optional_int(value: Any) -> int | None:
    return None if value is None else _int(value)


def _require(condition: Any) -> None:
    # No assert: what comes from a file is checked with `python -O` too.
    if not condition:
        raise ValueError
