"""Arrays of whole numbers as servers send them: nested lists, bytes of a .npy file, or bytes alone. Nothing is
unpickled, and nothing larger than the bytes that are there is allocated.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from io import BytesIO
from math import prod
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from dist_moe.errors import UserError, refused_by_library, shown

RAW = np.dtype("<i4")
"""Type of bytes that come without a type, as SGLang sends them."""
TYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "int64")
AGAIN = "write the file again"
FORM = "expected lists of whole numbers, or base64 text of a .npy file or of int32"


def integers(value: Any, where: str) -> np.ndarray:
    """An array of whole numbers, of any shape; one axis if the value is bytes without a shape.

    Args:
        value: nested lists; an array; base64 text; or {data, shape, dtype} with base64 text in `data`.
        where: place of the value, for messages.

    Raises:
        UserError: it is something else, or cut short.
    """
    if isinstance(value, str):
        data = _decoded(value, where)
        return read_npy(BytesIO(data), len(data), where) if data.startswith(npy.MAGIC_PREFIX) else _raw(data, where)
    if isinstance(value, Mapping):
        return _with_shape(value, where)
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        raise UserError(f"{where}: its lists are of different lengths, or hold a number that is too large") from None
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise UserError(f"{where} holds {array.dtype}: {FORM}")
    return array


def read_npy(stream: IO[bytes], num_bytes: int, where: str) -> np.ndarray:
    """The array in a .npy file of so many bytes.

    Raises:
        UserError: it is no whole array of whole numbers.
    """
    with refused_by_library(f"{where}: no .npy array, or one that is cut short", AGAIN):
        version = npy.read_magic(stream)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, dtype = header(stream)
    if dtype.hasobject:
        raise UserError(f"{where} holds pickled Python objects, which are never read: {FORM}")
    if dtype.kind not in "iu":
        raise UserError(f"{where} holds {dtype}: {FORM}")
    if num_bytes - stream.tell() != prod(shape) * dtype.itemsize:
        raise UserError(f"{where}: cut short, or not of the shape {shape} that it states")
    return np.frombuffer(stream.read(), dtype).reshape(shape, order="F" if is_fortran else "C")


def _with_shape(value: Mapping[str, Any], where: str) -> np.ndarray:
    data, shape, dtype = (value.get(name) for name in ("data", "shape", "dtype"))
    sizes = shape if isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape) else None
    if not isinstance(data, str) or sizes is None or dtype not in TYPES:
        raise UserError(
            f"{where}: expected base64 text in `data`, a list in `shape`, and in `dtype` {', '.join(TYPES)}"
        )
    raw = _decoded(data, where)
    if len(raw) != prod(sizes) * np.dtype(dtype).itemsize:
        raise UserError(f"{where}: `data` has {len(raw)} bytes, which is not {shown(sizes)} of {dtype}")
    return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<")).reshape(sizes)


def _raw(data: bytes, where: str) -> np.ndarray:
    if len(data) % RAW.itemsize:
        raise UserError(f"{where}: {len(data)} bytes are no int32 numbers: {FORM}")
    return np.frombuffer(data, RAW)


def _decoded(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{where} is {shown(text)}, which is no base64 text: {FORM}") from None
