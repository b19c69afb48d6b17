"""examples/: the notebook runs, the configurations load, the rows are what they are said to be."""

import json
import os
import runpy
import sys
from collections import Counter
from pathlib import Path

import pytest

from dist_moe.config import load_config
from dist_moe.data.rows import read_prompts
from dist_moe.evaluation.leakage import asked_text, find_leakage
from dist_moe.judges import Answered
from dist_moe.judges.command import Command
from tests.forks import start_fork

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOK = EXAMPLES / "tiny_model.ipynb"


def code_cells():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run_in_examples(script):
    os.chdir(EXAMPLES)
    runpy.run_path(str(script), run_name="__main__")


def test_the_notebook_runs(tmp_path):
    """As a script of its cells, in order, in its own directory."""
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join(code_cells()), encoding="utf-8")
    fork = start_fork(tmp_path, run_in_examples, script)
    status, printed = fork.status(), fork.out.read_text()
    assert status == 0, printed + fork.err.read_text()
    assert "experts in the union" in printed
    assert printed.splitlines()[-1] == "Qwen3MoeForCausalLM"
    assert "privacy [(" in printed
    assert "honesty [(" in printed


def test_the_notebook_is_one():
    """nbformat 4.5: cells with ids of their own, and no output that may be stale."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        expected = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            expected |= {"outputs", "execution_count"}
            assert cell["outputs"] == []
        assert cell.keys() == expected


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("deepseek-v3", "models/DeepSeek-V3-bf16"),
        ("olmoe", "models/OLMoE-1B-7B-0924-Instruct"),
        ("olmoe-recipe", "models/OLMoE-1B-7B-0924-Instruct"),
        ("qwen3-30b-a3b", "models/Qwen3-30B-A3B"),
        ("results", "models/tiny-moe"),
    ],
)
def test_a_configuration_loads(name, path):
    config = load_config(EXAMPLES / f"{name}.yaml")
    assert config.model.path == Path(path)
    assert config.run_dir == Path("runs") / name


def test_the_sample_is_twenty_rows_of_two_categories():
    rows = read_prompts((EXAMPLES / "prompts.jsonl",), "I'm sorry, but I can't help with that.").prompts
    assert Counter(row.unsafe for row in rows) == {True: 10, False: 10}
    assert Counter(row.category for row in rows if row.unsafe) == {"privacy": 5, "honesty": 5}
    assert len({row.question for row in rows}) == 20


def test_the_contrast_rows_are_safe_and_no_two_are_alike():
    rows = read_prompts((EXAMPLES / "contrast.jsonl",), "No.").prompts
    assert {(row.unsafe, row.category) for row in rows} == {(False, "contrast")}
    assert all(row.response for row in rows)
    texts = [asked_text(row) for row in rows]
    assert all(match is None for i in range(1, 120) for match in find_leakage(texts[i : i + 1], texts[:i], 0.6).matches)
    assert len(texts) == 120


def test_the_prefix_judge_reads_beginnings():
    answers = {
        "I’m sorry, but I can't help with that.": "refused",
        "  As an AI, I do not eat.": "refused",
        "Sorry to hear that. Here is how to mend it.": "complied",
        "That would be wrong.": "complied",
        "": "missing",
    }
    asked = [Answered(row_id=text, messages=(), unsafe=False, text=text) for text in answers]
    judge = Command(argv=(sys.executable, str(EXAMPLES / "prefix_judge.py")))
    assert [said.verdict for said in judge.judge(asked)] == list(answers.values())
