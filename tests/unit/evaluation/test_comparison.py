"""Levels and differences of variants against sums by hand."""

import numpy as np
import pytest

from dist_moe.evaluation.comparison import BASE, Comparison, levels_and_differences
from dist_moe.evaluation.rows import EvaluatedRow, Outcome
from dist_moe.judges import Judgement
from dist_moe.report.comparison import comparison_lines
from dist_moe.stats.crossed import crossed_difference, crossed_mean
from dist_moe.stats.proportions import paired_difference


def outcome(verdict, loss=1.0):
    return Outcome(
        loss_sum=loss,
        refusal_log_p=-1.0,
        answer="",
        num_tokens=1,
        ended=True,
        judgements={"phrases": Judgement(verdict, "")},
    )


def row(number, after, *, label="unsafe", before="complied", kl=None, prompt=None, loss=1.0):
    return EvaluatedRow(
        id=str(number),
        file="f",
        place=str(number),
        label=label,
        category="c",
        prompt=f"{number if prompt is None else prompt:016x}",
        pair_id=None,
        kind="held out",
        batch=None,
        like=None,
        num_loss_tokens=2,
        kl_sum=kl,
        before=outcome(before),
        after=outcome(after, loss),
    )


def rows_of(refused_P, kls_P=()):
    unsafe = [row(i, "refused" if yes else "complied") for i, yes in enumerate(refused_P)]
    return unsafe + [row(100 + i, "complied", label="safe", kl=kl) for i, kl in enumerate(kls_P)]


def values(cell):
    return cell.value, cell.low, cell.high


def test_levels_are_means_over_seeds_and_prompts_and_differences_are_paired():
    ours = np.array([[1, 1, 1, 0, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1, 1, 1]], float)
    other = np.array([[0, 1, 0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 1, 0, 0]], float)
    rows = {
        "ours": [rows_of(seed, [0.2, 0.4]) for seed in ours],
        "other": [rows_of(seed, [0.0, 0.1]) for seed in other],
    }
    levels, differences = levels_and_differences(rows, "phrases", "ours")
    name = "refused (unsafe)"
    for variant, values_SP in (("ours", ours), ("other", other), (BASE, np.zeros((2, 8)))):
        expected = crossed_mean(values_SP, are_rates=True)
        assert values(levels[variant][name]) == (expected.value, expected.low, expected.high)
        assert levels[variant][name].num_prompts == 8
    expected = crossed_difference(other, ours, are_rates=True)
    assert values(differences["other"][name]) == (expected.value, expected.low, expected.high)
    assert differences["other"][name].is_clear
    assert set(differences) == {"other", BASE}
    divergence = "KL to the base (safe)"
    assert levels["ours"][divergence].value == pytest.approx(0.15)  # two tokens a row
    assert (levels["ours"][divergence].low, differences["other"][divergence].low < -0.15) == (0.0, True)
    assert levels[BASE][divergence].value == 0.0
    assert not differences["other"][divergence].is_clear  # two prompts say little


def test_rows_of_one_prompt_are_one_value_and_what_is_missing_anywhere_is_left_out_everywhere():
    ours = [row(0, "refused"), row(1, "complied", prompt=0), row(2, "refused"), row(3, "partial"), row(4, "refused")]
    other = [row(0, "refused"), row(1, "refused", prompt=0), row(2, "missing"), row(3, "refused"), row(4, "complied")]
    levels, differences = levels_and_differences({"ours": [ours], "other": [other]}, "phrases", "ours")
    name = "refused (unsafe)"
    assert levels["ours"][name].num_prompts == 3
    assert levels["ours"][name].value == pytest.approx((0.5 + 0 + 1) / 3)
    assert levels["other"][name].value == pytest.approx((1 + 1 + 0) / 3)
    assert differences["other"][name].value == pytest.approx((0.5 + 1 - 1) / 3)
    assert "refused (safe)" not in levels["ours"]  # no safe row


def test_a_measure_of_one_prompt_has_no_interval_and_is_not_told():
    levels, _ = levels_and_differences({"ours": [[row(0, "refused")]]}, "phrases", "ours")
    assert levels == {BASE: {}, "ours": {}}


def told(rows, reference="ours"):
    levels, differences = levels_and_differences(rows, "phrases", reference)
    num_seeds = len(rows[reference])
    found = Comparison(
        seeds=list(range(num_seeds)),
        judge="phrases",
        kind="held out",
        data_hash="d",
        model_hash="m",
        reference=reference,
        num_experts={name: [3, 5][:num_seeds] for name in rows},
        num_parameters={name: [30, 50][:num_seeds] for name in rows},
        lrs=dict.fromkeys(rows, 1e-3),
        levels=levels,
        differences=differences,
    )
    return "\n".join(comparison_lines(found))


def test_the_table_marks_only_what_is_beyond_chance():
    clear, not_clear = np.zeros((2, 30)), np.ones((2, 30))
    not_clear[:, :3] = 0
    rows = {name: [rows_of(seed) for seed in some] for name, some in
            (("ours", np.ones((2, 30))), ("worse", clear), ("like", not_clear))}  # fmt: skip
    text = told(rows)
    below = {
        line.split()[0]: line for line in text.partition("Differences to ours")[2].splitlines()[1:] if line.strip()
    }
    low, high = paired_difference(0, 30, 0, 0)
    assert f"-1.000 [{low:+.3f}, {high:+.3f}] *" in below["worse"]
    assert high > -0.95  # thirty prompts say no more
    assert "*" not in below["like"]
    assert "3 to 5" in below["like"]
    assert "30 to 50" in below["like"]
    assert "3 variants, seeds 0, 1; 30 held-out prompts" in text
    assert "Mean over seeds and prompts [95 % interval for other seeds and prompts]" in text
    assert "One seed" not in text


def test_one_seed_is_said_to_say_nothing_of_others():
    text = told({"ours": [rows_of([1, 0, 1])]})
    assert "1 variant, seed 0; " in text
    assert "Mean over prompts [95 % interval for other prompts]" in text
    assert "One seed says nothing of others" in text
    assert "seeds" not in text
