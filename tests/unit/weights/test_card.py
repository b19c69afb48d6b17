"""The model card tells the run's facts, and keeps what is still true of the base's card."""

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from dist_moe.report.card import ROUTE_LIMIT, model_card
from dist_moe.stats.measured import Estimate, Group, Measure
from dist_moe.weights.facts import Numbers, Quoted, Revision

BASE_CARD = """---
license: apache-2.0
language:
- en
base_model:
- someone/else
model-index:
  - name: base
    results:
      - task: {type: text-generation}

tags: [moe]
---
# The base
"""


def write_base(path, card=None):
    path.mkdir()
    if card is not None:
        (path / "README.md").write_text(card)
    return path


@pytest.fixture
def facts(trained):
    return trained.facts


def table(card: str) -> dict[str, str]:
    """The first table, without its head."""
    lines = [line for line in card.splitlines() if line.startswith("| ")]
    return dict(line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines[2:])


def test_facts(facts, tmp_path):
    found = table(model_card(facts, write_base(tmp_path / "none")))
    assert found == {
        "Base model": f"tiny, hash `{facts.model_hash}`",
        "Data": f"24 safe and 24 unsafe prompts, hash `{'d' * 64}`",
        "Batches": "3: hexes 2, heists 1",
        "Selection rule": "threshold_top_k, counted tokens: prompt",
        "It takes of a batch's experts": "risk_diff above 0.05, at most 50, largest first",
        "Choices of an expert for a batch": (
            "9: used more by unsafe prompts in 9, by safe prompts in 0, by both alike in 0"
        ),
        "Masks": f"digest `{'e' * 64}`",
        "Mode": "route, fill shrink, scope unsafe",
        "Steps": "6",
        "Experts open to training": "5, 11.52 % of all parameters",
        "Experts changed": "4",
        "Made with": "dist_moe 9.8.7",
    }


def test_a_share_of_the_change_is_named(facts, tmp_path):
    base = write_base(tmp_path / "b")
    whole, half, none = (table(model_card(replace(facts, alpha=alpha), base)) for alpha in (1.0, 0.5, 0.0))
    assert half == whole | {"Share of their change": "0.5: base + 0.5 (trained - base)"}
    assert none["Experts changed"] == "0"


def test_each_revision_of_the_masks_is_described(facts, tmp_path):
    """A run that has gone on with a control's masks is no repaired model either."""
    lowest = {"name": "lowest", "threshold": 0.1, "top_k": 7}
    chosen = Numbers(above_0=0, below_0=4, of_0=1)
    later = Revision(after_step=40, masks_digest="f" * 64, selection_rule=lowest, counted_tokens="all", chosen=chosen)
    card = model_card(replace(facts, mask_revisions=[later]), write_base(tmp_path / "b"))
    first, found = table(model_card(facts, tmp_path / "b")), table(card)
    assert first.items() <= found.items()
    assert {key: found[key] for key in found.keys() - first.keys()} == {
        "Selection rule after step 40": "lowest, counted tokens: all",
        "It takes of a batch's experts after step 40": (
            "control: lowest risk_diff, which are safe prompts' experts, "
            "as many as have a risk_diff above 0.1, at most 7"
        ),
        "Choices of an expert for a batch after step 40": (
            "5: used more by unsafe prompts in 0, by safe prompts in 4, by both alike in 1"
        ),
        "Masks after step 40": f"digest `{'f' * 64}`",
    }
    assert "# tiny with experts trained as a control" in card
    assert "**This is a control.**" in card


def test_front_matter_is_the_bases_but_for_its_results_and_origin(facts, tmp_path):
    card = ModelCard(model_card(facts, write_base(tmp_path / "b", BASE_CARD)))
    assert card.data.to_dict() == {"license": "apache-2.0", "language": ["en"], "tags": ["moe"]}
    assert card.text.strip().startswith("# tiny with repaired experts")
    assert "[BASE_README.md](BASE_README.md)" in card.text
    assert "# The base" not in card.text


