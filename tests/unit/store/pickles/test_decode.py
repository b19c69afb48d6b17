"""Values come back as they were pickled, in all protocols and in the forms of several pandas and NumPy versions."""

import numpy as np
import pandas as pd
import pytest

from dist_moe.store.pickles.decode import Decoder
from dist_moe.store.pickles.machine import Call, Name, read_pickle
from tests.unit.store.pickles.examples import PROTOCOLS, write_pickle

VALUES = {
    "plain": {"a": [1, -2, 2**70, 1.5, None, True, "é", b"x\x00"], "b": (), "c": {(1, 2): {3, 4}}, "d": (1, 2, 3, 4)},
    "scalars": [np.int64(-3), np.float32(0.5), np.bool_(True), np.float64(1e300)],
    "long": ["x" * 300, list(range(3000)), b"y" * 70000],
}
ARRAYS = {
    "floats": np.arange(24, dtype=np.float64).reshape(2, 3, 4) / 7,
    "halves": np.arange(6, dtype=np.float16).reshape(3, 2),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    "bools": np.array([True, False]),
    "big endian": np.arange(3, dtype=">i4"),
    "empty": np.zeros((0, 4), np.float32),
    "texts": np.array(["a", "bc", None], object),
}
TABLES = {
    "numbers": pd.DataFrame({"layer": [0, 1], "expert": [2, 3], "risk_diff": [0.5, -0.5]}),
    "texts": pd.DataFrame({"layer": [0, 1], "Layer_Expert": ["L00_E02", "L01_Eé"], "x": [True, False]}),
    "objects": pd.DataFrame({"layer": [0, 1], "Layer_Expert": np.array(["L00_E02", "L01"], object)}).rename(
        columns=str
    ),
    "sorted": pd.DataFrame({"a": [1.0, 3.0, 2.0], "b": [1, 2, 3]}).sort_values("a"),
    "consolidated": pd.DataFrame(np.arange(6.0).reshape(2, 3), columns=list("abc")).assign(d=[1, 2], e=["x", "y"]),
    "empty": pd.DataFrame({"a": np.zeros(0)}),
}


def through(tmp_path, value, protocol):
    path = write_pickle(tmp_path / "x.pkl", value, protocol)
    return Decoder("x.pkl", 1000).value(read_pickle(path.read_bytes(), "x.pkl"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", VALUES)
def test_values(tmp_path, name, protocol):
    found = through(tmp_path, VALUES[name], protocol)
    assert found == VALUES[name]
    assert type(found) is type(VALUES[name])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(tmp_path, name, protocol):
    found = through(tmp_path, ARRAYS[name], protocol)
    np.testing.assert_array_equal(found, ARRAYS[name])
    assert found.dtype == ARRAYS[name].dtype.newbyteorder("=")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", TABLES)
def test_tables(tmp_path, name, protocol):
    found = through(tmp_path, TABLES[name], protocol)
    pd.testing.assert_frame_equal(found, TABLES[name], check_column_type=False, check_dtype=False)
    assert found.columns.tolist() == TABLES[name].columns.tolist()


def array(values):
    """An array as `numpy.core.multiarray` of NumPy 1 says it."""
    dtype = Call(
        "dtype", (values.dtype.str[1:], False, True), (3, "<" if values.dtype.itemsize > 1 else "|", *[None] * 3)
    )
    data = values.tolist() if values.dtype == object else values.tobytes()
    dtype = Call("dtype", ("O8", False, True), (3, "|", None, None, None)) if values.dtype == object else dtype
    return Call("_reconstruct", (Name("ndarray"), (0,), b"b"), (1, values.shape, dtype, False, data))


def test_a_table_of_pandas_1_0():
    """Before 1.3 a table's blocks are in the state of its manager, and before 1.1 the manager is called _data."""
    columns = Call("_new_Index", (Name("Index"), {"data": array(np.array(["a", "b"], object)), "name": None}))
    index = Call("_new_Index", (Name("RangeIndex"), {"name": None, "start": 0, "stop": 2, "step": 1}))
    blocks = [{"values": array(np.array([[1.5, 2.5]])), "mgr_locs": Call("slice", (1, 2, 1))}]
    blocks.append({"values": array(np.array([[7, 8]])), "mgr_locs": array(np.array([0]))})
    facts = {"0.14.1": {"axes": [columns, index], "blocks": blocks}}
    manager = Call("BlockManager", (), ([columns, index], [], [], facts))
    table = Decoder("x", 1000).value(Call("DataFrame", (), {"_data": manager, "_typ": "dataframe", "_metadata": []}))
    pd.testing.assert_frame_equal(table, pd.DataFrame({"a": [7, 8], "b": [1.5, 2.5]}), check_column_type=False)


def test_a_table_of_pandas_2_with_another_index():
    columns = Call("_new_Index", (Name("Index"), {"data": array(np.array(["a"], object)), "name": None}))
    index = Call("_new_Index", (Name("Int64Index"), {"data": array(np.array([5, 3])), "name": None}))
    block = Call("_unpickle_block", (array(np.array([[1, 2]])), Call("slice", (0, 1, 1)), 2))
    manager = Call("BlockManager", ((block,), [columns, index]))
    table = Decoder("x", 1000).value(Call("DataFrame", (), {"_mgr": manager}))
    pd.testing.assert_frame_equal(table, pd.DataFrame({"a": [1, 2]}, index=[5, 3]), check_column_type=False)
