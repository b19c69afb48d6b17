"""Mutations can be tried, and the page has them all."""

from __future__ import annotations

import pytest

from tests.forks import PRELOADED
from tools.mutations import PAGE, ROOT, Mutation, chosen, is_killed, problems, read_mutations, table

PASSES = "def test_one():\n    from module import one\n    assert one() == 1\n"
MUTATION = Mutation("part", "one is two", "module.py", "return 1", "return 2", "test_module.py::test_one")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.mutations.LIBRARIES", [PRELOADED])  # a process has one server of forks
    (tmp_path / "module.py").write_text("def one():\n    return 1\n")
    (tmp_path / "test_module.py").write_text(PASSES)
    return tmp_path


@pytest.mark.parametrize("mutation", read_mutations(ROOT), ids=lambda m: f"{m.part}: {m.what}")
def test_every_mutation_can_be_tried(mutation):
    assert problems(ROOT, mutation) == []


def test_the_page_has_every_mutation():
    assert table(read_mutations(ROOT)) in (ROOT / PAGE).read_text(encoding="utf-8"), "run tools/mutations.py --table"


def test_a_mutation_that_a_test_sees_is_killed_and_the_file_is_as_before(tree):
    assert is_killed(tree, MUTATION)
    assert (tree / "module.py").read_text() == "def one():\n    return 1\n"


@pytest.mark.parametrize("new", ["return 1.0", "return ("])  # the same, and no module at all
def test_a_mutation_that_no_test_sees_survives(tree, new):
    (tree / "test_module.py").write_text("import module\n" + PASSES)
    assert not is_killed(tree, Mutation("part", "", "module.py", "return 1", new, "test_module.py::test_one"))


def test_an_entry_that_has_lost_its_place_or_its_test_is_told(tree):
    assert problems(tree, MUTATION) == []
    lost = Mutation("part", "lost", "module.py", "return 3", "", "test_module.py::test_two")
    assert problems(tree, lost) == [
        "part: lost: its old text stands in module.py 0 times, expected once",
        "part: lost: there is no test test_module.py::test_two",
    ]


def test_mutations_are_chosen_by_part_and_by_what_they_break():
    mutations = [Mutation(part, what, "", "", "", "") for part in ("a", "b") for what in ("scope", "lr")]
    assert [(m.part, m.what) for m in chosen(mutations, ["a:lr", "b"])] == [("a", "lr"), ("b", "scope"), ("b", "lr")]
    assert chosen(mutations, []) == mutations
