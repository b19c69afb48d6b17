import json

import numpy as np
import pandas as pd

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
