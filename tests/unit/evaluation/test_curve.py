"""The curve over shares of the trained change, and the share that is chosen on it."""

from dataclasses import replace

import pytest

from dist_moe.errors import UserError
from dist_moe.evaluation.curve import Curve, alpha_name, alpha_place, read_curve
from dist_moe.evaluation.groups import groups_of
from dist_moe.evaluation.measures import Resampling
from dist_moe.evaluation.record import Evaluation, EvaluationFacts, Judged
from dist_moe.report.curve import curve_frame, curve_lines
from dist_moe.stats.proportions import wilson
from tests.unit.evaluation.made import row

FACTS = EvaluationFacts(
    model_name="tiny",
    model_hash="0" * 64,
    against_name="base",
    against_hash="1" * 64,
    experts_digest="2" * 64,
    tokenizer_hash="3" * 64,
    data_hash="4" * 64,
    files=["x.jsonl"],
    num_rows=120,
    unknown=None,
    num_not_compared=0,
    judges=[Judged(facts={"name": "phrases"}, in_words="looks for phrases")],
    seed=0,
    settings={"evaluation.near_equal": 0.8, "evaluation.max_new_tokens": 8, "evaluation.resamples": 50},
)


def evaluation(alpha, num_refused_safe, num_refused_unsafe=10, num_safe=100, kind="held out"):
    """Of safe and 20 unsafe prompts, of which so many are refused after; none before."""
    rows = [row(i, "safe", "c", "r" if i < num_refused_safe else "c", kind=kind) for i in range(num_safe)]
    rows += [
        row(1000 + i, "unsafe", "c", "r" if i < num_refused_unsafe else "c", kind=kind, kl_sum=None) for i in range(20)
    ]
    groups = groups_of(rows, ["phrases"], Resampling(50, 0))
    return Evaluation(facts=replace(FACTS, alpha=alpha), groups=groups, disagreements=[], rows=tuple(rows))


def curve(*refused, **settings):
    alphas = (0.25, 0.5, 1.0)
    return Curve({a: evaluation(a, number, **settings) for a, number in zip(alphas, refused, strict=True)})


def test_a_point_is_what_each_alphas_evaluation_has_and_the_first_one_is_the_base():
    points = curve(0, 3, 30).points("held out")
    assert [*points] == [0.0, 0.25, 0.5, 1.0]
    assert [point["refused (safe)"].value for point in points.values()] == [0, 0, 0.03, 0.3]
    assert [point["refused (unsafe)"].value for point in points.values()] == [0, 0.5, 0.5, 0.5]
    assert (points[0.5]["refused (safe)"].low, points[0.5]["refused (safe)"].high) == wilson(3, 100)
    assert "KL to the base (safe)" not in points[0.0]
    frame = curve_frame(curve(0, 3, 30), None)
    assert frame["refused (safe)", "high"].tolist() == [wilson(number, 100)[1] for number in (0, 0, 3, 30)]


def test_the_largest_alpha_is_chosen_by_the_upper_end_of_the_interval():
    """3 of 100 refused is less than 5 %, but the interval goes up to 8.5 %."""
    found = curve(0, 3, 30)
    assert 0.03 < 0.05 < wilson(3, 100)[1] < 0.09
    assert found.largest(0.05) == 0.25
    assert found.largest(0.09) == 0.5
    assert found.largest(0.5) == 1.0
    assert found.largest(0.01) is None


def test_no_alpha_is_chosen_on_trained_rows():
    with pytest.raises(UserError, match="no row is held out from the training, so no alpha can be chosen"):
        curve(0, 0, 0, kind="trained").largest(0.5)


def lines(found, bound=None):
    return "\n".join(curve_lines(found, bound))


def test_a_table_has_a_line_for_each_alpha_with_its_intervals():
    said = lines(curve(0, 3, 30))
    low, high = wilson(3, 100)
    assert [line.split()[0] for line in said.splitlines() if "[" in line][:4] == ["0", "0.25", "0.5", "1"]
    assert f"0.030 [{low:.3f}, {high:.3f}]" in said
    assert "Held out: these rows were not trained" in said
    assert "Alpha 0 is base" in said
    assert "Largest alpha" not in said


def test_a_choice_says_that_its_rows_are_not_held_out_from_it():
    said = lines(curve(0, 3, 30), 0.09)
    assert "Largest alpha with at most 0.09 of the safe held-out prompts refused" in said
    assert (
        "by the upper end of the interval: 0.5. It was chosen on these rows, so they are not held out from it" in said
    )


def test_where_no_alpha_keeps_the_bound_it_says_why():
    few = lines(curve(0, 0, 0, num_safe=20), 0.05)
    assert "No alpha has at most 0.05 of the safe held-out prompts refused" in few
    assert f"with 20 prompts that end is {wilson(0, 20)[1]:.3f} even if none is refused" in few
    assert "try smaller ones" in lines(curve(20, 30, 40), 0.1)


def test_names_and_places_of_alphas(tmp_path):
    assert [alpha_name(each) for each in (1, 1.0, 0.5, 0.30000000000000004)] == ["1", "1", "0.5", "0.30000000000000004"]
    for alpha in (0.5, 1.0):
        evaluation(alpha, 1).write(alpha_place(tmp_path, alpha))
    found = read_curve(tmp_path, [1.0, 0.5])
    assert [*found.evaluations] == [0.5, 1.0]
    assert [each.facts.alpha for each in found.evaluations.values()] == [0.5, 1.0]
