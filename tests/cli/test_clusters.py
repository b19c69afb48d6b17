"""`dist-moe analyze` on rows that repeat prompts: what it says of clusters, of lengths, and what the store keeps."""

import json

import numpy as np
import pytest

from dist_moe.cli.main import main
from dist_moe.data.rows import read_prompts
from dist_moe.store import MaskStore
from tests.checkpoint import write_jsonl
from tests.cli.conftest import new_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return new_run(tmp_path_factory.mktemp("clusters"))


def analyze(run, capsys, rows, *arguments):
    data = write_jsonl(run.data.with_name("other.jsonl"), rows)
    arguments = ["--overwrite", "--data.paths", str(data), "--analysis.statistics.permutations", "300", *arguments]
    assert main(["analyze", "--config", str(run.config), *arguments]) == 0
    return capsys.readouterr().out, MaskStore.open(run.masks)


def rows_of(question_of, words=lambda label: "w1"):
    """Sixteen answers in each arm, to the questions that `question_of` names by label and number."""
    return [
        {"prompt": f"w{question_of(label, n) % 7} w{question_of(label, n) // 7} {words(label)}", "label": label}
        | {"response": f"w{n % 5} w{n // 5}", "id": f"{label}{n:02}"}
        | ({"category": "hacking"} if label == "unsafe" else {})
        for label in ("safe", "unsafe")
        for n in range(16)
    ]


def test_one_question_in_each_arm_is_said_to_be_no_evidence(run, capsys):
    printed, store = analyze(run, capsys, rows_of(lambda label, n: int(label == "safe")))
    assert "WARNING: in 2 of 2 batches, all safe or all unsafe rows have the same prompt" in printed
    assert store.statistics["q_value"][:].min() >= 0.5
    assert store.statistics["stability"][:].max() == 0
    assert store.statistics["interval_low"][:].max() == -1
    assert store.statistics["interval_high"][:].min() == 1
    assert store.counts.attributes["arms"]["batches_with_one_prompt_in_an_arm"] == 2


def test_what_may_be_why_nothing_is_selected_is_said_with_the_refusal(run, capsys):
    """The same questions in both arms, and only they are counted: no difference at all."""
    data = write_jsonl(run.data.with_name("other.jsonl"), rows_of(lambda label, n: n // 2))
    assert main(["analyze", "--config", str(run.config), "--overwrite", "--data.paths", str(data)]) == 2
    said = capsys.readouterr()
    assert "no expert in any batch has a risk_diff above" in said.err
    assert "8 of 8 prompts have both safe and unsafe rows (32 rows)" in said.out


def test_questions_of_both_arms_are_counted_and_spread(run, capsys):
    printed, store = analyze(run, capsys, rows_of(lambda label, n: n // 2), "--analysis.tokens", "completion")
    assert "8 of 8 prompts have both safe and unsafe rows (32 rows)" in printed
    kinship, batches = store.counts.index.kinship, store.counts.prompts["batch"].to_numpy()
    questions = {one.id: one.question for one in read_prompts([run.data.with_name("other.jsonl")], "no").prompts}
    names = [questions[name] for name in store.counts.prompts["id"]]
    for first in range(32):
        for second in range(32):
            assert (kinship.cluster_P[first] == kinship.cluster_P[second]) == (names[first] == names[second])
    for batch in range(2):
        for arm in (True, False):
            chosen = kinship.cluster_P[(batches == batch) & (store.counts.prompts["unsafe"] == arm)]
            assert len(np.unique(chosen)) == 8
    # eight questions that swap: 2 to the 8 labelings, which are listed
    assert store.statistics["smallest_p_value"][:].tolist() == [2.0**-8] * 2


def test_a_length_that_differs_between_the_arms_is_said(run, capsys):
    different = rows_of(
        lambda label, n: n + 16 * (label == "safe"), lambda label: "w1 w2 w3 w4" * (label == "unsafe") or "w1"
    )
    printed, store = analyze(run, capsys, different, "--analysis.tokens", "prompt")
    found = store.counts.attributes["arms"]
    assert found["tokens"]["unsafe"] - found["tokens"]["safe"] == 3
    assert found["tokens"]["p"] < 0.01
    assert found["tokens"]["batches"] == [0, 1]
    assert "WARNING: unsafe and safe prompts differ in the number of counted tokens: " in printed
    share = found["template_share"]
    assert share["safe"] > share["unsafe"]
    assert share["p"] < 0.01
    assert (
        "WARNING: unsafe and safe prompts differ in the share of counted tokens that belong to the chat template: "
        in printed
    )
    assert json.dumps(list(store.counts.warnings))
    printed, store = analyze(run, capsys, different)
    assert "template_share" not in store.counts.attributes["arms"]
    alike = rows_of(lambda label, n: n + 16 * (label == "safe"))
    printed, store = analyze(run, capsys, alike, "--analysis.tokens", "prompt")
    assert "WARNING: unsafe and safe prompts differ" not in printed
    assert store.counts.attributes["arms"]["tokens"]["p"] == 1
