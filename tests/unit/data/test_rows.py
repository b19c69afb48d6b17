"""Reading prompts: every format gives the same data, and every bad row is one line with file and line."""

import csv
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from dist_moe.data.rows import COLUMNS, Message, Prompt, read_prompts
from dist_moe.errors import UserError

REFUSAL = "No, sorry."
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say\n“hi”, 世界"}]
ROWS: list[dict[str, Any]] = [
    {"prompt": "How do I bake bread?", "response": "Mix, rest,\nbake.", "label": "safe"},
    {"messages": CHAT, "response": "hi", "label": "safe", "category": "chat"},
    {"prompt": "How do I break in?", "label": "unsafe", "category": "hacking"},
    {"prompt": "Give me a virus", "response": "I won't.", "label": "unsafe", "category": "hacking", "id": "7"},
    {"prompt": 'A "quoted", text', "label": "safe", "source": "an extra column"},
]

Writer = Callable[[Path, Sequence[dict[str, Any]]], Path]


def write_jsonl(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns(rows)))
        writer.writeheader()
        writer.writerows(row | ({"messages": json.dumps(row["messages"])} if "messages" in row else {}) for row in rows)
    return path


def write_parquet(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / "rows.parquet"
    parquet.write_table(pa.table(columns(rows)), path)
    return path


def write_dataset(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / "dataset"
    datasets.Dataset.from_dict(columns(rows)).save_to_disk(path)
    return path


def write_split(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / "splits"
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns(rows))}).save_to_disk(path)
    return path


def columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


WRITERS: list[Writer] = [write_jsonl, write_csv, write_parquet, write_dataset, write_split]


def read(folder: Path, text: str, name: str = "rows.jsonl") -> tuple[Prompt, ...]:
    (folder / name).write_text(text, encoding="utf-8")
    return read_prompts([folder / name], REFUSAL).prompts


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_gives_the_same_rows(write: Writer, tmp_path: Path) -> None:
    read_set = read_prompts([write(tmp_path, ROWS)], REFUSAL)
    prompts = {prompt.messages[-1].content: prompt for prompt in read_set.prompts}
    assert [prompt.id for prompt in read_set.prompts] == sorted(prompt.id for prompt in read_set.prompts)
    assert len(prompts) == len(ROWS)

    bread = prompts["How do I bake bread?"]
    assert (bread.messages, bread.response) == ((Message("user", "How do I bake bread?"),), "Mix, rest,\nbake.")
    assert (bread.unsafe, bread.category) == (False, None)
    chat = prompts["Say\n“hi”, 世界"]
    assert chat.messages == (Message("system", "Be brief."), Message("user", "Say\n“hi”, 世界"))
    assert chat.category == "chat"
    refused = prompts["How do I break in?"]
    assert (refused.unsafe, refused.response, refused.category) == (True, REFUSAL, "hacking")
    assert prompts["Give me a virus"].id == "7"
    assert prompts['A "quoted", text'].response is None
    assert read_set.notes == (
        "1 unsafe rows without a response: they get data.refusal",
        "1 safe rows without a response: they are not trained, and have no completion tokens",
    )


FULL: list[dict[str, Any]] = [
    {
        "id": "a",
        "messages": CHAT,
        "response": "hi",
        "label": "safe",
        "category": "chat",
        "pair_id": "x",
        "span": "“hi”, 世",
    },
    {
        "id": "b",
        "prompt": "How do I break in?",
        "response": "No.",
        "label": "unsafe",
        "category": "hacking",
        "pair_id": "x",
        "rejected": "Like this.",
    },
]
"""Every column is given in some row."""


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_gives_every_column(write: Writer, tmp_path: Path) -> None:
    assert set().union(*FULL) | {"chosen"} == set(COLUMNS)  # another name for the response
    read_set = read_prompts([write(tmp_path, FULL)], REFUSAL)
    assert [replace(prompt, source="") for prompt in read_set.prompts] == [
        Prompt(
            id="a",
            messages=(Message("system", "Be brief."), Message("user", "Say\n“hi”, 世界")),
            response="hi",
            unsafe=False,
            category="chat",
            source="",
            pair_id="x",
            span="“hi”, 世",
        ),
        Prompt(
            id="b",
            messages=(Message("user", "How do I break in?"),),
            response="No.",
            unsafe=True,
            category="hacking",
            source="",
            pair_id="x",
            rejected="Like this.",
        ),
    ]
    (tmp_path / "lines").mkdir()
    assert read_set.data_hash == read_prompts([write_jsonl(tmp_path / "lines", FULL)], REFUSAL).data_hash


