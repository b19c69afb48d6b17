"""Counts that are kept: taken again for the same rows and settings only."""

from dataclasses import replace

import numpy as np
import pytest

from dist_moe.analysis.parts import CountedParts, share_of
from dist_moe.data.tokens import Encoded
from dist_moe.errors import UserError
from dist_moe.risk.counts import RoutingCounts

ROWS = [Encoded((1, 2, 3), (4,)), Encoded((5,), ())]
COUNTS = RoutingCounts(np.arange(12).reshape(2, 2, 3) % 3, np.array([3, 2]), 2)


def test_kept_counts_come_back(tmp_path):
    parts = CountedParts(tmp_path / "counts", {"model_hash": "m", "tokens": "all"})
    assert parts.find(ROWS) is None
    parts.keep(ROWS, COUNTS)
    found = CountedParts(tmp_path / "counts", {"tokens": "all", "model_hash": "m"}).find(list(ROWS))
    assert (found.counts_PLE == COUNTS.counts_PLE).all()
    assert (found.tokens_P == COUNTS.tokens_P).all()
    assert found.experts_per_token == 2
    assert found.tables == {}
    tables = {"gates": np.random.default_rng(0).random((2, 2, 3), np.float32), "prefill_tokens": np.array([3, 1])}
    parts.keep(ROWS, replace(COUNTS, tables=tables))
    found = parts.find(ROWS).tables
    assert found.keys() == tables.keys()
    assert all((found[name] == table).all() for name, table in tables.items())


def test_nothing_is_taken_for_other_rows_or_settings(tmp_path):
    facts = {"model_hash": "m", "tokens": "all"}
    CountedParts(tmp_path, facts).keep(ROWS, COUNTS)
    assert CountedParts(tmp_path, facts | {"tokens": "prompt"}).find(ROWS) is None
    assert CountedParts(tmp_path, facts | {"model_hash": "n"}).find(ROWS) is None
    for others in (ROWS[:1], ROWS[::-1], [Encoded((1, 2), (3, 4)), ROWS[1]]):
        assert CountedParts(tmp_path, facts).find(others) is None
    for change in ({"unsafe": True}, {"span": (0, 2)}):
        assert CountedParts(tmp_path, facts).find([replace(ROWS[0], **change), ROWS[1]]) is None


@pytest.mark.parametrize("harm", ["cut", "flip", "empty"])
def test_a_damaged_file_is_as_none(tmp_path, harm):
    parts = CountedParts(tmp_path, {})
    parts.keep(ROWS, COUNTS)
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    data[-40] ^= 1
    file.write_bytes({"cut": bytes(data[:-50]), "flip": data, "empty": b""}[harm])
    assert parts.find(ROWS) is None
    parts.keep(ROWS, COUNTS)
    assert parts.find(ROWS) is not None


def test_shares_are_every_part_once():
    assert list(share_of(None, 5)) == [0, 1, 2, 3, 4]
    assert [list(share_of(f"{i}/3", 8)) for i in (1, 2, 3)] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert list(share_of("4/4", 2)) == []


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/2/3"])
def test_a_share_of_another_form_is_refused(part):
    with pytest.raises(UserError, match=r"analysis\.part"):
        share_of(part, 3)
