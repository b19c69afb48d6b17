import json
import string

import numpy as np
import pandas as pd
import pytest

from dist_moe.report.views import View, as_csv, as_json, as_text

TABLE = pd.DataFrame({"batch": np.arange(203), "jaccard": [0.25, None, *[1.0] * 201], "name": "x"})
FACTS = {"batches": 203, "rule": {"name": "r", "parameters": {"threshold": 0.05}}}
VIEW = View(FACTS, {"batches": TABLE, "none": TABLE[:0]})


def test_text_has_nested_facts_in_one_level_and_the_head_of_a_long_table():
    facts, batches, none = as_text(VIEW).split("\n\n")
    assert facts == "batches                    203\nrule.name                  r\nrule.parameters.threshold  0.0500"
    lines = batches.splitlines()
    assert lines[0] == "batches"
    assert [line.split() for line in lines[2:4]] == [["0", "0.2500", "x"], ["1", "NaN", "x"]]
    assert lines[-1] == "... and 3 more lines: see --json or --csv"
    assert len(lines) == 1 + 1 + 200 + 1
    assert none == "none\n(none)"


def test_json_has_everything_and_null_for_what_is_not_there():
    found = json.loads(as_json(VIEW))
    assert found["facts"] == VIEW.facts
    assert len(found["tables"]["batches"]) == 203
    assert found["tables"]["batches"][1] == {"batch": 1, "jaccard": None, "name": "x"}
    assert found["tables"]["none"] == []


def test_csv_is_the_main_table():
    lines = as_csv(VIEW).split("\n")
    assert lines[:3] == ["batch,jaccard,name", "0,0.25,x", "1,,x"]
    assert len(lines) == 204


FRAMES = {
    "numbers": pd.DataFrame({"batch": [3, 12], "jaccard": [0.25, -10.125], "share": [float("nan"), 1e-9]}),
    "texts": pd.DataFrame({"name": ["a, b", 'x "y"'], "é": ["line\nline\t", ""], "in_first": [True, False]}),
    "mixed": pd.DataFrame({"fact": ["a", "b", "c"], "first": [0.05, None, "x"]}).astype(object),
    "one line": pd.DataFrame({"batch": [0], "0": [1.0], "id": ["0" * 90]}),
    "many columns": pd.DataFrame({letter: np.linspace(-1, 1e6, 7) for letter in string.ascii_letters}),
    "large": pd.DataFrame({"value": [1e300, float("inf"), 0.1 + 0.2], "count": [2**62, -1, 0]}),
}


@pytest.mark.parametrize("name", FRAMES)
def test_tables_look_as_pandas_prints_them(name):
    frame = FRAMES[name]
    for table in (frame, {column: frame[column].to_numpy() for column in frame}, dict(frame.items())):
        view = View({"a": 1}, {"it": table})
        text = as_text(view).split("\n\n", 1)[1]
        assert text == "it\n" + frame.to_string(index=False, float_format="{:.4f}".format)
        assert as_csv(view) == frame.to_csv(index=False, lineterminator="\n").removesuffix("\n")
    records = frame.astype(object).where(frame.notna(), None).to_dict(orient="records")
    finite = [line for line in records if float("inf") not in line.values()]
    some = {"it": frame[[line in finite for line in records]]}
    assert json.loads(as_json(View({}, some)))["tables"]["it"] == json.loads(json.dumps(finite))
