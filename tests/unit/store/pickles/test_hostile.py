"""Hostile pickles are refused with one line, and nothing of them runs."""

import builtins
import functools
import operator
import os
import pickletools
import resource
import struct

import numpy as np
import pandas as pd
import pytest

from dist_moe.errors import UserError
from dist_moe.store.pickles.decode import Decoder
from dist_moe.store.pickles.machine import read_pickle
from dist_moe.store.pickles.older import read_older
from tests.unit.store.pickles.examples import analysis, write_pickle


class Reduced:
    """Pickles as a call of whatever it is given."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def text(word: str) -> bytes:
    return b"\x8c" + bytes([len(word)]) + word.encode()


def called(module: str, name: str, argument: bytes) -> bytes:
    return b"\x80\x04" + text(module) + text(name) + b"\x93" + argument + b"\x85R."


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch {mark}",), "posix.system"),
        (builtins.eval, ("open('{mark}', 'w')",), "eval"),
        (builtins.exec, ("open('{mark}', 'w')",), "exec"),
        (builtins.getattr, ("", "join"), "getattr"),
        (builtins.open, ("{mark}", "w"), "open"),
        (np.load, ("{mark}", None, True), "numpy.load"),
        (np.fromfile, ("/etc/passwd", "u1"), "fromfile"),
        (pd.read_pickle, ("{mark}",), "read_pickle"),
        (pd.eval, ("1",), "eval"),
        (functools.partial, (print, "x"), "partial"),
        (operator.methodcaller, ("system",), "methodcaller"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_calls_are_refused(tmp_path, function, arguments, named, protocol):
    mark = tmp_path / "ran"
    arguments = tuple(a.format(mark=mark) if isinstance(a, str) else a for a in arguments)
    # Beside a whole analysis, so that it is the call that is refused.
    path = write_pickle(tmp_path / "x.pkl", analysis() | {"extra": Reduced(function, *arguments)}, protocol)
    with pytest.raises(UserError) as error:
        read_older(path)
    assert "is refused: at byte" in str(error.value)
    assert named in str(error.value)
    assert "\n" not in str(error.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        # A name of an allowed module that is none of the allowed ones, and allowed ones with dots in them.
        (called("numpy", "load", text("x")), "names numpy.load"),
        (called("builtins", "slice.__class__", text("x")), "names builtins.slice.__class__"),
        (called("pandas", "DataFrame.eval", text("x")), "names pandas.DataFrame.eval"),
        (called("pandas.core.frame", "os", text("x")), "names pandas.core.frame.os"),
        (b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R.", "names posix.system"),
        # A module's name that comes from the memo, out of sight of a search for names.
        (
            b"\x80\x04" + text("os") + b"q\x07" + b"0" + b"h\x07" + text("system") + b"\x93" + text("id") + b"\x85R.",
            "os.system",
        ),
        # Names that are no text, calls of what is no name, states for what is no call.
        (b"\x80\x04K\x01K\x02\x93.", "names 1.2"),
        (b"\x80\x04" + text("a") + text("b") + b"\x85R.", "calls what is no known name"),
        (b"\x80\x04]K\x01b.", "changes what was not made by a known name"),
        # Instructions that ask for objects of the reader.
        (b"\x80\x04K\x01Q.", "has the instruction BINPERSID"),
        (b"(iposix\nsystem\n.", "has the instruction INST"),
        (b"\x80\x02(cposix\nsystem\no.", "names posix.system"),
        (b"\x80\x02\x82\x01.", "has the instruction EXT1"),
        (b"\x80\x04}\x92.", "has the instruction NEWOBJ_EX"),
        (b"\x80\x05\x97.", "has the instruction NEXT_BUFFER"),
    ],
)
def test_instructions_are_refused(data, words):
    with pytest.raises(UserError) as error:
        read_pickle(data, "x.pkl")
    assert str(error.value).startswith("x.pkl is refused: at byte")
    assert words in str(error.value)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b".", b"\x80\x04", b"\x80\x04K\x01", b"not a pickle", b"\x80\x04h\x05.", b"\x80\x04a.", b"\x80\x04]}s."),
        *(
            b"\x80\x04(K\x01K\x02.",
            b"\x80\x04K\x01K\x02.",
            b"\x80\x04}(K\x01u.",
            b"\x80\x04}]K\x01s.",
            b"\x80\x04\x86.",
        ),
        b"\x80\x04B\xff\xff\xff\x7fabc.",  # bytes that are not there
        b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b"abc.",
        b"I" + b"9" * 9999 + b"\n.",
    ],
)
def test_what_is_no_whole_pickle_is_said(data):
    with pytest.raises(UserError, match=r"x\.pkl is no whole pickle: it cannot be read beyond byte"):
        read_pickle(data, "x.pkl")


def test_a_large_memo_takes_no_memory():
    """Python's own reader would make a table of 2^32 places for this."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_pickle(b"\x80\x04K\x07r\xff\xff\xff\xff0j\xff\xff\xff\xff.", "x.pkl") == 7
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_what_refers_to_itself_or_doubles_is_no_trap():
    with pytest.raises(UserError, match="nested more than 64 deep"):
        Decoder("x").value(read_pickle(b"\x80\x04]q\x00h\x00a.", "x"))
    doubled = b"\x80\x04]" + b"".join(
        b"q" + bytes([i]) + b"0" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60)
    )
    value = Decoder("x").value(read_pickle(doubled + b".", "x"))  # 2^60 lists, were they not shared
    assert value[0] is value[1]
    with pytest.raises(UserError, match="nested more than 64 deep"):
        Decoder("x").value(read_pickle(b"\x80\x04" + b"]" * 90 + b"a" * 89 + b".", "x"))


