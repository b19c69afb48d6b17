"""The model card (README.md) of an export: where it comes from, what was changed, what was measured, and its limits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from dist_moe.evaluation.curve import alpha_name
from dist_moe.evaluation.record import Evaluation
from dist_moe.report.evaluation import HEADINGS, IN_GROUPS, shown_measure
from dist_moe.weights.facts import Arms, Facts, Numbers, Quoted, Selected
from dist_moe.weights.other_files import BASE_CARD, CARD

FRONT_MATTER = re.compile(r"---\n(.*?\n)---\n", re.DOTALL)
NOT_INHERITED = re.compile(r"^(?:model-index|base_model\w*):.*\n(?:[ \t-].*\n|\n)*", re.MULTILINE)
"""Keys of a card's front matter, with their blocks, that are true of the base only: its results and its own origin."""

ROUTE_LIMIT = (
    'Mode "route" trained each batch with routing restricted to that batch\'s experts. Inference has no such mask, so '
    "the model is used in a state that it was not trained in."
)
WHAT = {
    "experts": "repaired experts",
    "routers": "trained routers",
    "experts_and_routers": "repaired experts and routers",
    "experts_and_dense": "trained experts and dense weights",
}
"""What a model is said to have, by what was trained."""
TRAINED = {
    "experts": "in each batch of them only the experts that a rule selects were trained. Every other weight, the "
    "configuration and the tokenizer are the base's, bit for bit.",
    "routers": "on these only the routers were trained, the weights that score the experts. Every other weight, the "
    "configuration and the tokenizer are the base's, bit for bit.",
    "experts_and_routers": "in each batch of them only the experts that a rule selects, and the routers, were trained. "
    "Every other weight, the configuration and the tokenizer are the base's, bit for bit.",
    "experts_and_dense": "in each batch of them the experts that a rule selects, and all weights that are no expert's, "
    "were trained. The configuration and the tokenizer are the base's, bit for bit.",
}
BASE_ROUTERS = "Its routers were put back: they are the base's, bit for bit. "
BASELINES = {
    "routers": "**This is a baseline.** Only its routers were trained, and no expert: it is there to be compared with "
    "a model whose experts were.",
    "experts_and_dense": "**This is a baseline.** All of its dense weights were trained, as in full fine-tuning: it "
    "is there to be compared with a model in which only experts were.",
}
CONTROL = (
    "**This is a control.** Its experts were not chosen because unsafe prompts use them: it is there to be compared "
    "with a model whose experts were, and is no repaired model."
)
LIMITS = (
    "Only the categories above were trained, on the prompts of the data named above. Other unsafe prompts, other "
    "languages and attempts to get around the training were not.",
    "A refusal is not a guarantee of safety, and a safe prompt may be refused.",
    "Every limit of the base model holds here too.",
)


def model_card(facts: Facts, base: Path) -> str:
    """The card as Markdown; the front matter is that of the base's card."""
    name = facts.model_name
    is_control = any(masks.rule.is_control for masks in (facts, *facts.mask_revisions))
    experts, dense = (
        f"{100 * number / facts.num_parameters:.2f} % of all parameters"
        for number in (facts.num_union_parameters, facts.num_dense_parameters)
    )
    has = "experts" if facts.base_routers and facts.trains == "experts_and_routers" else facts.trains
    standing = BASELINES.get(facts.trains, CONTROL if is_control else "")
    has_card = (base / CARD).is_file()
    at = "" if facts.model_commit is None else f"commit `{facts.model_commit}`, "
    origin = (
        f"The base's own card, with its license, is [{BASE_CARD}]({BASE_CARD})."
        if has_card
        else "The base came without a model card: look up its license before you pass this model on."
    )
    table = [
        ("Base model", f"{name}, {at}hash `{facts.model_hash}`"),
        ("Data", f"{_arms(facts.prompts)}hash `{facts.data_hash}`"),
        ("Batches", f"{sum(facts.batches.values())}: " + ", ".join(f"{c} {n}" for c, n in facts.batches.items())),
        *_masks(facts, ""),
        *(row for later in facts.mask_revisions for row in _masks(later, f" after step {later.after_step}")),
        ("Mode", f"route, fill {facts.fill}, scope {facts.scope}" if facts.mode == "route" else facts.mode),
        *([("Trained", " ".join([facts.trains, *facts.rounds]))] if facts.trains != "experts" else ()),
        ("Steps", facts.num_steps),
        ("Experts open to training", f"{len(facts.union)}, {experts}"),
        ("Experts changed", facts.num_trained_experts if facts.alpha else 0),
        *(_dense(facts, dense) if facts.trains != "experts" else ()),
        *_share_of_change(facts.alpha),
        ("Made with", f"dist_moe {facts.dist_moe_version}"),
    ]
    lines = [
        f"# {name} with {'experts trained as a control' if standing == CONTROL else WHAT[has]}",
        "",
        f"This model is derived from {name}. Routing was measured on safe and unsafe prompts, and "
        f"{TRAINED[facts.trains]} {BASE_ROUTERS if facts.base_routers else ''}{origin}",
        "",
        *((standing, "") if standing else ()),
        *_table(("", ""), table),
        "",
        *_before_after(facts.evaluation),
        "## Limits",
        "",
        *(f"- {limit}" for limit in ((ROUTE_LIMIT, *LIMITS) if facts.mode == "route" else LIMITS)),
        "",
    ]
    # the base's card is copied as bytes; of its front matter here, what is no UTF-8 is shown as such
    of_base = (base / CARD).read_text(encoding="utf-8-sig", errors="replace") if has_card else ""
    return _front_matter(of_base, facts.model_repository) + "\n".join(lines)