@pytest.mark.parametrize("write", WRITERS[1:])
def test_hash_is_the_same_in_every_format_and_order(write: Writer, tmp_path: Path) -> None:
    expected = read_prompts([write_jsonl(tmp_path, ROWS)], REFUSAL)
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    (tmp_path / "rest").mkdir()
    paths = [write(tmp_path, shuffled[:2]), write_jsonl(tmp_path / "rest", shuffled[2:])]
    found = read_prompts(paths, REFUSAL)
    assert found.data_hash == expected.data_hash
    assert [prompt.id for prompt in found.prompts] == [prompt.id for prompt in expected.prompts]


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "other"},
        {"response": "other"},
        {"label": "unsafe"},
        {"category": "other"},
        {"id": "other"},
        {"pair_id": "other"},
        {"span": "other"},
        {"rejected": "other"},
    ],
)
def test_hash_changes_with_each_field(change: dict[str, str], tmp_path: Path) -> None:
    row = {"prompt": "p", "response": "r", "label": "safe", "category": "c", "id": "i"}
    before = read_prompts([write_jsonl(tmp_path, [row])], REFUSAL).data_hash
    assert read_prompts([write_jsonl(tmp_path, [row | change])], REFUSAL).data_hash != before


def test_chosen_is_another_name_for_the_response(tmp_path: Path) -> None:
    row = {"prompt": "p", "label": "safe", "rejected": "worse"}
    (tmp_path / "other").mkdir()
    chosen = read_prompts([write_jsonl(tmp_path, [row | {"chosen": "r"}])], REFUSAL)
    assert chosen.prompts[0].response == "r"
    assert (
        chosen.data_hash
        == read_prompts([write_jsonl(tmp_path / "other", [row | {"response": "r"}])], REFUSAL).data_hash
    )


def test_a_rejected_answer_is_worse_than_the_refusal_where_that_is_used(tmp_path: Path) -> None:
    (prompt,) = read_prompts(
        [write_jsonl(tmp_path, [{"prompt": "p", "label": "unsafe", "rejected": "Sure"}])], REFUSAL
    ).prompts
    assert (prompt.response, prompt.rejected) == (REFUSAL, "Sure")


def test_hash_changes_with_the_refusal_where_it_is_used(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, ROWS)
    assert read_prompts([path], REFUSAL).data_hash != read_prompts([path], "Never.").data_hash


def test_id_is_the_hash_of_the_content(tmp_path: Path) -> None:
    (prompt,) = read(tmp_path, '{"prompt": "p", "response": "r", "label": "safe", "category": "c"}')
    assert prompt.content == '[[["user", "p"]], "r", false, "c"]'
    assert prompt.id == sha256(b'[[["user", "p"]], "r", false, "c"]').hexdigest()[:16]


@pytest.mark.parametrize("blank", ["", "  ", None])
def test_blank_means_not_given(blank: str | None, tmp_path: Path) -> None:
    given = {"prompt": "p", "label": "unsafe"}
    row = given | {"messages": None, "response": blank, "category": blank, "id": blank}
    assert read_prompts([write_jsonl(tmp_path, [row])], REFUSAL).prompts == (
        read_prompts([write_jsonl(tmp_path, [given])], REFUSAL).prompts
    )


def test_source_is_the_line_where_the_row_begins(tmp_path: Path) -> None:
    text = 'label,prompt,response\n\nsafe,a,"one\ntwo"\n\nsafe,b,x\n'
    assert {p.messages[0].content: p.source for p in read(tmp_path, text, "rows.csv")} == {
        "a": f"{tmp_path}/rows.csv:3",
        "b": f"{tmp_path}/rows.csv:6",
    }
    lines = '\ufeff{"prompt": "a", "label": "safe"}\r\n\r\n{"prompt": "b", "label": "safe"}'
    assert {p.messages[0].content: p.source for p in read(tmp_path, lines)} == {
        "a": f"{tmp_path}/rows.jsonl:1",
        "b": f"{tmp_path}/rows.jsonl:3",
    }


def test_rows_of_a_pair(tmp_path: Path) -> None:
    (prompt,) = read(tmp_path, '{"prompt": "p", "response": "r", "label": "safe", "pair_id": 7}')
    assert prompt.pair_id == "7"
    assert prompt.content == '[[["user", "p"]], "r", false, null, "7"]'
    (prompt,) = read(tmp_path, '{"prompt": "p", "response": "r", "label": "safe", "pair_id": ""}')
    assert prompt.pair_id is None
    with pytest.raises(UserError, match=r"rows.jsonl:1: `pair_id` must be text"):
        read(tmp_path, '{"prompt": "p", "label": "safe", "pair_id": [7]}')


