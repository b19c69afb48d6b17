"""An evaluation as it is shown: tables of one kind each, with what makes their numbers worth less."""

from dataclasses import replace

import pytest

from dist_moe.errors import UserError
from dist_moe.evaluation.groups import groups_of
from dist_moe.evaluation.measures import Resampling
from dist_moe.evaluation.record import Evaluation, EvaluationFacts, Judged, disagreements_of, read_evaluation
from dist_moe.evaluation.rows import Likeness
from dist_moe.report.card import quoted
from dist_moe.report.evaluation import estimates_frame, evaluation_lines, rows_frame, shown_p, table_frame
from tests.unit.evaluation.made import outcome, row

JUDGES = ["phrases", "likelihood"]


def answered(verdict, other, **fields):
    return outcome(verdict, others={"likelihood": other}, **fields)


@pytest.fixture
def evaluation():
    like = Likeness(trained="t7", similarity=0.91, is_equal=False)
    cut = replace(answered("r", "r"), ended=False)
    rows = (
        *(row(i, "unsafe", answered("c", "c"), answered("r", "rc"[i % 2])) for i in range(8)),
        *(row(10 + i, "safe", answered("c", "c"), answered("c", "c"), category="baking") for i in range(6)),
        row(20, "safe", answered("c", "c"), answered("m", "c"), kind="overlapping", like=like),
        row(30, "unsafe", answered("c", "c"), cut, kind="trained", batch=3),
    )
    facts = EvaluationFacts(
        model_name="tiny",
        model_hash="a" * 64,
        against_name="tiny",
        against_hash="a" * 64,
        experts_digest="e" * 64,
        tokenizer_hash="t" * 64,
        data_hash="d" * 64,
        files=["some/where/x.jsonl"],
        num_rows=len(rows),
        unknown=None,
        num_not_compared=0,
        judges=[Judged(facts={"name": name}, in_words=f"how {name} judges") for name in JUDGES],
        seed=0,
        settings={"evaluation.resamples": 100, "evaluation.near_equal": 0.8, "evaluation.max_new_tokens": 24},
    )
    groups = groups_of(rows, JUDGES, Resampling(100, 0))
    return Evaluation(facts=facts, groups=groups, disagreements=disagreements_of(rows, JUDGES), rows=rows)


def test_what_is_written_is_read(evaluation, tmp_path):
    evaluation.write(tmp_path / "new")
    assert read_evaluation(tmp_path / "new") == evaluation
    (tmp_path / "new" / "other").touch()
    replace(evaluation, rows=evaluation.rows[:3]).write(tmp_path / "new")
    assert len(read_evaluation(tmp_path / "new").rows) == 3
    assert (tmp_path / "new" / "other").exists()


def test_an_interval_that_looks_certain_is_said_not_to_be(evaluation):
    """Numbers of the made rows are all alike, but for one unsafe row's losses."""
    first, *others = evaluation.rows
    other = {when: replace(getattr(first, when), loss_sum=9.0) for when in ("before", "after")}
    rows = (replace(first, **other), *others)
    changed = replace(evaluation, rows=rows, groups=groups_of(rows, JUDGES, Resampling(100, 0)))
    (line,) = [line for line in evaluation_lines(changed) if "has no width" in line]
    assert set(line.partition(":")[0].split(", ")) == {
        "answer loss (safe)", "KL to the base (safe)", "refusal AUC", "answer tokens (unsafe)", "answer tokens (safe)",
    }  # fmt: skip


def test_lines_say_kinds_leaks_cut_answers_and_disagreement(evaluation):
    text = "\n".join(evaluation_lines(evaluation))
    kinds = ("Held out", "Overlapping", "Trained")
    held_out, overlapping, trained = (text.index(f"\n{kind}: these") for kind in kinds)
    assert held_out < overlapping < trained
    for told in (
        "Before is tiny.",
        "Judge likelihood: how likelihood judges.",
        "Rows that were trained: 1. Others: 15; of these the prompt of 0 is equal to a trained one, and that of 1",
        "x.jsonl:20 is like the trained row t7 (0.91)",
        "8 unsafe and 6 safe rows, 14 different prompts.",
        "1 of 16 answers after are cut: they had not ended after 24 tokens.",
        "By phrases, 1 of 16 answers after could not be judged, and are in no rate.",
        "Judges phrases and likelihood agree on 0.733 of 15 answers after (kappa 0.50); 1 left out.",
        "100 resamples of prompts (seed 0)",
        "Losses and KL are in nats per token",
    ):
        assert told in text, told
    (line,) = [line for line in text[held_out:overlapping].splitlines() if line.startswith("refused (unsafe)  ")]
    assert "0.000 [0.000, 0.324]" in line
    assert "1.000 [0.676, 1.000]" in line
    assert line.split()[-2:] == ["0.008", "8"]
    assert "[too few prompts]" in text[overlapping:]


def test_tables_are_of_one_kind(evaluation):
    with pytest.raises(UserError, match="there are held out and overlapping and trained rows"):
        table_frame(evaluation, "all", None)
    table = table_frame(evaluation, "category", "held out")
    assert table.index.tolist() == ["baking", "hexes"]
    assert table.loc["hexes", ("refused (unsafe)", "change")] == 1
    assert table_frame(evaluation, "batch", "held out").empty
    assert table_frame(evaluation, "batch", "trained").index.tolist() == ["3"]
    line = estimates_frame(evaluation).set_index(["kind", "by", "group", "measure", "when"]).loc[
        ("held out", "all", "all", "refused (unsafe)", "change")
    ]  # fmt: skip
    assert (line["value"], line["num_prompts"]) == (1, 8)
    assert line["p_value"] == pytest.approx(2 / 2**8)
    rows = rows_frame(evaluation.rows)
    assert rows["after.judgements.phrases.verdict"].tolist()[:2] == ["refused", "refused"]


def test_a_card_tells_no_paths(evaluation):
    found = quoted(evaluation)
    assert found.files == ["x.jsonl"]
    assert found.judge == "phrases (how phrases judges)"
    assert {group.by for group in found.groups} == {"all", "category"}


def test_a_p_value_is_never_0():
    assert [shown_p(value) for value in (None, 1.0, 0.0123, 2e-9)] == ["-", "1.000", "0.012", "<0.001"]
