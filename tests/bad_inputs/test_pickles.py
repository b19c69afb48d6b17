"""Older pickles for `import` that are damaged, hostile, or hold numbers that no routing gives."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.bad_inputs.forge import cut, directory, flip, write
from tests.bad_inputs.harness import Case, check, ids, nothing
from tests.unit.store.pickles.examples import activations, analysis, write_pickle
from tests.unit.store.pickles.test_hostile import Reduced

LOOK = "import old.pkl"
STORE = "import old.pkl --out new --threshold 0.1 --top-k 3"
OLD = Path("old.pkl")


def old(change):
    """The example's dict, changed."""

    def apply():
        value = analysis()
        change(value)
        write_pickle(OLD, value)

    return apply


def table(change):
    """An activation table, changed."""
    return lambda: write_pickle(OLD, change(activations()))


def logit(value):
    def apply(contents):
        contents["batch_data_list"][1]["unsafe_routings"][0][1, 2, 3] = value

    return apply


def routing(value):
    def apply(contents):
        contents["batch_data_list"][0]["safe_routings"][0] = value

    return apply


def risk(value, column="risk_diff"):
    def apply(contents):
        contents["batch_risk_diffs"][0].loc[2, column] = value

    return apply


def twice(frame):
    return pd.concat([frame, frame[["risk_diff"]]], axis=1)


def called_by_a_list(frame):
    names = frame.columns.to_numpy(object)
    names[-2] = ["d2"]
    frame.columns = pd.Index(names, dtype=object)
    return frame


def key_twice():
    # {"a": 1, "a": 2} as no dict writes it: protocol 2, one SETITEMS with the same key
    write("old.pkl", b"\x80\x02}(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00aK\x02u.")


def long_number(contents):
    contents["num_experts_per_tok"] = 10**5000


def expert(number):
    return lambda contents: contents["batch_unsafe_experts"].append([(0, number)])


def doubled(contents):
    """2^60 lists, which are 60."""
    for _ in range(60):
        contents["more"] = [contents.get("more")] * 2


def no_tokens_of_many_layers(contents):
    contents["batch_data_list"][0]["safe_routings"] = [np.zeros((2**34, 0, 4), np.float16)]


def the_same_list_often(contents):
    contents["batch_unsafe_experts"] = [[(0, 1)] * 1000] * 5000