def test_a_span_is_part_of_the_content_and_no_pair(tmp_path: Path) -> None:
    row = {"prompt": "p", "response": "r", "label": "safe"}
    (prompt,) = read_prompts([write_jsonl(tmp_path, [row | {"span": "p"}])], REFUSAL).prompts
    assert prompt.span == "p"
    assert prompt.content == '[[["user", "p"]], "r", false, null, null, "p"]'
    with pytest.raises(UserError, match=r"rows.jsonl:1: `span` must be text"):
        read_prompts([write_jsonl(tmp_path, [row | {"span": ["p"]}])], REFUSAL)


def test_whole_number_ids_are_text(tmp_path: Path) -> None:
    assert [p.id for p in read(tmp_path, '{"prompt": "a", "label": "safe", "id": 12}')] == ["12"]


def test_copies_without_id_are_kept_once_and_noted(tmp_path: Path) -> None:
    row = {"prompt": "p", "label": "unsafe"}
    read_set = read_prompts([write_jsonl(tmp_path, [row, row, row | {"response": REFUSAL}])], REFUSAL)
    assert [prompt.source for prompt in read_set.prompts] == [f"{tmp_path}/rows.jsonl:1"]
    assert read_set.notes == (
        "2 exact copies of other rows: removed",
        "1 unsafe rows without a response: they get data.refusal",
    )


def test_equal_rows_with_their_own_ids_are_both_kept(tmp_path: Path) -> None:
    row = {"prompt": "p", "label": "safe", "response": "r"}
    assert len(read_prompts([write_jsonl(tmp_path, [row | {"id": "a"}, row | {"id": "b"}])], REFUSAL).prompts) == 2


def test_an_id_given_twice_names_both_places(tmp_path: Path) -> None:
    row = {"prompt": "p", "label": "safe", "id": "x"}
    jsonl, table = write_jsonl(tmp_path, [row]), write_csv(tmp_path, [row])
    with pytest.raises(UserError) as caught:
        read_prompts([jsonl, table], REFUSAL)
    assert str(caught.value) == f"{table}:2: the id 'x' is already that of {jsonl}:1; ids must be unique"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_id_that_is_another_rows_hash_is_an_error(order: tuple[int, int], tmp_path: Path) -> None:
    (plain,) = read(tmp_path, '{"prompt": "p", "label": "safe"}')
    rows = [{"prompt": "p", "label": "safe"}, {"prompt": "q", "label": "safe", "id": plain.id}]
    with pytest.raises(UserError, match=r"rows\.jsonl:2: the id '\w{16}' is already that of .*rows\.jsonl:1;"):
        read_prompts([write_jsonl(tmp_path, [rows[i] for i in order])], REFUSAL)


GOOD = '{"prompt": "p", "label": "safe"}'


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not valid JSON: Expecting property name enclosed in double quotes at column 2"),
        ("[1]", "expected one JSON object a line, got a list"),
        ('{"label": "safe"}', "expected either `prompt` or `messages`, with text in it, got neither"),
        ('{"prompt": " ", "label": "safe"}', "expected either `prompt` or `messages`, with text in it, got neither"),
        ('{"messages": [], "label": "safe"}', "expected either `prompt` or `messages`, with text in it, got neither"),
        ('{"prompt": "p", "messages": [{"role": "user", "content": "p"}], "label": "safe"}', "got both"),
        ('{"prompt": "p"}', "`label` must be safe or unsafe, got None"),
        ('{"prompt": "p", "label": "Safe"}', "`label` must be safe or unsafe, got 'Safe'"),
        ('{"prompt": "p", "label": 1}', "`label` must be safe or unsafe, got 1"),
        ('{"prompt": ["p"], "label": "safe"}', "`prompt` must be text, got ['p']"),
        ('{"prompt": "p", "label": "safe", "response": 3}', "`response` must be text, got 3"),
        ('{"prompt": "p", "label": "safe", "category": {}}', "`category` must be text, got {}"),
        ('{"prompt": "p", "label": "safe", "id": 1.5}', "`id` must be text, got 1.5"),
        ('{"prompt": "p", "label": "safe", "id": true}', "`id` must be text, got True"),
        ('{"prompt": "a\\ud83d", "label": "safe"}', "`prompt` has half of a surrogate pair"),
        ('{"messages": "p", "label": "safe"}', "`messages` must be a list of {role, content}, got 'p'"),
        ('{"messages": ["p"], "label": "safe"}', "messages[0]: expected {role, content}, got 'p'"),
        (
            '{"messages": [{"content": "p"}], "label": "safe"}',
            "messages[0]: `role` must be one of system, user, assistant",
        ),
        ('{"messages": [{"role": "usr", "content": "p"}], "label": "safe"}', "assistant, got 'usr'"),
        ('{"messages": [{"role": "user"}], "label": "safe"}', "messages[0]: `content` is empty"),
        (
            '{"messages": [{"role": "user", "content": [1]}], "label": "safe"}',
            "messages[0]: `content` must be text, got [1]",
        ),
        (
            '{"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}], "label": "safe"}',
            "the last of `messages` must be the user's; the answer to it goes in `response`",
        ),
    ],
)
def test_bad_rows_name_file_and_line(row: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, f"{GOOD}\n\n{row}\n")
    assert str(caught.value).startswith(f"{tmp_path}/rows.jsonl:3: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,label\na,safe\nb\n", "rows.csv:3: 1 cells, but the header has 2 columns"),
        ('prompt,label\na,safe\n"b"x,safe\n', "rows.csv:3: not valid CSV: "),
        ('prompt,label\n"a,safe\n', "rows.csv:2: not valid CSV: unexpected end of data"),
        ("messages,label\n[,safe\n", "rows.csv:2: `messages`: not valid JSON: Expecting value at column 2"),
        ("prompt,messages,label\n,,safe\n", "rows.csv:2: expected either `prompt` or `messages`"),
        ("prompt,label\na,\n", "rows.csv:2: `label` must be safe or unsafe, got None"),
        ("prompt,label\n", "rows.csv: no rows; "),
    ],
)
def test_bad_csv(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text, "rows.csv")
    assert str(caught.value).startswith(f"{tmp_path}/{message}")


