"""Facts of the schema that other rooms rely on."""

import pytest

from dist_moe.config.schema import num_safe_rows


@pytest.mark.parametrize(
    ("batch_size", "safe_ratio", "num_safe"),
    [(16, 0.5, 8), (16, 0.25, 4), (10, 0.3, 3), (10, 0.7, 7), (5, 0.5, 2), (2, 0.5, 1)],
)
def test_safe_rows_of_a_batch(batch_size: int, safe_ratio: float, num_safe: int) -> None:
    assert num_safe_rows(batch_size, safe_ratio) == num_safe