CASES = [
    Case("no file", nothing, "import nowhere.pkl", ("cannot read nowhere.pkl",)),
    Case("a directory", lambda: directory("old.pkl"), LOOK, ("cannot read old.pkl: Is a directory",)),
    Case("empty", lambda: write("old.pkl", b""), LOOK, ("is no whole pickle",)),
    Case("cut short", lambda: cut("old.pkl", 500), LOOK, ("old.pkl",)),
    Case("without its end", lambda: cut("old.pkl"), LOOK, ("is no whole pickle",)),
    Case("text", lambda: write("old.pkl", "hello\n"), LOOK, ("old.pkl",)),
    Case("JSON", lambda: write("old.pkl", '{"a": 1}'), LOOK, ("old.pkl",)),
    Case("one bit of its opening", lambda: flip("old.pkl", 2), LOOK, ("old.pkl",)),
    Case("it runs a command", lambda: write_pickle(OLD, Reduced(os.system, "touch x")), LOOK, ("is refused: at byte",)),
    Case("it evaluates", lambda: write_pickle(OLD, [Reduced(eval, "1")]), LOOK, ("is refused: at byte",)),
    Case("a number", lambda: write_pickle(OLD, 3), LOOK, ("is no older analysis",)),
    Case("an empty dict", lambda: write_pickle(OLD, {}), LOOK, ("is no older analysis",)),
    Case("lists that are none", lambda: write_pickle(OLD, {"batch_unsafe_experts": [3]}), LOOK, ("is not lists of",)),
    Case("a key twice", key_twice, LOOK, ("has a key twice",)),
    Case("a huge claim", lambda: write("old.pkl", b"\x80\x04\x8e" + b"\xff" * 8 + b"x."), LOOK, ("old.pkl",)),
    Case(
        "lists nested too deep", lambda: write("old.pkl", b"\x80\x02" + b"](" * 500 + b"e" * 500 + b"."), LOOK, ("old",)
    ),
    Case("a logit of NaN", old(logit(np.nan)), STORE, ("batch 1: routing is nan for token 2, L01_E03",)),
    Case("an infinite logit", old(logit(-np.inf)), STORE, ("batch 1: routing is -inf for token 2, L01_E03",)),
    Case("logits of text", old(routing(np.full((2, 5, 4), "x", object))), STORE, ("routing is object",)),
    Case("logits of one axis less", old(routing(np.zeros((5, 4)))), STORE, ("routing is no array [layers, tokens",)),
    Case("logits of other experts", old(routing(np.zeros((2, 5, 6)))), STORE, ("different numbers of layers or",)),
    Case("logits of other layers", old(routing(np.zeros((3, 5, 4)))), STORE, ("different numbers of layers or",)),
    Case("no token", old(routing(np.zeros((0, 0, 0)))), STORE, ("routing is no array",)),
    Case("k above the experts", old(lambda v: v.update(num_experts_per_tok=9)), STORE, ("with 9 experts a token",)),
    Case("k of 0", old(lambda v: v.update(num_experts_per_tok=0)), STORE, ("with 0 experts a token",)),
    Case("k as text", old(lambda v: v.update(num_experts_per_tok="2")), STORE, ("num_experts_per_tok",)),
    Case("an arm less", old(lambda v: v["batch_data_list"][2].pop("safe_routings")), STORE, ("no counted token",)),
    Case("a risk of NaN", old(risk(np.nan)), LOOK, ("risk_diff is nan in line 2",)),
    Case("an infinite risk", table(lambda t: t.assign(risk_diff=np.inf)), LOOK, ("risk_diff is inf in line 0",)),
    Case("risks of text", table(lambda t: t.assign(risk_diff="x")), LOOK, ("risk_diff is object", "numbers")),
    Case("layers that are no whole numbers", table(lambda t: t.assign(layer=0.5)), LOOK, ("layer is float64",)),
    Case("a negative expert", table(lambda t: t.assign(expert=-1)), LOOK, ("expert is -1 in line 0",)),
    Case("rates of NaN", table(lambda t: t.assign(a1=np.nan)), LOOK, ("a1 is nan in line 0",)),
    Case("a number of 5,000 digits", old(long_number), STORE, ("has a number of 16610 bits",)),
    Case("an expert of 40 digits", old(lambda v: v["batch_unsafe_experts"].append([(0, 10**39)])), LOOK, ("bits",)),
    Case(
        "an expert of 20 digits",
        old(lambda v: v["batch_unsafe_experts"].append([(0, 10**20)])),
        LOOK,
        ("is not lists",),
    ),
    Case("a list twice in a list twice in ...", old(doubled), LOOK, ("stands for more than 64 times its own size",)),
    Case("layers without a token", old(no_tokens_of_many_layers), STORE, ("stands for more than 64 times",)),
    Case("one list for all batches", old(the_same_list_often), LOOK, ("stands for more than 64 times",)),
    Case("a column called by a list", table(called_by_a_list), LOOK, ("has a DataFrame of an unknown form",)),
    Case("a column twice", table(twice), LOOK, ("has the column 'risk_diff' twice",)),
    Case("a table without risk_diff", table(lambda t: t.drop(columns="risk_diff")), LOOK, ("is no older analysis",)),
    Case("a threshold of NaN", nothing, STORE.replace("0.1", "nan"), ("--threshold", "nan")),
    Case("an infinite threshold", nothing, STORE.replace("0.1", "inf"), ("--threshold", "inf")),
    Case("a top_k of -3", nothing, STORE.replace("k 3", "k -3"), ("--top-k", "-3")),
    Case("a top_k of 0", nothing, STORE.replace("k 3", "k 0"), ("--top-k",)),
    Case(
        "a column of mixed values, as Parquet",
        table(lambda frame: frame.assign(note=["a", 1, b"c", 2.5, (1,), None])),
        "import old.pkl --out new.parquet",
        ("old.pkl: its table cannot be written as .parquet", "take another form"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_artefacts_pickles(copy, capsys, case):
    check(case, capsys)
