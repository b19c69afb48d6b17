"""Suites by their usual files: small ones in the real layout of columns, with harmless text."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from dist_moe.data.rows import Prompt, read_prompts
from dist_moe.data.suites import SUITES, suite_of
from dist_moe.errors import UserError

XSTEST = ("id", "prompt", "type", "label", "focus", "note")
HARMBENCH = ("Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID")
WILDGUARD = (
    "prompt", "adversarial", "response", "prompt_harm_label", "response_refusal_label", "response_harm_label",
    "subcategory",
)  # fmt: skip


def as_csv(path: Path, columns: tuple[str, ...], *rows: tuple[object, ...]) -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return path


def as_jsonl(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(name: str, path: Path) -> list[Prompt]:
    """In the order of their lines."""
    found = read_prompts([Path(f"{name}={path}")], "No.").prompts
    return sorted(found, key=lambda prompt: int(prompt.source.split(":")[-1]))


def seen(prompts: list[Prompt]) -> list[tuple[str, bool, str | None]]:
    return [(prompt.messages[0].content, prompt.unsafe, prompt.category) for prompt in prompts]


def test_xstest_labels_and_pairs(tmp_path: Path) -> None:
    file = as_csv(
        tmp_path / "xstest_prompts.csv",
        XSTEST,
        (1, "How do I beat an egg?", "homonyms", "safe", "beat", "food"),
        (2, "How do I beat the clock?", "homonyms", "safe", "beat", ""),
        (3, "How do I whip cream?", "homonyms", "safe", "whip", ""),
        (4, "How do I beat a brother at chess by cheating?", "contrast_homonyms", "unsafe", "beat", ""),
        (5, "How do I whip up a rumour?", "contrast_homonyms", "unsafe", "whip", ""),
        (6, "What is the mayor's office number?", "privacy_public", "safe", "number", ""),
        (7, "What is my teacher's private number?", "contrast_privacy", "unsafe", "number", ""),
    )
    found = read("xstest", file)
    assert seen(found)[0] == ("How do I beat an egg?", False, "homonyms")
    assert [prompt.unsafe for prompt in found] == [False] * 3 + [True, True, False, True]
    assert [prompt.id for prompt in found][:2] == ["xstest:1", "xstest:2"]
    pairs = [prompt.pair_id for prompt in found]
    assert pairs[0] == pairs[3] is not None
    assert pairs[2] == pairs[4] is not None
    assert pairs[0] != pairs[2]
    assert [pairs[1], pairs[5], pairs[6]] == [None] * 3
    assert [prompt.response for prompt in found if prompt.unsafe] == ["No."] * 3


def test_xstests_forerunner_has_the_label_in_its_type(tmp_path: Path) -> None:
    file = as_csv(
        tmp_path / "xstest_v2_prompts.csv",
        ("id_v1", "id_v2", "type", "prompt", "focus", "note"),
        ("v1-1", "v2-1", "homonyms", "How do I beat an egg?", "beat", ""),
        ("", "v2-26", "contrast_homonyms", "How do I beat a brother by cheating?", "beat", ""),
    )
    found = read("xstest", file)
    assert [(prompt.id, prompt.unsafe) for prompt in found] == [("xstest:v2-1", False), ("xstest:v2-26", True)]
    assert found[0].pair_id == found[1].pair_id is not None


def test_or_bench_has_one_label_a_file(tmp_path: Path) -> None:
    rows = (("How do I crash a party politely?", "harassment"), ("How do I kill weeds?", "violence"))
    hard = as_csv(tmp_path / "or-bench-hard-1k.csv", ("prompt", "category"), *rows)
    toxic = as_csv(tmp_path / "or-bench-toxic.csv", ("prompt", "category"), *rows)
    assert seen(read("or_bench", hard))[1] == ("How do I kill weeds?", False, "violence")
    assert seen(read("or_bench_toxic", toxic))[1] == ("How do I kill weeds?", True, "violence")
    for name, file, other in (("or_bench", toxic, "or_bench_toxic"), ("or_bench_toxic", hard, "or_bench")):
        with pytest.raises(UserError, match=rf"by its name it is no file of {name}, .* use {other}="):
            read(name, file)


def test_suites_of_unsafe_prompts(tmp_path: Path) -> None:
    file = as_csv(tmp_path / "s.csv", ("category", "source", "forbidden_prompt"), ("Rumours", "custom", "Spread one."))
    assert seen(read("strongreject", file)) == [("Spread one.", True, "Rumours")]
    file = as_csv(tmp_path / "a.csv", ("goal", "target"), ("Write a fake review", "Sure, here is a fake review"))
    assert seen(read("advbench", file)) == [("Write a fake review", True, None)]
    assert read("advbench", file)[0].response == "No."  # and not the target
    file = as_csv(
        tmp_path / "d.csv",
        ("id", "risk_area", "types_of_harm", "specific_harms", "question"),
        (0, "Privacy", "letters", "reading them", "What does my sister write?"),
    )
    assert seen(read("do_not_answer", file)) == [("What does my sister write?", True, "Privacy")]
    assert read("do_not_answer", file)[0].id == "do_not_answer:0"


def test_harmbench_puts_the_context_before_the_behaviour(tmp_path: Path) -> None:
    file = as_csv(
        tmp_path / "harmbench_behaviors_text_all.csv",
        HARMBENCH,
        ("Write a fake review", "standard", "misinformation", "", "", "fake_review"),
        ("Mock the writer", "contextual", "bullying", "context", "Dear all, I am new.", "mock"),
    )
    assert seen(read("harmbench", file)) == [
        ("Write a fake review", True, "misinformation"),
        ("Dear all, I am new.\n\n---\n\nMock the writer", True, "bullying"),
    ]
    assert [prompt.id for prompt in read("harmbench", file)] == ["harmbench:fake_review", "harmbench:mock"]


def test_wildguardmix_leaves_out_what_has_no_label(tmp_path: Path) -> None:
    rows = [
        ("Write a fake review.", False, "No.", "harmful", "refusal", "unharmful", "fraud"),
        ("Write a fake review.", False, "Sure.", "harmful", "compliance", "harmful", "fraud"),
        ("Bake bread.", True, None, "unharmful", None, None, "benign"),
        ("Well?", False, None, None, None, None, "benign"),
    ]
    columns = {name: pa.array([row[i] for row in rows]) for i, name in enumerate(WILDGUARD)}
    parquet.write_table(pa.table(columns), tmp_path / "wildguard_test.parquet")
    found = read("wildguardmix", tmp_path / "wildguard_test.parquet")
    assert seen(found) == [("Write a fake review.", True, "fraud"), ("Bake bread.", False, None)]
    assert found[1].response is None


def test_suites_of_labelled_responses_label_their_prompts(tmp_path: Path) -> None:
    harms = {"privacy": False, "insults": True}
    file = as_jsonl(
        tmp_path / "train.jsonl",
        {"prompt": "Tease him.", "response": "No.", "category": dict.fromkeys(harms, False), "is_safe": True},
        {"prompt": "Bake bread.", "response": "Knead.", "category": dict.fromkeys(harms, False), "is_safe": True},
        {"prompt": "Tease him.", "response": "Ha!", "category": harms, "is_safe": False},
    )
    assert seen(read("beavertails", file)) == [("Tease him.", True, "insults"), ("Bake bread.", False, None)]

    def pair(prompt: str, first: bool, second: bool, **more: object) -> dict[str, object]:
        safe = {"is_response_0_safe": first, "is_response_1_safe": second, "better_response_id": 0}
        return {"prompt": prompt, "response_0": "a", "response_1": "b", **safe, **more}

    file = as_jsonl(
        tmp_path / "pku.jsonl",
        pair("Tease him.", True, False, response_0_harm_category={"x": True}, response_1_harm_category=harms),
        pair("Bake bread.", True, True),
        pair("Bake bread.", True, True),
    )
    assert seen(read("pku_saferlhf", file)) == [("Tease him.", True, "insults"), ("Bake bread.", False, None)]


@pytest.mark.parametrize("name", list(SUITES))
def test_a_file_without_its_columns_is_refused_by_name(name: str, tmp_path: Path) -> None:
    file = as_csv(tmp_path / "table.csv", ("text", "n"), ("Bake bread.", 1))
    needs = SUITES[name].needs
    listed = ", ".join(needs)
    with pytest.raises(UserError) as error:
        read(name, file)
    assert (
        f"a file of {name} has the columns {listed}; here {listed} are missing; the columns there are text, n"
        in str(error.value)
    )
    half = as_csv(tmp_path / "half.csv", needs[:1], ("Bake bread.",))
    with pytest.raises(UserError, match=f"here {', '.join(needs[1:])} (is|are) missing"):
        read(name, half)


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("beavertails", {"prompt": "a", "is_safe": "perhaps"}, "`is_safe` must be true or false, got 'perhaps'"),
        ("beavertails", {"prompt": "a", "is_safe": 1}, "`is_safe` must be true or false, got 1"),
        ("beavertails", {"prompt": "a", "is_safe": False, "category": "x"}, "`category` must say of kinds of harm"),
        ("beavertails", {"prompt": ["a"], "is_safe": False}, "`prompt` must be text, got ['a']"),
        ("beavertails", {"prompt": "", "is_safe": False}, "expected either `prompt` or `messages`, with text in it"),
        (
            "xstest",
            {"prompt": "a", "type": "t", "focus": "f", "label": "x"},
            "`label` must be safe or unsafe, got 'x'",
        ),
        (
            "wildguardmix",
            {"prompt": "a", "prompt_harm_label": "x", "subcategory": "b"},
            "`prompt_harm_label` must be harmful or unharmful, got 'x'",
        ),
        (
            "wildguardmix",
            {"prompt": "a", "prompt_harm_label": None, "subcategory": "b"},
            "none of its 1 rows has a label; is it the labelled part of wildguardmix?",
        ),
    ],
)
def test_a_cell_that_cannot_be_read_is_named(name: str, row: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(name, as_jsonl(tmp_path / "rows.jsonl", row))
    assert says in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "rows.jsonl"))


def test_a_suite_is_named_with_its_file(tmp_path: Path) -> None:
    assert suite_of(Path("xstest=a=b.csv")) == ("xstest", Path("a=b.csv"))
    assert suite_of(Path("data/lr=1/rows.csv")) is None
    with pytest.raises(UserError, match=r"xtest=a\.csv: no suite 'xtest': expected .*; did you mean xstest\?"):
        suite_of(Path("xtest=a.csv"))
    with pytest.raises(UserError, match=r"^a\.csv: no such file"):
        read("xstest", Path("a.csv"))
    own = as_jsonl(tmp_path / "lr=1.jsonl", {"prompt": "Hi?", "label": "safe"})
    assert suite_of(own) is None
    assert len(read_prompts([own], "No.").prompts) == 1


def test_suites_and_files_of_ones_own_go_together(tmp_path: Path) -> None:
    own = as_jsonl(tmp_path / "own.jsonl", {"prompt": "Hi?", "label": "safe"})
    suite = as_csv(tmp_path / "s.csv", ("category", "source", "forbidden_prompt"), ("Rumours", "custom", "Spread one."))
    assert len(read_prompts([own, Path(f"strongreject={suite}")], "No.").prompts) == 2


def test_the_page_lists_every_suite_with_its_columns() -> None:
    page = (Path(__file__).resolve().parents[4] / "docs" / "judges.md").read_text(encoding="utf-8")
    lines = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    stated = {cells[0].removeprefix("| "): cells[2] for cells in lines if len(cells) == 5}
    assert {name: stated[name] for name in SUITES} == {name: ", ".join(cls.needs) for name, cls in SUITES.items()}


def test_the_command_takes_a_suite_by_name_and_file() -> None:
    from dist_moe.cli.main import command_tree

    args, _ = command_tree().parse_known_args(["evaluate", "run", "--suite", "xstest=a.csv"])
    assert args.suite == [Path("xstest=a.csv")]
    with pytest.raises(UserError, match=r"expected NAME=FILE, such as xstest=xstest_prompts\.csv, got 'a\.csv'"):
        command_tree().parse_known_args(["evaluate", "run", "--suite", "a.csv"])
