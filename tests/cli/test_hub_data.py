"""Rows of datasets by the name of a repository, through the clients of the hub, against a local server."""

import io
import json

import pyarrow as pa
from pyarrow import parquet

from dist_moe.data.rows import read_prompts
from tests.checkpoint import prompt_rows, write_jsonl
from tests.hub_rows import rows
from tests.hub_server import serving

CARD = """---
configs:
- config_name: first
  data_files: [{split: train, path: "first/train.jsonl"}, {split: test, path: "first/test.jsonl"}]
- config_name: second
  data_files: [{split: test, path: "second.jsonl"}]
---
# Prompts
"""


def lines(some: list) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in some).encode()


def table(some: list) -> bytes:
    out = io.BytesIO()
    names = list(dict.fromkeys(name for row in some for name in row))
    parquet.write_table(pa.Table.from_pylist([{name: row.get(name) for name in names} for row in some]), out)
    return out.getvalue()


def test_a_split_of_a_dataset_is_read_as_a_file_at_one_commit(tmp_path):
    own = [{"id": str(i), **row} for i, row in enumerate(prompt_rows())]
    suite = [{"prompt": f"w{i}", "type": "t", "focus": "f", "label": "safe" if i % 2 else "unsafe"} for i in range(4)]
    files = {
        "README.md": CARD.encode(),
        "first/train.jsonl": lines(own),
        "first/test.jsonl": lines(own[:4]),
        "second.jsonl": lines(own[5:20]),
    }
    with serving() as hub:
        commit = hub.put("datasets/owner/prompts", files)
        hub.put("datasets/owner/plain", {"train.parquet": table(own)})
        hub.put("datasets/owner/coded", {"coded.py": b"raise SystemExit('ran')", "train.jsonl": lines(own)})
        hub.put("datasets/owner/xs", {"train.jsonl": lines(suite)})
        asked = [
            "hf:owner/prompts/first:train",
            "hf:owner/prompts/second:test",
            "hf:owner/plain:train",
            "xstest=hf:owner/xs:train",
            f"hf:owner/prompts/first@{commit}:test",
            "hf:owner/coded:train",
            "hf:owner/prompts:train",
            "hf:owner/prompts/first:validation",
            "hf:owner/none:train",
            "hf:owner/prompts",
            "hf:/datasets/owner/prompts",
        ]
        first, second, plain, of_suite, test, *refused = rows(asked, tmp_path, HF_ENDPOINT=hub.url)
        hub.put("datasets/owner/prompts", files | {"first/train.jsonl": lines(own[:2])})
        offline = rows([first[0]], tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert first[0] == f"hf:owner/prompts/first@{commit}:train"
    assert first[2] == f"hf:owner/prompts/first@{commit}:train:1"
    assert offline == [first]  # the commit, whatever main is at by now
    expected = {
        "train": (first, own),
        "second": (second, own[5:20]),
        "plain": (plain, own),
        "test": (test, own[:4]),
    }
    for name, (found, of_file) in expected.items():
        same = read_prompts([write_jsonl(tmp_path / f"{name}.jsonl", of_file)], "no")
        assert found[1] == same.data_hash, name
    assert of_suite[0].startswith("xstest=hf:owner/xs@"), of_suite
    said = (
        "the dataset has a loading script, coded.py, and no code of a dataset is run: download it, and save its rows",
        "Config name is missing",
        'Unknown split "validation"',
        "has no dataset repository owner/none, or does not show it to this token",
        "'hf:owner/prompts': expected hf:OWNER/NAME:SPLIT, or hf:OWNER/NAME/CONFIG@REVISION:SPLIT",
        "'hf:/datasets/owner/prompts': expected hf:OWNER/NAME:SPLIT",
    )
    for line, answer in zip(said, refused, strict=True):
        assert line in answer
        assert "\n" not in answer
