import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_moe.errors import UserError
from dist_moe.stats.names import batch_name, expert_name, parse_expert_name


@pytest.mark.parametrize(
    ("layer", "expert", "name"), [(8, 42, "L08_E42"), (0, 0, "L00_E00"), (47, 127, "L47_E127"), (100, 7, "L100_E07")]
)
def test_expert_name(layer, expert, name):
    assert expert_name(layer, expert) == name
    assert parse_expert_name(name) == (layer, expert)


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_every_name_reads_back(layer, expert):
    assert parse_expert_name(expert_name(layer, expert)) == (layer, expert)


@pytest.mark.parametrize("name", ["", "8,42", "L08", "E42_L08", "L-1_E02", "L08_E42x", "l08_e42"])
def test_another_form_is_refused(name):
    with pytest.raises(UserError, match="expected the form L08_E42"):
        parse_expert_name(name)


def test_batch_name():
    assert batch_name(3, "hacking", "1f2e3d4c5b6a7988") == "batch 3 (hacking, 1f2e3d4c5b6a)"
