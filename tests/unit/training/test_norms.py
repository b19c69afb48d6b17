import numpy as np
import pytest
import torch

from dist_moe.training.norms import PART, row_norms


@pytest.mark.parametrize("size", [1, 7, PART, PART + 1, 5 * PART, 300 * PART + 13])
def test_as_exact_as_float64(size):
    rows = torch.randn(3, size, generator=torch.Generator().manual_seed(size)) * torch.tensor([[1e-6], [1.0], [1e6]])
    expected = np.sqrt((rows.double().numpy() ** 2).sum(1))
    np.testing.assert_allclose(row_norms(rows).numpy(), expected, rtol=2e-7)
    assert row_norms(rows).dtype == torch.float64


def test_a_rows_norm_has_the_same_bits_whatever_is_beside_it():
    rows = torch.randn(9, 40 * PART + 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat([row_norms(row[None]) for row in rows]), row_norms(rows))


@pytest.mark.parametrize("value", [1e-30, -1e-30, 1e-45])
def test_only_zeros_have_norm_zero(value):
    rows = torch.zeros(2, 2 * PART)
    rows[1, 5] = value
    zero, tiny = row_norms(rows).tolist()
    assert zero == 0
    assert tiny == pytest.approx(float(np.float32(abs(value))), rel=1e-6, abs=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_so(value):
    rows = torch.ones(2, PART + 3)
    rows[0, 1] = value
    found = row_norms(rows)
    assert not torch.isfinite(found[0])
    assert torch.isfinite(found[1])
