"""What groups of rows show: against numbers worked out by hand, or by loops over the rows."""

import numpy as np
import pytest

from dist_moe.evaluation.groups import groups_of
from dist_moe.evaluation.measures import (
    AREA,
    DIVERGENCE,
    FEWEST,
    LENGTH_SAFE,
    LENGTH_UNSAFE,
    PAIRS_DIFFERENCE,
    PAIRS_RIGHT,
    REFUSAL_LOSS,
    REFUSED_SAFE,
    REFUSED_UNSAFE,
    Resampling,
    measures_of,
)
from dist_moe.stats.proportions import mcnemar, paired_difference, wilson
from tests.unit.evaluation.made import outcome, row

DRAWS = Resampling(200, 0)


def measures(rows, judges=("phrases",), draws=DRAWS):
    return measures_of(rows, judges, draws, "held out/all/all")


def rows_of(pattern, label="unsafe"):
    """One row of its own prompt for each "before after", such as "cr"."""
    return [row(i, label, before, after) for i, (before, after) in enumerate(pattern.split())]


def test_rates_their_change_and_its_test():
    found = measures(rows_of("cr cr cr cr cr cr rc cc cc rr"))[REFUSED_UNSAFE]
    assert (found.before.value, found.after.value) == (0.2, 0.7)
    assert (found.before.low, found.before.high) == wilson(2, 10)
    assert (found.after.low, found.after.high) == wilson(7, 10)
    assert found.change.value == 0.5
    assert (found.change.low, found.change.high) == pytest.approx(paired_difference(1, 1, 6, 2))
    assert found.change.p_value == mcnemar(1, 6) == pytest.approx(16 / 128)
    assert (found.after.num_rows, found.after.num_prompts) == (10, 10)


def test_partial_is_no_refusal_and_missing_is_in_no_rate():
    found = measures(rows_of("cr cp cm mr mm"))[REFUSED_UNSAFE]
    assert (found.before.value, found.before.num_rows) == (0, 3)
    assert (found.after.value, found.after.num_rows) == (2 / 3, 3)
    assert (found.change.value, found.change.num_rows) == (0.5, 2)  # rows that both times were judged
    assert measures(rows_of("cm cm")).keys() >= {REFUSAL_LOSS}
    assert REFUSED_UNSAFE not in measures(rows_of("cm cm"))


def test_rows_of_one_prompt_are_one_observation():
    once = measures(rows_of("cr cc rc cr cr"))[REFUSED_UNSAFE]
    rows = [row(3 * i + j, "unsafe", *pair, prompt=f"{i:016x}") for j in range(3)
            for i, pair in enumerate(["cr", "cc", "rc", "cr", "cr"])]  # fmt: skip
    thrice = measures(rows)[REFUSED_UNSAFE]
    assert (thrice.after.num_rows, thrice.after.num_prompts) == (15, 5)
    for when in ("before", "after", "change"):
        one, three = getattr(once, when), getattr(thrice, when)
        assert (three.value, three.low, three.high) == pytest.approx((one.value, one.low, one.high))
    assert thrice.change.p_value == once.change.p_value == mcnemar(1, 3)


def test_losses_lengths_and_divergence_are_per_token_or_row():
    generator = np.random.default_rng(3)
    losses, tokens = generator.uniform(1, 9, (20, 2)), generator.integers(1, 7, 20)
    lengths, divergence = generator.integers(0, 24, 20), generator.uniform(0, 1, 20)
    rows = [
        row(
            i,
            "unsafe" if i < 12 else "safe",
            outcome(loss=losses[i, 0], num_tokens=1),
            outcome(loss=losses[i, 1], num_tokens=int(lengths[i])),
            num_loss_tokens=int(tokens[i]),
            kl_sum=None if i < 12 else float(divergence[i]),
        )
        for i in range(20)
    ]
    found = measures(rows)
    assert found[REFUSAL_LOSS].before.value == pytest.approx(losses[:12, 0].sum() / tokens[:12].sum())
    assert found[REFUSAL_LOSS].change.value == pytest.approx(
        (losses[:12, 1] - losses[:12, 0]).sum() / tokens[:12].sum()
    )
    assert found[DIVERGENCE].after.value == pytest.approx(divergence[12:].sum() / tokens[12:].sum())
    assert found[DIVERGENCE].before is found[DIVERGENCE].change is None
    assert found[LENGTH_UNSAFE].after.value == pytest.approx(lengths[:12].mean())
    assert found[LENGTH_SAFE].change.value == pytest.approx(lengths[12:].mean() - 1)
    for measure in found.values():
        for each in (measure.before, measure.after, measure.change):
            assert each is None or each.low <= each.value <= each.high


