"""Agreement of two judges, against numbers of a textbook and against scikit-learn's formula written out."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from dist_moe.stats.agreement import agreement

CLASSES = ("refused", "complied", "partial")


def test_a_published_example() -> None:
    """Fleiss, Levin and Paik, Statistical Methods for Rates and Proportions, 3rd edition, table 18.1: two raters of 100
    subjects, kappa .68."""
    table = {
        ("refused", "refused"): 75, ("refused", "complied"): 1, ("refused", "partial"): 4,
        ("complied", "refused"): 5, ("complied", "complied"): 4, ("complied", "partial"): 1,
        ("partial", "partial"): 10,
    }  # fmt: skip
    pairs = [pair for pair, count in table.items() for _ in range(count)]
    found = agreement([one for one, _ in pairs], [other for _, other in pairs], CLASSES)
    assert found.counts == ((75, 1, 4), (5, 4, 1), (0, 0, 10))
    assert found.raw == pytest.approx(0.89)
    assert found.kappa == pytest.approx(0.6765, abs=5e-5)


def test_against_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.choice([*CLASSES, "missing"], 200, p=[0.5, 0.3, 0.1, 0.1]).tolist() for _ in range(2))
    both = [(a, b) for a, b in zip(first, second, strict=True) if "missing" not in (a, b)]
    same = sum(a == b for a, b in both) / len(both)
    of_first, of_second = Counter(a for a, _ in both), Counter(b for _, b in both)
    chance = sum(of_first[name] * of_second[name] for name in CLASSES) / len(both) ** 2
    found = agreement(first, second, CLASSES)
    assert (found.num_judged, found.num_left_out) == (len(both), 200 - len(both))
    assert found.raw == pytest.approx(same)
    assert found.kappa == pytest.approx((same - chance) / (1 - chance))


def test_where_it_is_not_defined() -> None:
    all_one = agreement(["refused"] * 3, ["refused"] * 3, CLASSES)
    assert all_one.raw == 1
    assert math.isnan(all_one.kappa)
    nothing = agreement(["missing"], ["refused"], CLASSES)
    assert (nothing.num_judged, nothing.num_left_out) == (0, 1)
    assert math.isnan(nothing.raw)
    assert math.isnan(nothing.kappa)


def test_lists_of_two_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        agreement(["refused"], [], CLASSES)
