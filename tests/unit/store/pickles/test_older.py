"""What is said of an older file's sign and order is true of files that were made to have them."""

import numpy as np
import pandas as pd
import pytest

from dist_moe.errors import UserError
from dist_moe.store.pickles.older import order_of, read_older, sign_of
from tests.unit.store.pickles.examples import activations, analysis, write_pickle


@pytest.mark.parametrize(
    ("options", "formula"),
    [
        ({}, "risk_diff = a1/(a1+d1) - a2/(a2+d2)"),
        ({"reverse": True}, "risk_diff = a2/(a2+d2) - a1/(a1+d1)"),
        ({"ratio": True}, "risk_diff = a1/d1 - a2/d2"),
        ({"ratio": True, "reverse": True}, "risk_diff = a2/d2 - a1/d1"),
    ],
)
def test_signs(options, formula):
    assert sign_of(activations(**options)) == formula


def test_signs_of_other_columns():
    table = pd.DataFrame({"layer": [0, 0], "expert": [0, 1], "a_safe_n": [0.1, 0.9], "a_unsafe_n": [0.5, 0.2]})
    assert sign_of(table.assign(risk_diff=[0.4, -0.7])) == "risk_diff = a_unsafe_n - a_safe_n"
    assert sign_of(table.assign(risk_diff=[-0.4, 0.7])) == "risk_diff = a_safe_n - a_unsafe_n"
    assert (
        sign_of(table.assign(risk_diff=[0.4, 0.7]))
        == "risk_diff is none of the known differences of the table's columns"
    )
    assert "all are 0" in sign_of(table.assign(a_unsafe_n=[0.1, 0.9], risk_diff=[0.0, 0.0]))


def test_orders():
    table = activations()  # risk_diff .2 -.3 .1 -.05 -.2 .25
    assert order_of(table) == "not sorted by risk_diff: in the order of layers and experts"
    by_risk = table.sort_values("risk_diff")
    assert order_of(by_risk[::-1]) == "sorted by risk_diff, highest first"
    assert order_of(by_risk) == "sorted by risk_diff, lowest first"
    by_size = table.sort_values("risk_diff", key=np.abs, ascending=False)
    assert order_of(by_size) == "sorted by the size of risk_diff, whatever its sign"
    assert order_of(table.iloc[[3, 0, 5, 1, 2, 4]]) == "in no order"


def test_an_activation_table(tmp_path):
    older = read_older(write_pickle(tmp_path / "a.pkl", activations()))
    assert older.findings == (
        "risk_diff = a1/(a1+d1) - a2/(a2+d2)",
        "not sorted by risk_diff: in the order of layers and experts",
    )
    pd.testing.assert_frame_equal(older.table, activations(), check_column_type=False)


def test_lists_that_were_cut_before_the_sort(tmp_path):
    value = analysis()
    older = read_older(write_pickle(tmp_path / "sft_dataset_x.pkl", value))
    found = "\n".join(older.findings)
    assert "aggregated_risk_diff: risk_diff = a_unsafe_n - a_safe_n" in found
    assert "aggregated_risk_diff: sorted by risk_diff, highest first" in found
    assert (
        "not sorted by risk_diff, but in the order of layers and experts; if they were cut to a length, the first"
        in found
    )
    assert "batch_expert_masks: 3 of 3 are those of the lists" in found
    assert older.batches == tuple(map(tuple, value["batch_unsafe_experts"]))
    assert older.experts.to_dict(orient="list")["rank"] == [
        rank for pairs in older.batches for rank in range(len(pairs))
    ]


def test_lists_that_were_sorted(tmp_path):
    value = analysis()
    heads = [table.sort_values("risk_diff", ascending=False).head(3) for table in value["batch_risk_diffs"]]
    value["batch_unsafe_experts"] = [list(zip(t["layer"].tolist(), t["expert"].tolist(), strict=True)) for t in heads]
    found = "\n".join(read_older(write_pickle(tmp_path / "x.pkl", value)).findings)
    assert "batches' lists: 3 of 3 are the experts of highest risk_diff" in found
    assert "batch_expert_masks: 0 of 3 are those of the lists" in found
    assert "the longest has 3 experts, and 3 have as many" in found


def test_masks_that_hold_more_than_numbers_are_not_those_of_the_lists(tmp_path):
    value = analysis()
    value["batch_expert_masks"][1] = np.array([np.ones(2), np.ones(3)], object)
    found = "\n".join(read_older(write_pickle(tmp_path / "x.pkl", value)).findings)
    assert "batch_expert_masks: 2 of 3 are those of the lists" in found


def test_wrong_files(tmp_path):
    for value, words in (
        ([1, 2], "is no older analysis: expected a dict with batch_unsafe_experts"),
        ({"batch_unsafe_experts": [[(0, -1)]]}, "is not lists of (layer, expert) as whole numbers from 0"),
        ({"batch_unsafe_experts": [[(0, 1, 2)]]}, "is not lists of (layer, expert)"),
        (pd.DataFrame({"layer": [1]}), "is no older analysis"),
    ):
        with pytest.raises(UserError) as error:
            read_older(write_pickle(tmp_path / "x.pkl", value))
        assert words in str(error.value)
    with pytest.raises(UserError, match=r"cannot read .*: No such file or directory"):
        read_older(tmp_path / "nothing.pkl")