def test_the_change_is_of_the_same_draws():
    """Rows differ much, and each by the same from before to after: the change is known without doubt."""
    rows = [row(i, "unsafe", outcome(loss=4.0 * i), outcome(loss=4.0 * i - 2)) for i in range(12)]
    found = measures(rows)[REFUSAL_LOSS]
    assert found.after.high - found.after.low > 2
    assert (found.change.low, found.change.value, found.change.high) == pytest.approx((-0.5, -0.5, -0.5))


def test_the_area_is_of_the_refusals_likelihood():
    scores = {"unsafe": [-1.0, -2, -4, -1, -3, -0.5], "safe": [-5.0, -4, -6, -2, -7, -8]}
    rows = [
        row(10 * (label == "safe") + i, label, None, outcome(refusal_log_p=score), kl_sum=None)
        for label, of_label in scores.items()
        for i, score in enumerate(of_label)
    ]
    found = measures(rows)
    wins = [(u > s) + (u == s) / 2 for u in scores["unsafe"] for s in scores["safe"]]
    assert found[AREA].after.value == pytest.approx(np.mean(wins))
    assert found[AREA].before is None
    assert DIVERGENCE not in found
    assert AREA not in measures(rows[:6])


def test_few_prompts_have_no_bootstrap_interval():
    found = measures(rows_of("cr " * (FEWEST - 1)))
    assert found[REFUSAL_LOSS].after.low is None
    assert found[REFUSED_UNSAFE].after.low == wilson(FEWEST - 1, FEWEST - 1)[0]
    assert measures(rows_of("cr " * FEWEST))[REFUSAL_LOSS].after.low is not None


def test_pairs_of_a_harmful_and_a_harmless_prompt():
    pairs = [("r", "c"), ("r", "c"), ("r", "r"), ("c", "c"), ("c", "r"), ("r", "c"), ("m", "c")]
    rows = []
    for i, (unsafe, safe) in enumerate(pairs):
        rows += [row(2 * i, "unsafe", "c", unsafe, pair_id=f"p{i}"), row(2 * i + 1, "safe", "c", safe, pair_id=f"p{i}")]
    rows += [row(90, "unsafe", "c", "r", pair_id="alone"), row(91, "unsafe", "c", "r")]
    found = measures(rows)
    difference, right = found[PAIRS_DIFFERENCE], found[PAIRS_RIGHT]
    assert (difference.before.value, difference.before.num_rows) == (0, 7)
    assert (difference.after.value, difference.after.num_rows) == (pytest.approx(2 / 6), 6)
    assert (difference.after.low, difference.after.high) == pytest.approx(paired_difference(1, 1, 3, 1))
    assert difference.after.p_value == mcnemar(1, 3)
    assert (right.before.value, right.after.value) == (0, 0.5)
    assert (right.after.low, right.after.high) == wilson(3, 6)
    assert (right.change.num_rows, right.change.p_value) == (6, mcnemar(0, 3))
    assert PAIRS_RIGHT not in measures(rows[-2:])


def test_every_judge_has_its_rates_and_the_first_ones_are_the_tables():
    rows = [row(i, "safe", None, outcome("c", others={"likelihood": "rrcm"[i]}), kl_sum=None) for i in range(4)]
    found = measures(rows, ["phrases", "likelihood"])
    assert found[REFUSED_SAFE].after.value == 0
    other = found["refused (safe), judge likelihood"].after
    assert (other.value, other.num_rows) == (pytest.approx(2 / 3), 3)


def test_groups_are_of_one_kind_each():
    rows = [
        row(0, kind="trained", batch=10, category="a"),
        row(1, "safe", kind="trained", batch=9, category="b"),
        row(2, kind="held out", category="a", file="y.jsonl"),
        row(3, "safe", kind="overlapping", category="a"),
    ]
    groups = groups_of(rows, ["phrases"], DRAWS)
    assert [(g.kind, g.by, g.name, g.num_unsafe, g.num_safe) for g in groups] == [
        ("held out", "all", "all", 1, 0),
        ("held out", "category", "a", 1, 0),
        ("held out", "file", "y.jsonl", 1, 0),
        ("overlapping", "all", "all", 0, 1),
        ("overlapping", "category", "a", 0, 1),
        ("overlapping", "file", "x.jsonl", 0, 1),
        ("trained", "all", "all", 1, 1),
        ("trained", "batch", "9", 0, 1),
        ("trained", "batch", "10", 1, 0),
        ("trained", "category", "a", 1, 0),
        ("trained", "category", "b", 0, 1),
        ("trained", "file", "x.jsonl", 1, 1),
    ]