@pytest.mark.parametrize("dtype", ["O8", "V16", "U4", "S3", "M8[ns]", "f16", "i3", "i8,O", "c16"])
def test_types_that_hold_more_than_numbers_are_not_made(tmp_path, dtype):
    """Bytes for an array of objects would be pointers."""
    path = write_pickle(tmp_path / "x.pkl", np.zeros(2), 4)
    data = path.read_bytes().replace(text("f8"), text(dtype))
    with pytest.raises(UserError, match="has a _reconstruct of an unknown form"):
        Decoder("x").value(read_pickle(data, "x"))


@pytest.mark.parametrize(
    ("shape", "new"), [(b"K\x02\x85", b"K\x03\x85"), (b"K\x02\x85", b"J\xff\xff\xff\xff\x85"), (b"K\x02\x85", b"]\x85")]
)
def test_sizes_that_do_not_fit_are_not_made(tmp_path, shape, new):
    path = write_pickle(tmp_path / "x.pkl", np.zeros(2), 4)
    data = path.read_bytes()
    assert data.count(shape) == 1
    with pytest.raises(UserError, match="of an unknown form"):
        Decoder("x").value(read_pickle(data.replace(shape, new), "x"))


def test_every_cut_of_a_real_file_is_one_line(tmp_path):
    path = write_pickle(tmp_path / "x.pkl", analysis(), 4)
    data = path.read_bytes()
    ends = [position for _, _, position in pickletools.genops(data)][1::7]
    assert len(ends) > 20
    for end in ends:
        with pytest.raises(UserError, match="is no whole pickle"):
            read_pickle(data[:end], "x")


def answer(data: bytes) -> str:
    try:
        Decoder("x").value(read_pickle(data, "x"))
    except UserError as error:
        return str(error)
    return "read"


def test_any_flipped_byte_is_one_line_or_a_value(tmp_path):
    data = write_pickle(tmp_path / "x.pkl", analysis()["aggregated_risk_diff"], 4).read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(3000):
        flipped = bytearray(data)
        flipped[generator.integers(len(data))] = generator.integers(256)
        assert "\n" not in answer(bytes(flipped))
