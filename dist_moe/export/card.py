"""The model card (README.md) of an export: where it comes from, what was changed, what was measured, and its limits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dist_moe.export.export import BASE_CARD, CARD

FRONT_MATTER = re.compile(r"---\n(.*?\n)---\n", re.DOTALL)
NOT_INHERITED = re.compile(r"^(?:model-index|base_model\w*):.*\n(?:[ \t-].*\n|\n)*", re.MULTILINE)
"""Keys of a card's front matter, with their blocks, that are true of the base only: its results and its own origin."""

ROUTE_LIMIT = (
    'Mode "route" trained each batch with routing restricted to that batch\'s experts. Inference has no such mask, so '
    "the model is used in a state that it was not trained in."
)
LIMITS = (
    "Only the categories above were trained, on the prompts of the data named above. Other unsafe prompts, other "
    "languages and attempts to get around the training were not.",
    "A refusal is not a guarantee of safety, and a safe prompt may be refused.",
    "Every limit of the base model holds here too.",
)


def model_card(facts: dict[str, Any], base: Path) -> str:
    """The card as Markdown; `facts` are a run's (see docs/formats.md), the front matter is that of the base's card."""
    name, batches = facts["model_name"], facts["batches"]
    rule, num_union = facts["selection_rule"], len(facts["union"])
    share = 100 * facts["num_union_parameters"] / facts["num_parameters"]
    has_card = (base / CARD).is_file()
    origin = (
        f"The base's own card, with its license, is [{BASE_CARD}]({BASE_CARD})."
        if has_card
        else "The base came without a model card: look up its license before you pass this model on."
    )
    table = [
        ("Base model", f"{name}, hash `{facts['model_hash']}`"),
        ("Data", f"hash `{facts['data_hash']}`"),
        ("Batches", f"{sum(batches.values())}: " + ", ".join(f"{c} {n}" for c, n in batches.items())),
        (
            "Unsafe experts of a batch",
            f"risk_diff above {rule['threshold']}, at most {rule['top_k']}, counted tokens: {facts['counted_tokens']}",
        ),
        ("Masks", f"digest `{facts['masks_digest']}`"),
        ("Mode", f"route, fill {facts['fill']}, scope {facts['scope']}" if facts["mode"] == "route" else facts["mode"]),
        ("Steps", facts["num_steps"]),
        ("Experts open to training", f"{num_union}, {share:.2f} % of all parameters"),
        ("Experts changed", facts["num_trained_experts"]),
        ("Made with", f"dist_moe {facts['dist_moe_version']}"),
    ]
    lines = [
        f"# {name} with repaired experts",
        "",
        f"This model is derived from {name}. Routing was compared on safe and unsafe prompts, and only experts that "
        "unsafe prompts use more were trained. Every other weight, the configuration and the tokenizer are the base's, "
        f"bit for bit. {origin}",
        "",
        *_table(("", ""), table),
        "",
        *_before_after(facts["evaluation"]),
        "## Limits",
        "",
        *(f"- {limit}" for limit in ((ROUTE_LIMIT, *LIMITS) if facts["mode"] == "route" else LIMITS)),
        "",
    ]
    return (_front_matter((base / CARD).read_text(encoding="utf-8")) if has_card else "") + "\n".join(lines)


def _front_matter(card: str) -> str:
    """The YAML block at the start of a card, without what is true of the base only; empty if there is none."""
    found = FRONT_MATTER.match(card)
    kept = NOT_INHERITED.sub("", found[1]) if found else ""
    return f"---\n{kept}---\n\n" if kept else ""


def _before_after(evaluation: dict[str, Any] | None) -> list[str]:
    if evaluation is None:
        return []
    groups = {**evaluation["category"], **evaluation["all"]}
    measures = list(evaluation["all"]["all"])
    rows = [
        (group, *(f"{_number(scores[m]['before'])} → {_number(scores[m]['after'])}" for m in measures))
        for group, scores in groups.items()
    ]
    return [
        "## Before and after",
        "",
        "By `dist-moe evaluate`, without a mask: mean loss per token, and share of greedy answers that refuse.",
        "",
        *_table(("Category", *measures), rows),
        "",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(_cell(value) for value in line) + " |" for line in lines]


def _cell(value: object) -> str:
    """Categories come from the data: keep them in their cell."""
    return " ".join(str(value).split()).replace("|", "\\|")
