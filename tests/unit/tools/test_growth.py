"""Exponents are those of the times, and the tool runs."""

import pytest

from tools.growth.__main__ import over_batches, over_experts, over_shares
from tools.growth.table import draw, exponent, in_words, table


@pytest.mark.parametrize(("power", "words"), [(0, "hardly"), (0.5, "less than in proportion"), (1, "in proportion"),
                                              (1.5, "more than in proportion"), (2, "with the square"),
                                              (3, "with the cube")])  # fmt: skip
def test_an_exponent_is_that_of_the_largest_sizes(power, words):
    times = {10: 0.5} | {size: 1e-3 * size**power * 100 for size in (100, 1000, 4000)}
    assert exponent(times) == pytest.approx(power)
    assert in_words(exponent(times)) == f"{words} ({power:.1f})"


def test_times_that_every_call_costs_are_in_no_exponent():
    assert exponent({10: 0.004, 100: 0.005, 1000: 0.2}) is None
    assert in_words(None) == ""


def test_cases_are_measured_and_drawn(tmp_path):
    times = over_batches(["batches of rows in pairs", "inspect summary", "category specificity"], [28, 56], 30.0)
    assert all(found.keys() == {28, 56} for found in times.values())
    lines = table(times, [28, 56], "CPU seconds, batches").splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in times]
    draw(times, "batches", tmp_path / "growth.svg")
    assert "inspect summary" in (tmp_path / "growth.svg").read_text()


def test_a_step_holds_gradients_and_state_of_what_is_trained():
    """Each expert has 3 matrices of 16 x 8 float32 values; a quarter is trained, or the given share. Adam has two
    moments of each."""
    of_expert = 3 * 16 * 8 * 4 / 1e3
    found = over_experts([8]) | {f"share: {name}": each for name, each in over_shares([1, 50]).items()}
    assert found["experts' weights, kB"] == {8: 2 * 8 * of_expert}
    assert found["gradients, kB"] == {8: 2 * 2 * of_expert}
    assert found["optimizer state, kB"] == {8: 2 * 2 * 2 * of_expert}
    assert found["share: experts' weights, kB"] == dict.fromkeys((1, 50), 2 * 128 * of_expert)
    assert found["share: gradients, kB"] == pytest.approx({1: 2 * of_expert, 50: 2 * 64 * of_expert})
    assert found["share: optimizer state, kB"] == pytest.approx({1: 4 * of_expert, 50: 4 * 64 * of_expert})
    assert all(value > 0 for value in found["a training step, ms"].values())


def test_a_zero_is_not_drawn_as_another_number(tmp_path):
    draw({"bytes": {1: 0.0, 2: 5.0, 4: 7.0}}, "ranks", tmp_path / "with.svg")
    draw({"bytes": {2: 5.0, 4: 7.0}}, "ranks", tmp_path / "without.svg")
    assert (tmp_path / "with.svg").read_bytes() == (tmp_path / "without.svg").read_bytes()
