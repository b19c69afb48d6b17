"""Hostile pickles are refused with one line, and nothing of them runs."""

import builtins
import copyreg
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


DOUBLED = b"".join(b"\x94h" + bytes([i]) + b"\x86" for i in range(60))
"""Makes of the tuple on the stack one of it twice, 60 times."""


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
        (b"\x80\x04K\x01K\x02\x93.", "names what is no text"),
        (b"\x80\x04" + text("a") + text("b") + b"\x85R.", "calls what is no known name"),
        (b"\x80\x04]K\x01b.", "changes what was not made by a known name"),
        # Instructions that ask for objects of the reader.
        (b"\x80\x04K\x01Q.", "has the instruction BINPERSID"),
        (b"(iposix\nsystem\n.", "has the instruction INST"),
        (b"\x80\x02(cposix\nsystem\no.", "names posix.system"),
        (b"\x80\x02\x82\x01.", "has the instruction EXT1"),
        (b"\x80\x04}\x92.", "has the instruction NEWOBJ_EX"),
        (b"\x80\x04\x83\x01\x00.", "has the instruction EXT2"),
        (b"\x80\x04\x84\x01\x00\x00\x00.", "has the instruction EXT4"),
        (b"P12\n.", "has the instruction PERSID"),
        (b"\x80\x05\x97.", "has the instruction NEXT_BUFFER"),
        (b"\x80\x05C\x01a\x98.", "has the instruction READONLY_BUFFER"),
        # A name that is a list in a list in ...: to show it would need as many calls.
        (b"\x80\x04" + b"]" * 9999 + b"a" * 9998 + text("b") + b"\x93.", "names what is no text"),
        # Keys that cost more than a look: a list, a tuple of 200,000 levels, 2^60 parts that are one, equal hashes.
        (b"\x80\x04}]K\x01s.", "has a key that is no text"),
        (b"\x80\x04})" + b"\x85" * 200_000 + b"K\x01s.", "has a key that is no text"),
        (b"\x80\x04\x8f()" + b"\x85" * 9 + b"\x90.", "has a key that is no text"),
        (b"\x80\x04()" + b"\x85" * 9 + b"\x91.", "has a key that is no text"),
        (b"\x80\x04})" + DOUBLED + b"K\x01s.", "has a key that is no text"),
        (b"\x80\x04\x8f()" + DOUBLED + b"\x90.", "has a key that is no text"),
        (b"\x80\x04}\x8a\x09" + b"\0" * 8 + b"\1K\x01s.", "has a key that is no text"),
    ],
)
def test_instructions_are_refused(data, words):
    with pytest.raises(UserError) as error:
        read_pickle(data, "x.pkl")
    assert str(error.value).startswith("x.pkl is refused: at byte")
    assert words in str(error.value)


