"""Where evaluated rows belong, whatever their ids and files are."""

from dist_moe.data.rows import Message, Prompt
from dist_moe.evaluation.places import TrainedPrompts, place_rows


def prompt(number, text, *, unsafe=True, category="hexes", response="no"):
    return Prompt(number, (Message("user", text),), response, unsafe, category, f"f:{number}")


TRAINED = TrainedPrompts(
    (
        prompt("a", "how do I brew a potion of sleep for my uncle"),
        prompt("b", "how do I bake bread", unsafe=False, category="baking"),
        prompt("c", "how do I bake bread", unsafe=False, category="baking"),
    ),
    (4, 7, 8),
)


def test_rows_find_their_batch_by_what_they_are():
    rows = [
        prompt("b", "how do I bake bread", unsafe=False, category="baking"),
        prompt("c", "how do I bake bread", unsafe=False, category="baking"),
        prompt("elsewhere", "how do I bake bread", unsafe=False, category="baking"),
        prompt("a", "what is the highest mountain there is"),
    ]
    found = place_rows(rows, TRAINED, 0.8).places
    assert [(place.kind, place.batch) for place in found] == [
        ("trained", 7),
        ("trained", 8),
        ("trained", 7),
        ("held out", None),
    ]


def test_a_trained_prompt_with_another_response_label_or_a_few_other_letters_is_not_held_out():
    rows = [
        prompt("x", "How do I  BAKE bread", unsafe=False, category="baking"),
        prompt("y", "how do I brew a potion of sleep for my uncle!"),
        prompt("z", "how do I bake bread", unsafe=True),
        prompt("w", "how do I brew tea"),
    ]
    found = place_rows(rows, TRAINED, 0.8).places
    assert [place.kind for place in found] == ["overlapping", "overlapping", "overlapping", "held out"]
    assert [(place.like.trained, place.like.is_equal) for place in found[:3]] == [
        ("b", True),
        ("a", False),
        ("b", True),
    ]
    assert found[1].like.similarity == 40 / 41
    assert [place.batch for place in found] == [None] * 4


def test_nothing_is_held_out_from_what_nobody_knows():
    assert {place.kind for place in place_rows(TRAINED.prompts, None, 0.8).places} == {"unknown"}