def _dense(facts: Facts, share: str) -> list[tuple[str, object]]:
    changed = facts.num_dense_tensors if facts.alpha else 0
    return [("Dense weights open to training", share), ("Dense tensors changed", changed)]


def _share_of_change(alpha: float) -> list[tuple[str, object]]:
    shown = alpha_name(alpha)
    return [] if alpha == 1 else [("Share of their change", f"{shown}: base + {shown} (trained - base)")]


def _arms(prompts: Arms) -> str:
    return f"{prompts.safe} safe and {prompts.unsafe} unsafe prompts, "


def _masks(masks: Selected, when: str) -> list[tuple[str, object]]:
    """How these masks were selected."""
    return [
        (f"Selection rule{when}", f"{masks.rule.name}, counted tokens: {masks.counted_tokens}"),
        (f"It takes of a batch's experts{when}", masks.rule.in_words),
        (f"Choices of an expert for a batch{when}", _chosen(masks.chosen)),
        (f"Masks{when}", f"digest `{masks.masks_digest}`"),
    ]


def _chosen(chosen: Numbers) -> str:
    """Of what sign the trained experts' risk_diff is: a rule may take experts that safe prompts use more."""
    total = chosen.above_0 + chosen.below_0 + chosen.of_0
    signs = f"used more by unsafe prompts in {chosen.above_0}, by safe prompts in {chosen.below_0}"
    return f"{total}: {signs}, by both alike in {chosen.of_0}"


def _front_matter(card: str, base: str | None) -> str:
    """The YAML block at the start of a card, without what is true of the base only, and with the base's repository;
    empty if there is none of both."""
    found = FRONT_MATTER.match(card)
    kept = NOT_INHERITED.sub("", found[1]) if found else ""
    kept += "" if base is None else f"base_model: {base}\n"
    return f"---\n{kept}---\n\n" if kept else ""


def quoted(evaluation: Evaluation) -> Quoted:
    """What a card tells of an evaluation: no paths of the machine that it was made on."""
    facts, judge = evaluation.facts, evaluation.facts.judges[0]
    told = [group for kind in evaluation.kinds for by in ("category", "all") for group in evaluation.of(kind, by)]
    return Quoted(
        groups=told,
        data_hash=facts.data_hash,
        files=[Path(file).name for file in facts.files],
        is_compared=facts.unknown is None,
        near_equal=facts.settings["evaluation.near_equal"],
        judge=f"{judge.name} ({judge.in_words})",
        max_new_tokens=facts.settings["evaluation.max_new_tokens"],
        resamples=facts.settings["evaluation.resamples"],
        seed=facts.seed,
    )


def _before_after(evaluation: Quoted | None) -> list[str]:
    if evaluation is None:
        return []
    lines = [
        "## Before and after",
        "",
        f"By `dist-moe evaluate`, without a mask, on rows of {', '.join(evaluation.files)}, hash "
        f"`{evaluation.data_hash}`. Refusals are the share of greedy answers, of at most {evaluation.max_new_tokens} "
        f"tokens, that refuse, as the judge {evaluation.judge} has it; losses are means per token. In brackets 95 % "
        f"intervals of the number after: of refusals Wilson's, of the rest by {evaluation.resamples} resamples of "
        f"prompts (seed {evaluation.seed}).",
        "",
    ]
    for kind in dict.fromkeys(group.kind for group in evaluation.groups):
        groups = [group for group in evaluation.groups if group.kind == kind]
        names = [name for name in IN_GROUPS if any(name in group.measures for group in groups)]
        rows = [
            (group.name, group.num_unsafe, group.num_safe, *(shown_measure(group.measures.get(n)) for n in names))
            for group in groups
        ]
        lines += [f"{HEADINGS[kind]}.", "", *_table(("Category", "unsafe rows", "safe rows", *names), rows), ""]
    return lines


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(_cell(value) for value in line) + " |" for line in lines]


def _cell(value: object) -> str:
    """Categories come from the data: keep them in their cell."""
    return " ".join(str(value).split()).replace("|", "\\|")