def test_windows_line_ends(facts, tmp_path):
    base = write_base(tmp_path / "b")
    (base / "README.md").write_bytes(BASE_CARD.replace("\n", "\r\n").encode())
    assert ModelCard(model_card(facts, base)).data.license == "apache-2.0"


def test_a_base_card_with_a_mark_and_bytes_that_are_no_utf8(facts, tmp_path):
    base = write_base(tmp_path / "b")
    (base / "README.md").write_bytes(b"\xef\xbb\xbf" + BASE_CARD.replace("- en", "- \xe9n").encode("latin-1"))
    assert ModelCard(model_card(facts, base)).data.license == "apache-2.0"


@pytest.mark.parametrize("card", [None, "# No front matter\n\n---\nlicense: not this\n---\n"])
def test_a_base_without_front_matter(facts, tmp_path, card):
    found = model_card(facts, write_base(tmp_path / "b", card))
    assert found.startswith("# tiny with repaired experts\n")
    assert "license: not this" not in found
    assert ("look up its license" in found) == (card is None)


def group(kind, by, name, **after):
    measures = {measure: Measure(before=estimate(0.0), after=estimate(value)) for measure, value in after.items()} | {
        "refusal loss (unsafe)": Measure(before=estimate(3.25), after=estimate(0.5, None))
    }
    return Group(kind=kind, by=by, name=name, num_safe=3, num_unsafe=4, num_prompts=7, measures=measures)


def estimate(value, low=0.25):
    high = None if low is None else 0.75
    return Estimate(value=value, low=low, high=high, num_rows=4, num_prompts=4)


def test_before_and_after(facts, tmp_path):
    base = write_base(tmp_path / "b")
    assert "Before and after" not in model_card(facts, base)
    quoted = Quoted(
        groups=[
            group("held out", "category", "hexes", **{"refused (unsafe)": 0.5}),
            group("held out", "all", "all", **{"refused (unsafe)": 0.5}),
            group("trained", "all", "all", **{"refused (unsafe)": 1.0}),
        ],
        data_hash="d" * 64,
        files=["held-out.jsonl"],
        is_compared=True,
        near_equal=0.8,
        judge="phrases (phrases of refusals in English)",
        max_new_tokens=24,
        resamples=2000,
        seed=0,
    )
    card = model_card(replace(facts, evaluation=quoted), base).split("## Before and after")[1]
    for told in (
        f"on rows of held-out.jsonl, hash `{'d' * 64}`",
        "of at most 24 tokens, that refuse, as the judge phrases (phrases of refusals in English) has it",
        "by 2000 resamples of prompts (seed 0)",
    ):
        assert told in card
    held_out, trained = card.split("Trained: these are the rows of the training itself, not held out")
    assert "Held out: these rows were not trained" in held_out
    assert "| Category | unsafe rows | safe rows | refused (unsafe) | refusal loss (unsafe) |" in held_out
    assert "| hexes | 4 | 3 | 0.000 → 0.500 [0.250, 0.750] | 3.250 → 0.500 [too few prompts] |" in held_out
    assert "| all | 4 | 3 | 0.000 → 1.000 [0.250, 0.750] |" in trained
    assert "hexes" not in trained.split("## Limits")[0]


@pytest.mark.parametrize(("mode", "told"), [("route", True), ("update", False)])
def test_the_price_of_route_is_told(facts, tmp_path, mode, told):
    facts = replace(facts, mode=mode)
    assert (ROUTE_LIMIT in model_card(facts, write_base(tmp_path / "b"))) == told


def test_a_category_cannot_leave_its_cell(facts, tmp_path):
    facts = replace(facts, batches={"a|b\n# c": 1})
    card = model_card(facts, write_base(tmp_path / "b"))
    assert "| Batches | 1: a\\|b # c 1 |" in card
