"""Prompts of the training found among evaluated ones; every pair compared by a loop is the reference."""

import random

import pytest

from dist_moe.data.rows import Message, Prompt
from dist_moe.evaluation import leakage
from dist_moe.evaluation.leakage import asked_text, find_leakage

WORDS = "bake the bread slowly in a warm oven with some salt and much patience before the guests come"


def text(*contents, roles=("user",)):
    messages = tuple(Message(role, content) for role, content in zip(roles, contents, strict=True))
    return asked_text(Prompt("x", messages, None, False, None, "f:1"))


def test_case_width_and_white_space_do_not_count():
    assert text("How  do I\n bake\u00a0ﬁne BREAD?") == text("how do i bake fine bread? ") == "how do i bake fine bread?"
    assert text("Be brief.", "Bake bread", roles=("system", "user")) == text("bake bread")
    assert text("bake bread!") != text("bake bread?")


def similarity(one, other):
    grams = [{each[i : i + 5] for i in range(max(1, len(each) - 4))} for each in (one, other)]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


def variants(number):
    """Prompts of a few words, some of which are others with a letter or a word changed."""
    draw = random.Random(4)
    words = WORDS.split()
    out = []
    for _ in range(number):
        if out and draw.random() < 0.6:
            changed = list(draw.choice(out))
            for _ in range(draw.randint(0, 2)):
                changed[draw.randrange(len(changed))] = draw.choice("abcxyz ")
            out.append(" ".join("".join(changed).split()))
        else:
            out.append(" ".join(draw.choices(words, k=draw.randint(1, 16))))
    return out


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_what_is_found_is_what_comparing_every_pair_finds(threshold):
    texts = variants(240)
    evaluated, trained = texts[::2], texts[1::2]
    found = find_leakage(evaluated, trained, threshold)
    assert found.num_not_compared == 0
    kinds = set()
    for one, match in zip(evaluated, found.matches, strict=True):
        best = max((similarity(one, other), one == other) for other in trained)
        kinds.add((match is not None, one in trained))
        if match is None:
            assert best[0] < threshold
        else:
            assert match.similarity == pytest.approx(best[0])
            assert match.is_equal == (one in trained)
            assert similarity(one, trained[match.trained]) == pytest.approx(match.similarity)
            assert trained.index(trained[match.trained]) == match.trained
    assert {(True, True), (False, False)} <= kinds
    assert ((True, False) in kinds) == (threshold < 1)


def test_short_prompts():
    assert find_leakage(["", "a", "ab"], ["a"], 0.8).matches[1].is_equal
    assert [match is None for match in find_leakage(["", "a", "ab"], ["a"], 0.8).matches] == [True, False, True]
    assert find_leakage(["a"], [], 0.8).matches == (None,)


def test_what_would_take_too_long_is_counted_and_equal_ones_are_found_all_the_same(monkeypatch):
    monkeypatch.setattr(leakage, "MOST_COMPARISONS", 1)
    trained = [f"bake the bread in an oven of {n} degrees" for n in range(100, 140)]
    found = find_leakage([trained[3], trained[4] + "!", trained[4] + "!", "something else"], trained, 0.5)
    assert found.matches[0].is_equal
    assert found.matches[1:] == (None, None, None)
    assert found.num_not_compared == 2