def test_names_of_the_process_own_registry_are_refused():
    """Python's reader takes what a library has registered, and what it has looked up once, without asking again."""
    copyreg.add_extension("posix", "system", 241)
    try:
        with pytest.raises(UserError, match="has the instruction EXT1"):
            read_pickle(b"\x80\x02\x82\xf1" + text("id") + b"\x85R.", "x.pkl")
    finally:
        copyreg.remove_extension("posix", "system", 241)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b".", b"\x80\x04", b"\x80\x04K\x01", b"not a pickle", b"\x80\x04h\x05.", b"\x80\x04a.", b"\x80\x04]}s."),
        *(
            b"\x80\x04(K\x01K\x02.",
            b"\x80\x04K\x01K\x02.",
            b"\x80\x04}(K\x01u.",
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
        Decoder("x", 1000).value(read_pickle(b"\x80\x04]q\x00h\x00a.", "x"))
    with pytest.raises(UserError, match="stands for more than 64 times its own size"):  # 2^60 lists
        Decoder("x", 1000).value(read_pickle(b"\x80\x04)" + DOUBLED + b".", "x"))
    with pytest.raises(UserError, match="nested more than 64 deep"):
        Decoder("x", 1000).value(read_pickle(b"\x80\x04" + b"]" * 90 + b"a" * 89 + b".", "x"))


@pytest.mark.parametrize("dtype", ["O8", "V16", "U4", "S3", "M8[ns]", "f16", "i3", "i8,O", "c16"])
def test_types_that_hold_more_than_numbers_are_not_made(tmp_path, dtype):
    """Bytes for an array of objects would be pointers."""
    path = write_pickle(tmp_path / "x.pkl", np.zeros(2), 4)
    data = path.read_bytes().replace(text("f8"), text(dtype))
    with pytest.raises(UserError, match="has a _reconstruct of an unknown form"):
        Decoder("x", 1000).value(read_pickle(data, "x"))


@pytest.mark.parametrize(
    ("shape", "new"), [(b"K\x02\x85", b"K\x03\x85"), (b"K\x02\x85", b"J\xff\xff\xff\xff\x85"), (b"K\x02\x85", b"]\x85")]
)
def test_sizes_that_do_not_fit_are_not_made(tmp_path, shape, new):
    path = write_pickle(tmp_path / "x.pkl", np.zeros(2), 4)
    data = path.read_bytes()
    assert data.count(shape) == 1
    with pytest.raises(UserError, match="of an unknown form"):
        Decoder("x", 1000).value(read_pickle(data.replace(shape, new), "x"))


def reduced(module: str, name: str, arguments: bytes) -> bytes:
    return text(module) + text(name) + b"\x93" + arguments + b"R"


def dtype(name: str, flags: bytes = b"K\x00") -> bytes:
    """A dtype that says of itself whether it holds objects, as NumPy's own reader believes it."""
    state = b"(K\x03" + text("|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + flags + b"tb"
    return reduced("numpy", "dtype", text(name) + b"\x89\x88\x87") + state


def array(shape: bytes, of: bytes, data: bytes) -> bytes:
    made = reduced(
        "numpy._core.multiarray", "_reconstruct", text("numpy") + text("ndarray") + b"\x93K\x00\x85C\x01b\x87"
    )
    return made + b"(K\x01" + shape + of + b"\x89" + data + b"tb"


HUGE = b"\x8a\x06" + (2**40).to_bytes(6, "little")
EMPTY = HUGE + b"K\x00K\x04\x87"  # the shape [2^40, 0, 4]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        # With NumPy's own constructor the eight bytes are the address of an object.
        (array(b"K\x01\x85", dtype("O8"), b"C\x08" + b"\xef" * 8), "has a _reconstruct of an unknown form"),
        (array(b"K\x09\x85", b"N", b"]"), "has a _reconstruct of an unknown form"),
        (array(EMPTY, dtype("f8"), b"C\x00"), "stands for more than 64 times its own size"),
        # Calls that would take all memory, were they made.
        (reduced("builtins", "bytearray", HUGE + b"\x85"), "has a bytearray of an unknown form"),
        (reduced("builtins", "bytes", HUGE + b"\x85"), "has a bytes of an unknown form"),
        (reduced("numpy", "ndarray", EMPTY + b"\x85"), "has a ndarray of an unknown form"),
        (reduced("builtins", "set", b"]" + b"]" + b"a\x85"), "has a set of an unknown form"),
        (
            text("builtins") + text("bytearray") + b"\x93\x94" + b"h\0" * 9999 + b"C\0" + b"\x85R" * 10_000,
            "has a bytearray of an unknown form",
        ),
        # Other codecs than the one that bytes of protocol 2 are written with: some unpack what is packed.
        (reduced("_codecs", "encode", text("x") + text("zip") + b"\x86"), "has a encode of an unknown form"),
        (reduced("_codecs", "encode", text("x") + text("utf-7") + b"\x86"), "has a encode of an unknown form"),
        (b"\x8b" + struct.pack("<i", 2000) + b"\x7f" * 2000, "has a number of 15999 bits"),
    ],
)
def test_calls_are_made_of_checked_sizes_only(data, words):
    with pytest.raises(UserError) as error:
        Decoder("x", 1000).value(read_pickle(b"\x80\x04" + data + b".", "x"))
    assert words in str(error.value)


def test_an_array_that_is_named_again_and_again_counts_each_time():
    data = array(b"M\x00\x40\x85", dtype("u1"), b"B" + struct.pack("<I", 2**14) + bytes(2**14))
    many = b"\x80\x04](" + data + b"r\xff\x00\x00\x00" + b"h\xff" * 2000 + b"e."  # 32 MB of 20 kB
    with pytest.raises(UserError, match="stands for more than 64 times its own size"):
        Decoder("x", len(many)).value(read_pickle(many, "x"))
    few = Decoder("x", len(many)).value(read_pickle(many.replace(b"h\xff" * 1900, b""), "x"))
    assert len(few) == 101
    assert few[0] is few[100]


def test_an_array_that_holds_itself_ends():
    data = array(b"K\x01\x85", dtype("O8"), b"N").replace(b"(K\x01K\x01\x85", b"r\xfe\x00\x00\x00(K\x01K\x01\x85")
    with pytest.raises(UserError, match="nested more than 64 deep"):
        Decoder("x", 1000).value(read_pickle(b"\x80\x04" + data.replace(b"\x89Ntb", b"\x89]h\xfeatb") + b".", "x"))


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
        Decoder("x", 1000).value(read_pickle(data, "x"))
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
