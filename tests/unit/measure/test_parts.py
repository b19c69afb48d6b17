"""Counts that are kept: taken again for the same rows, labels and settings only."""

import dataclasses

import numpy as np
import pytest

from dist_moe.data.tokens import Encoded
from dist_moe.errors import UserError
from dist_moe.measure import parts as parts_module
from dist_moe.measure.parts import CountedParts, share_of
from dist_moe.selection.evidence import evidence_of_each
from dist_moe.stats.counts import concatenate
from dist_moe.stats.settings import StatisticsConfig
from tests.batches import batch_index
from tests.unit.stats.prompts import random_counts

SIZES = (4, 4, 6, 4, 4)
UNSAFE = [number >= size // 2 for size in SIZES for number in range(size)]
PAIRS = [None, "a", "a", None] + [None] * 18
TEXTS = [str(row) for row in range(22)]
INDEX = batch_index(SIZES, UNSAFE, TEXTS, PAIRS)
COUNTS = random_counts(0, len(UNSAFE))
COUNTS = dataclasses.replace(
    COUNTS,
    tables={
        "gates": np.random.default_rng(0).random(COUNTS.counts_PLE.shape, np.float32),
        "prefill_tokens": np.arange(22, dtype=np.int32),
    },
)
FACTS = {"model_hash": "m", "tokens": "all"}


def rows_of(batch):
    return [Encoded((batch, number), (4,), number >= SIZES[batch] // 2) for number in range(SIZES[batch])]


@pytest.fixture(autouse=True)
def two_batches_a_part(monkeypatch):
    monkeypatch.setattr(parts_module, "ROWS_AT_ONCE", 8)


def all_parts(directory, facts=FACTS, index=INDEX, rows=rows_of):
    return CountedParts(directory, facts, index, rows)


def kept(directory):
    parts = all_parts(directory)
    for number, part in enumerate(parts.parts):
        prompts = INDEX.rows(part)
        parts.keep(number, COUNTS.of(prompts))
    return parts


def same(found, expected):
    assert (found.counts_PLE == expected.counts_PLE).all()
    assert (found.tokens_P == expected.tokens_P).all()
    assert found.experts_per_token == expected.experts_per_token
    assert found.tables.keys() == expected.tables.keys()
    assert all((found.tables[name] == table).all() for name, table in expected.tables.items())


def test_kept_counts_come_back_for_any_batches(tmp_path):
    parts = all_parts(tmp_path)
    assert [list(part) for part in parts.parts] == [[0, 1], [2, 3], [4]]
    assert parts.rows(1) == rows_of(2) + rows_of(3)
    assert parts.missing(range(3)) == [0, 1, 2]
    kept(tmp_path)
    parts = all_parts(tmp_path, {"tokens": "all", "model_hash": "m"})
    assert parts.missing(range(3)) == []
    for first in range(5):
        for last in range(first + 1, 6):
            same(parts.counts(range(first, last)), COUNTS.of(slice(sum(SIZES[:first]), sum(SIZES[:last]))))


def test_nothing_is_taken_for_other_rows_labels_or_settings(tmp_path):
    kept(tmp_path)
    assert all_parts(tmp_path, FACTS | {"tokens": "prompt"}).missing(range(3)) == [0, 1, 2]
    assert all_parts(tmp_path, FACTS | {"model_hash": "n"}).missing(range(3)) == [0, 1, 2]
    for change in (
        lambda row: dataclasses.replace(row, prompt_ids=(*row.prompt_ids, 9)),
        lambda row: dataclasses.replace(row, prompt_ids=(row.prompt_ids[0],), response_ids=(row.prompt_ids[1], 4)),
        lambda row: dataclasses.replace(row, unsafe=not row.unsafe),
        lambda row: dataclasses.replace(row, span=(0, 2)),
    ):
        others = all_parts(tmp_path, rows=lambda batch, change=change: [change(row) for row in rows_of(batch)])
        assert others.missing(range(3)) == [0, 1, 2]
    swapped = all_parts(tmp_path, rows=lambda batch: rows_of(batch)[::-1] if batch == 3 else rows_of(batch))
    assert swapped.missing(range(3)) == [1]
    unpaired = batch_index(SIZES, UNSAFE, TEXTS, [None] * 22)
    assert all_parts(tmp_path, index=unpaired).missing(range(3)) == [0]
    clustered = batch_index(SIZES, UNSAFE, [*TEXTS[:-1], TEXTS[-2]], PAIRS)
    assert all_parts(tmp_path, index=clustered).missing(range(3)) == [2]
    turned = dataclasses.replace(INDEX, unsafe_P=~INDEX.unsafe_P)
    assert all_parts(tmp_path, index=turned).missing(range(3)) == [0, 1, 2]


@pytest.mark.parametrize("harm", ["cut", "flip", "empty"])
def test_a_damaged_file_is_refused_and_can_be_counted_again(tmp_path, harm):
    parts = kept(tmp_path)
    for file in tmp_path.iterdir():
        data = bytearray(file.read_bytes())
        data[-40] ^= 1
        file.write_bytes({"cut": bytes(data[:-50]), "flip": data, "empty": b""}[harm])
    with pytest.raises(UserError, match=r"counts is damaged: remove it, and run"):
        parts.counts(range(1))
    same(kept(tmp_path).counts(range(5)), COUNTS)


def test_an_artefact_of_another_part_is_damage(tmp_path):
    parts = kept(tmp_path)
    first, second = (parts._path(part) for part in (0, 1))
    second.write_bytes(first.read_bytes())
    with pytest.raises(UserError, match="counts is damaged: remove it, and run"):
        parts.counts(range(3))


def test_a_batch_without_tokens_in_an_arm_is_refused_and_not_kept(tmp_path):
    parts = all_parts(tmp_path)
    silent = COUNTS.of(slice(10, 18))
    safe_P = ~INDEX.unsafe_P[10:18]
    silent.counts_PLE[4:][safe_P[4:]] = 0
    silent.tokens_P[4:][safe_P[4:]] = 0
    with pytest.raises(UserError, match=r"batch 3 \(c, id3\): its safe prompts have no counted token"):
        parts.keep(1, concatenate([COUNTS.of(slice(8, 10)), silent]))
    assert parts.missing(range(3)) == [0, 1, 2]


def test_evidence_of_some_batches_is_theirs():
    some = INDEX.of(range(1, 3)).of(range(1, 2))
    (batch,) = evidence_of_each(some, COUNTS.of(slice(8, 14)), StatisticsConfig(), seed=3)
    assert (batch.seed, batch.batch) == (3, 2)
    assert batch.unsafe_P.tolist() == UNSAFE[8:14]


def test_shares_are_every_part_once():
    assert list(share_of(None, 5)) == [0, 1, 2, 3, 4]
    assert [list(share_of(f"{i}/3", 8)) for i in (1, 2, 3)] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert list(share_of("4/4", 2)) == []


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/2/3"])
def test_a_share_of_another_form_is_refused(part):
    with pytest.raises(UserError, match=r"analysis\.part"):
        share_of(part, 3)