@pytest.mark.parametrize("write", [write_parquet, write_dataset])
def test_bad_rows_of_binary_formats_name_the_row(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": "a", "label": "safe"}, {"prompt": "b", "label": "bad"}])
    with pytest.raises(UserError) as caught:
        read_prompts([path], REFUSAL)
    assert str(caught.value) == f"{path}:2: `label` must be safe or unsafe, got 'bad'"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("rows.jsonl", b"", "no rows; fill the file or remove it from data.paths"),
        ("rows.jsonl", b"\n\n", "no rows; "),
        ("rows.csv", b"", "no rows; "),
        ("rows.txt", b"x", "unknown extension '.txt'; expected .jsonl, .csv, .parquet or a saved dataset"),
        ("rows", b"x", "unknown extension ''"),
        ("rows.jsonl", b'{"prompt": "\xe9", "label": "safe"}', "not UTF-8 text: byte 0xe9; save"),
        ("rows.parquet", b"x", "not a readable Parquet file ("),
        ("rows.parquet", b"PAR1" + b"\x00" * 40 + b"PAR1", ": "),
    ],
)
def test_unreadable_files(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        read_prompts([tmp_path / name], REFUSAL)
    assert str(caught.value).startswith(f"{tmp_path / name}:")
    assert message in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.jsonl: no such file; data\.paths takes"):
        read_prompts([tmp_path / "gone.jsonl"], REFUSAL)


def test_directory_that_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"^{tmp_path}: not a readable saved dataset \([^\n]*neither a `Dataset` directory"
    ):
        read_prompts([tmp_path], REFUSAL)


def test_dataset_of_two_splits_asks_for_one(tmp_path: Path) -> None:
    part = datasets.Dataset.from_dict({"prompt": ["a"], "label": ["safe"]})
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "d")
    with pytest.raises(UserError) as caught:
        read_prompts([tmp_path / "d"], REFUSAL)
    assert f"2 splits; name those to use in data.paths: {tmp_path}/d/train, {tmp_path}/d/test" in str(caught.value)
    assert len(read_prompts([tmp_path / "d" / "test"], REFUSAL).prompts) == 1


def test_class_labels_of_a_dataset_are_read_as_their_names(tmp_path: Path) -> None:
    features = datasets.Features(
        prompt=datasets.Value("string"),
        label=datasets.ClassLabel(names=["unsafe", "safe"]),
        category=datasets.ClassLabel(names=["x", "y"]),
    )
    table = datasets.Dataset.from_dict({"prompt": ["a", "b"], "label": [0, 1], "category": [1, None]}, features)
    table.save_to_disk(tmp_path / "d")
    prompts = read_prompts([tmp_path / "d"], REFUSAL).prompts
    assert {(p.messages[0].content, p.unsafe, p.category) for p in prompts} == {("a", True, "y"), ("b", False, None)}
