"""Prompt files of every format that are not what they should be. Nothing else of the run is read by then."""

import csv
import json
import os
import shutil
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from dist_moe.cli.main import main
from dist_moe.data.rows import read_prompts
from tests.bad_inputs.harness import Case, check, ids
from tests.checkpoint import prompt_rows

GOOD = '{"prompt": "w1", "label": "safe"}\n'
ROWS = prompt_rows()


def put(content: str | bytes, name: str):
    return lambda: Path(name).write_bytes(content.encode() if isinstance(content, str) else content)


def lines(second: str | bytes):
    """A .jsonl whose second line is this."""
    return put(GOOD.encode() + (second.encode() if isinstance(second, str) else second) + b"\n", "x.jsonl")


def row(**cells):
    """The same as the second row."""
    return lines(json.dumps({"prompt": "w1", "label": "safe"} | cells))


def table(**columns):
    return lambda: parquet.write_table(pa.table(columns), "x.parquet")


def saved(damage):
    def change():
        datasets.Dataset.from_list(ROWS).save_to_disk("x")
        damage()

    return change


def without_file(pattern: str):
    return lambda: next(Path("x").glob(pattern)).unlink()


def two_splits():
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk("x")


AT = "x.jsonl:2: "
JSONL = {
    "no JSON": (lines("{oops"), AT + "not valid JSON: "),
    "cut off": (lines('{"prompt": "w1", "lab'), AT + "not valid JSON: "),
    "two objects in a line": (lines(GOOD.strip() * 2), AT + "not valid JSON: Extra data"),
    "a list": (lines("[1]"), AT + "expected one JSON object a line, got a list"),
    "a text": (lines('"w1"'), AT + "expected one JSON object a line, got a str"),
    "null": (lines("null"), AT + "expected one JSON object a line, got a NoneType"),
    "NaN": (lines('{"prompt": "w1", "label": "safe", "score": NaN}'), AT + "not valid JSON: NaN is not a JSON number"),
    "Infinity": (lines('{"prompt": "w1", "label": "safe", "x": -Infinity}'), AT + "not valid JSON: -Infinity"),
    "key twice": (lines('{"prompt": "w1", "prompt": "w2", "label": "safe"}'), AT + "the key 'prompt' occurs twice"),
    "key twice below": (
        lines('{"messages": [{"role": "user", "role": "system", "content": "w1"}], "label": "safe"}'),
        AT + "the key 'role' occurs twice",
    ),
    "not UTF-8": (lines(b'{"prompt": "caf\xe9", "label": "safe"}'), AT + "not UTF-8 text: byte 0xe9"),
    "UTF-16": (put(GOOD.encode("utf-16"), "x.jsonl"), "x.jsonl:1: not UTF-8 text: byte 0xff"),
    "NUL": (lines('{"prompt": "w1\0", "label": "safe"}'), AT + "has a NUL byte"),
    "deep nesting": (lines('{"x": ' + "[" * 100_000 + "]" * 100_000 + "}"), AT + "not readable JSON: nested too deep"),
    "long number": (lines(f'{{"prompt": "w1", "x": {"9" * 5000}}}'), AT + "not readable JSON: a number has too many"),
    "half of a surrogate pair": (lines('{"prompt": "\\ud83d", "label": "safe"}'), AT + "`prompt` has half of a surr"),
    "half in an id": (row(id="\udc00"), AT + "`id` has half of a surr"),
    "neither prompt nor messages": (
        lines('{"text": "w1", "label": "safe"}'),
        AT + "expected either `prompt` or `messages`, with text in it, got neither; the columns there are text, label",
    ),
    "both": (
        row(messages=[{"role": "user", "content": "w1"}]),
        AT + "expected either `prompt` or `messages`, with text in it, got both",
    ),
    "blank prompt": (row(prompt="  "), AT + "expected either `prompt` or `messages`, with text in it, got neither"),
    "no label": (
        lines('{"prompt": "w1", "is_safe": true}'),
        AT + "`label` must be safe or unsafe, got None; the columns there are prompt, is_safe",
    ),
    "label of another kind": (row(label=True), AT + "`label` must be safe or unsafe, got True"),
    "label that is a list": (row(label=["safe"]), AT + "`label` must be safe or unsafe, got ['safe']"),
    "long label": (row(label="x" * 5000), AT + "`label` must be safe or unsafe, got 'xxx"),
    "prompt that is a number": (row(prompt=3), AT + "`prompt` must be text, got 3"),
    "prompt that is an object": (row(prompt={"text": "w1"}), AT + "`prompt` must be text, got {'text': 'w1'}"),
    "response that is a list": (row(response=["w1"]), AT + "`response` must be text, got ['w1']"),
    "category that is a number": (row(category=1.5), AT + "`category` must be text, got 1.5"),
    "id beyond range": (lines('{"prompt": "w1", "label": "safe", "id": 1e999}'), AT + "`id` must be text, got inf"),
    "the same id": (
        lambda: Path("x.jsonl").write_text(
            json.dumps({"prompt": "w1", "label": "safe", "id": "i" * 900})
            + "\n"
            + json.dumps({"prompt": "w2", "label": "safe", "id": "i" * 900})
            + "\n"
        ),
        AT + "the id 'iii",
    ),
    "messages of text": (lines('{"messages": "w1", "label": "safe"}'), AT + "`messages` must be a list"),
    "messages of texts": (lines('{"messages": ["w1"], "label": "safe"}'), AT + "messages[0]: expected {role, content}"),
    "unknown role": (
        lines('{"messages": [{"role": "bot", "content": "w1"}], "label": "safe"}'),
        AT + "messages[0]: `role` must be one of system, user, assistant, got 'bot'",
    ),
    "role that is a list": (
        lines('{"messages": [{"role": ["user"], "content": "w1"}], "label": "safe"}'),
        AT + "messages[0]: `role` must be one of",
    ),
    "no content": (lines('{"messages": [{"role": "user"}], "label": "safe"}'), AT + "messages[0]: `content` is empty"),
    "answer in messages": (
        lines('{"messages": [{"role": "assistant", "content": "w1"}], "label": "safe"}'),
        AT + "the last of `messages` must be the user's",
    ),
    "no rows": (put("\n\n", "x.jsonl"), "x.jsonl: no rows"),
    "nothing": (put("", "x.jsonl"), "x.jsonl: no rows"),
    "a directory": (lambda: Path("x.jsonl").mkdir(), "x.jsonl: not a readable saved dataset"),
    "a fifo": (lambda: os.mkfifo("x.jsonl"), "x.jsonl: not a regular file"),
    "a device": (lambda: Path("x.jsonl").symlink_to("/dev/zero"), "x.jsonl: not a regular file"),
    "a link to nothing": (lambda: Path("x.jsonl").symlink_to("gone"), "x.jsonl: no such file (it links to gone)"),
    "a link to itself": (lambda: Path("x.jsonl").symlink_to("x.jsonl"), "x.jsonl: cannot read: "),
}
HEAD = "prompt,label\n"
SUITE_FILES = {
    "another file": (
        "advbench",
        "prompt,label\nw1,safe\n",
        "x.csv:2: a file of advbench has the columns goal, target; here",
    ),
    "no such suite": (
        "advbanch",
        "goal,target\nw1,w2\n",
        "advbanch=x.csv: no suite 'advbanch': expected one of advbench",
    ),
    "a label that is none": (
        "xstest",
        "prompt,type,focus,label\nw1,a,b,bad\n",
        "x.csv:2: `label` must be safe or unsafe",
    ),
}
CSV = {
    "nothing": ("", "x.csv: no rows"),
    "header only": (HEAD, "x.csv: no rows"),
    "blank header": (",\nw1,safe\n", "got neither; the columns there are , "),
    "no header": ("w1,safe\nw2,unsafe\n", "x.csv:2: expected either `prompt` or `messages`"),
    "another separator": ("prompt;label\nw1;safe\n", "x.csv:1: its cells are separated by ';', expected commas"),
    "tabs": ("prompt\tlabel\nw1\tsafe\n", "x.csv:1: its cells are separated by '\\t', expected commas"),
    "two columns of one name": ("prompt,label,prompt\nw1,safe,w2\n", "x.csv: 2 columns are called `prompt`"),
    "a cell too many": (HEAD + "w1,safe\nw1,safe,x\n", "x.csv:3: 3 cells, but the header has 2 columns"),
    "a cell too few": (HEAD + "w1\n", "x.csv:2: 1 cells, but the header has 2 columns"),
    "quote left open": (HEAD + 'w1,safe\n"w2,safe\nw3,safe\n', "x.csv:3: not valid CSV: "),
    "quote in the middle": (HEAD + '"w1" w2,safe\n', "x.csv:2: not valid CSV: "),
    "not UTF-8": (HEAD.encode() + b"caf\xe9,safe\n", "x.csv:2: not UTF-8 text: byte 0xe9"),
    "UTF-16 without its mark": ((HEAD + "w1,safe\n").encode("utf-16-le"), "x.csv:1: has a NUL byte"),
    "messages that are no JSON": ("messages,label\nw1,safe\n", "x.csv:2: `messages`: not valid JSON"),
    "unknown label": (HEAD + "w1,Safe\n", "x.csv:2: `label` must be safe or unsafe, got 'Safe'"),
    "no label column": ("prompt,class\nw1,safe\n", "got None; the columns there are prompt, class"),
}
NO_PARQUET = "x.parquet: not a readable Parquet file ("
PARQUET = {
    "nothing": (put("", "x.parquet"), NO_PARQUET),
    "text": (put(GOOD * 10, "x.parquet"), NO_PARQUET),
    "its frame only": (put(b"PAR1" + b"\0" * 40 + b"PAR1", "x.parquet"), NO_PARQUET),
    "encrypted": (put(b"PARE" + b"\0" * 40 + b"PARE", "x.parquet"), NO_PARQUET),
    "no rows": (table(prompt=pa.array([], pa.string())), "x.parquet: no rows"),
    "numbers": (table(prompt=[1], label=["safe"]), "x.parquet:1: `prompt` must be text, got 1"),
    "binary": (table(prompt=[b"w1"], label=["safe"]), "x.parquet:1: `prompt` must be text, got b'w1'"),
    "a list": (table(prompt=[["w1"]], label=["safe"]), "x.parquet:1: `prompt` must be text, got ['w1']"),
    "a time": (table(prompt=[datetime(2026, 1, 1, tzinfo=UTC)], label=["safe"]), "x.parquet:1: `prompt` must be text"),
    "a decimal": (table(prompt=["w1"], label=[Decimal("1.5")]), "x.parquet:1: `label` must be safe or unsafe"),
    "booleans": (table(prompt=["w1"], label=[True]), "x.parquet:1: `label` must be safe or unsafe, got True"),
    "an object as messages": (table(messages=[{"role": "user"}], label=["safe"]), "`messages` must be a list"),
    "no such column": (table(text=["w1"], label=["safe"]), "got neither; the columns there are text, label"),
    "two columns of one name": (
        lambda: parquet.write_table(
            pa.Table.from_arrays([pa.array(["a"])] * 3, ["prompt", "prompt", "label"]), "x.parquet"
        ),
        "x.parquet: 2 columns are called `prompt`",
    ),
    "text that is not UTF-8": (
        lambda: parquet.write_table(
            pa.table({"prompt": pa.array([b"caf\xe9"]).view(pa.binary()).cast(pa.binary()), "label": ["safe"]}).cast(
                pa.schema([("prompt", pa.binary()), ("label", pa.string())])
            ),
            "x.parquet",
        ),
        "x.parquet:1: `prompt` must be text",
    ),
    "cut off": (
        lambda: (table(prompt=["w1"], label=["safe"])(), os.truncate("x.parquet", os.stat("x.parquet").st_size - 20)),
        NO_PARQUET,
    ),
}
NO_DATASET = "x: not a readable saved dataset ("
DATASETS = {
    "any directory": (lambda: Path("x").mkdir(), NO_DATASET),
    "a run directory": (lambda: shutil.copytree("run", "x"), NO_DATASET),
    "state.json broken": (saved(lambda: Path("x/state.json").write_text("{")), "x/state.json: not valid JSON"),
    "state.json empty": (saved(lambda: Path("x/state.json").write_text("{}")), NO_DATASET),
    "state.json is a list": (saved(lambda: Path("x/state.json").write_text("[]")), NO_DATASET),
    "dataset_info.json broken": (saved(lambda: Path("x/dataset_info.json").write_text("{")), NO_DATASET),
    "no dataset_info.json": (saved(without_file("dataset_info.json")), NO_DATASET),
    "no arrow file": (saved(without_file("*.arrow")), NO_DATASET),
    "arrow file cut off": (saved(lambda: os.truncate(next(Path("x").glob("*.arrow")), 100)), NO_DATASET),
    "arrow file of zeros": (saved(lambda: next(Path("x").glob("*.arrow")).write_bytes(b"\0" * 500)), NO_DATASET),
    "two splits": (two_splits, "x: 2 splits; name those to use in data.paths: x/train, x/test"),
    "no rows": (lambda: datasets.Dataset.from_dict({"prompt": [], "label": []}).save_to_disk("x"), "x: no rows"),
    "another column": (
        lambda: datasets.Dataset.from_dict({"text": ["w1"], "label": ["safe"]}).save_to_disk("x"),
        "x:1: expected either `prompt` or `messages`, with text in it, got neither; the columns there are text, label",
    ),
    "a class that is none": (
        lambda: datasets.Dataset.from_dict(
            {"prompt": ["w1"], "label": [-1]},
            features=datasets.Features(
                {"prompt": datasets.Value("string"), "label": datasets.ClassLabel(names=["safe", "unsafe"])}
            ),
        ).save_to_disk("x"),
        "x:1: `label` must be safe or unsafe, got -1",
    ),
}
CASES = [
    *(Case(f"jsonl: {name}", change, "evaluate run --data x.jsonl", (says,)) for name, (change, says) in JSONL.items()),
    *(
        Case(f"csv: {name}", put(text, "x.csv"), "evaluate run --data x.csv", (says,))
        for name, (text, says) in CSV.items()
    ),
    *(
        Case(f"parquet: {name}", change, "evaluate run --data x.parquet", (says,))
        for name, (change, says) in PARQUET.items()
    ),
    *(Case(f"dataset: {name}", change, "evaluate run --data x", (says,)) for name, (change, says) in DATASETS.items()),
    *(
        Case(f"suite: {name}", put(text, "x.csv"), f"evaluate run --data {suite}=x.csv", (says,))
        for name, (suite, text, says) in SUITE_FILES.items()
    ),
    Case("unknown extension", put("x", "x.txt"), "evaluate run --data x.txt", ("unknown extension '.txt'",)),
    Case("a file in a path", put("x", "x"), "evaluate run --data x/y.jsonl", ("x/y.jsonl: cannot read: Not a dir",)),
    Case(
        "too few rows",
        put(GOOD, "x.jsonl"),
        "analyze --config run.yaml --run-dir new --data.paths x.jsonl",
        ("too few rows",),
    ),
    Case("no row", put("", "x.jsonl"), "evaluate run --data x.jsonl", ("x.jsonl: no rows",)),
]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_data_files(copy, capsys, case):
    check(case, capsys)


def test_a_long_cell_is_valid(tmp_path):
    """csv's own limit is 131,072 characters."""
    cells = ["w1 " * 100_000, 'zeile eins\nline two, "quoted" \U0001f600']
    with (tmp_path / "x.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["prompt", "label"], *([cell, "safe"] for cell in cells)])
    found = read_prompts([tmp_path / "x.csv"], "no")
    assert sorted(prompt.messages[0].content for prompt in found.prompts) == sorted(cells)


def test_what_is_valid_stays_so(copy):
    """The same rows with a mark, with Windows' line ends, with an ignored column of any kind: all are read."""
    text = "".join(json.dumps(row | {"extra": {"a": [1.5, None]}}) + "\r\n" for row in ROWS)
    Path("x.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert main(["analyze", "--config", "run.yaml", "--run-dir", "again", "--data.paths", "x.jsonl"]) == 0
    hashes = [json.loads(Path(run, "masks.zarr/zarr.json").read_text())["attributes"] for run in ("run", "again")]
    assert hashes[0]["provenance"]["data_hash"] == hashes[1]["provenance"]["data_hash"]
