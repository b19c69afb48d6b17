"""Dividing rows into two parts by prompt and pair, against what each row says."""

import pytest

from dist_moe.data.rows import Message, Prompt, parse_row, row_of
from dist_moe.data.validation import divide


def prompt(number, text, *, unsafe=False, category=None, pair=None):
    return Prompt(f"row {number}", (Message("user", text),), "answer", unsafe, category, f"file:{number}", pair)


def rows():
    """Some prompts have several rows, some rows are pairs, and one prompt joins two pairs."""
    found = [prompt(i, f"safe {i // 2}") for i in range(20)]
    found += [prompt(100 + i, f"bad {i}", unsafe=True, category="ab"[i % 2]) for i in range(24)]
    for i in range(8):
        found.append(prompt(200 + i, f"mild {i // 2}", pair=f"pair {i}"))
        found.append(prompt(300 + i, f"wild {i}", unsafe=True, category="a", pair=f"pair {i}"))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_no_prompt_and_no_pair_is_on_both_sides(seed):
    found = rows()
    parts = divide(found, 0.25, seed)
    assert sorted(p.id for p in parts.fitted + parts.validation) == sorted(p.id for p in found)
    for key in (lambda p: p.question, lambda p: p.pair_id):
        sides = [{key(p) for p in part} - {None} for part in (parts.fitted, parts.validation)]
        assert not sides[0] & sides[1]
    for unsafe, category in ((False, None), (True, "a"), (True, "b")):
        of_kind = [p for p in parts.validation if p.unsafe == unsafe and p.category == category]
        every = [p for p in found if p.unsafe == unsafe and p.category == category]
        assert 0.1 <= len(of_kind) / len(every) <= 0.5


def test_it_follows_from_the_seed_and_not_from_the_order_of_rows():
    found = rows()
    chosen = [{p.id for p in divide(some, 0.25, seed).validation} for some in (found, found[::-1]) for seed in (1, 2)]
    assert chosen[0] == chosen[2]
    assert chosen[1] == chosen[3]
    assert chosen[0] != chosen[1]


def test_a_row_is_read_as_it_was_written():
    for each in (
        *rows(),
        Prompt("x", (Message("system", "s"), Message("user", "u")), "a", True, "c", "f", None, "u", "r"),
    ):
        assert parse_row(row_of(each), each.source) == each
