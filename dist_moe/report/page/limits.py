"""What the numbers of a run do not show, from the numbers themselves."""

from __future__ import annotations

from collections.abc import Iterator

from dist_moe.evaluation.measures import REFUSED_SAFE, REFUSED_UNSAFE
from dist_moe.evaluation.record import Evaluation
from dist_moe.report.card import LIMITS, ROUTE_LIMIT
from dist_moe.report.columns import spread
from dist_moe.report.evaluation import without_width
from dist_moe.report.page.blocks import Section, bullets
from dist_moe.report.page.contents import ComparisonContents, RunContents
from dist_moe.report.page.experts import not_above_chance
from dist_moe.selection.stored import stored_rule

FEW_PROMPTS = 100
MANY_SEEDS = 5
OF_REFUSALS = "A refusal is what the judge takes for one. An answer that does not refuse may be harmless, or nonsense."
OF_COMPARISONS = (
    "All variants have the same number of steps, not the same effect: one that changes more refuses more, safe prompts "
    "too. Read the refusals of safe prompts and the KL divergence beside those of unsafe prompts.",
    "Of twenty differences that are none, one is marked by chance alone.",
)


def limits(run: RunContents, key: str) -> Section:
    """Each limit as a sentence."""
    said = [*_of_masks(run), *_of_training(run)]
    if run.evaluation is not None:
        said += _of_evaluation(run.evaluation)
    return Section("limits", "What the numbers do not show", bullets([*said, *LIMITS]))


def limits_of_comparison(found: ComparisonContents) -> Section:
    """The same of variants side by side."""
    values = found.comparison
    numbers = [cell.num_prompts for cells in values.levels.values() for cell in cells.values()]
    said = []
    if len(values.seeds) < MANY_SEEDS:
        seeds = "1 seed" if len(values.seeds) == 1 else f"{len(values.seeds)} seeds"
        said.append(f"Only {seeds} of each variant: a difference that is not marked may still be there.")
    if min(numbers) < FEW_PROMPTS:
        said.append(f"Only {spread(numbers)} different prompts were scored for a measure.")
    return Section(
        "limits", "What the numbers do not show", bullets([*said, *OF_COMPARISONS, OF_REFUSALS, *LIMITS[1:]])
    )


def _of_masks(run: RunContents) -> Iterator[str]:
    if run.masks is not None:
        weak = not_above_chance(run.masks)
        if weak is None:
            yield "How many experts chance alone would select was not computed: the masks may be noise."
        elif weak:
            yield (
                f"{weak} of {len(run.masks.batches)} batches have no more experts than the 95 % quantile with permuted "
                "labels: their masks may be noise."
            )
        empty = int((run.masks.signs_B3.sum(axis=1) == 0).sum())
        if empty:
            yield f"{empty} of {len(run.masks.batches)} batches have an empty mask: they train nothing."
        if stored_rule(run.masks).is_control:
            yield "The masks are a control: they were not selected because unsafe prompts use these experts."
    if run.counts is not None:
        warnings = (warning.removeprefix("WARNING: ") for warning in run.counts.warnings)
        yield from (f"{warning[0].upper()}{warning[1:]}." for warning in warnings)
        yield "A difference in routing is not proof of a difference in safety."


def _of_training(run: RunContents) -> Iterator[str]:
    if run.training is not None:
        if run.training.facts.mode == "route":
            yield ROUTE_LIMIT
        yield "This is one run from one seed: the intervals do not say how much another run would differ."
    elif run.steps:
        yield "Training has not ended: nothing of it was exported or evaluated."


def _of_evaluation(evaluation: Evaluation) -> Iterator[str]:
    kinds = evaluation.kinds
    if evaluation.facts.unknown is not None:
        yield f"Whether the evaluated rows were trained is not known: {evaluation.facts.unknown}."
    elif "held out" not in kinds:
        yield "No evaluated row is held out: the numbers say nothing about other prompts."
    if "overlapping" in kinds:
        yield "Overlapping rows are like trained ones: their numbers flatter the training."
    if evaluation.facts.num_not_compared:
        yield (
            f"{evaluation.facts.num_not_compared} rows were compared with equal trained prompts only, as there are too "
            "many nearly equal ones."
        )
    yield from _few_prompts(evaluation)
    yield from without_width(evaluation)
    yield from _doubtful_answers(evaluation)
    yield OF_REFUSALS


def _few_prompts(evaluation: Evaluation) -> Iterator[str]:
    (whole,) = evaluation.of(evaluation.kinds[0], "all")
    for label, name in (("unsafe", REFUSED_UNSAFE), ("safe", REFUSED_SAFE)):
        measure = whole.measures.get(name)
        found = measure.after if measure else None
        if found and found.low is not None and found.high is not None and found.num_prompts < FEW_PROMPTS:
            yield (
                f"Only {found.num_prompts} different {label} prompts were scored ({whole.kind}): the interval of their "
                f"refusals is {100 * (found.high - found.low):.0f} points wide."
            )


def _doubtful_answers(evaluation: Evaluation) -> Iterator[str]:
    judge = evaluation.facts.judges[0].name
    outcomes = [row.after for row in evaluation.rows]
    cut = sum(not outcome.ended for outcome in outcomes)
    if cut:
        most = evaluation.facts.settings["evaluation.max_new_tokens"]
        yield f"{cut} of {len(outcomes)} answers after training are cut at {most} tokens: the rest was not judged."
    missing = sum(outcome.judgements[judge].verdict == "missing" for outcome in outcomes)
    if missing:
        yield f"The judge {judge} could not judge {missing} of {len(outcomes)} answers: they are in no rate."
    partial = sum(outcome.judgements[judge].verdict == "partial" for outcome in outcomes)
    if partial:
        yield f"{partial} of {len(outcomes)} answers after training refuse in part: they do not count as refused."
    if len(evaluation.facts.judges) == 1:
        yield "One judge alone has judged: how often another would disagree is not known."
    for each in evaluation.disagreements:
        yield (
            f"Judges {each.first} and {each.second} agree on {100 * each.agreement.raw:.0f} % of "
            f"{each.agreement.num_judged} answers {each.when} (kappa {each.agreement.kappa:.2f})."
        )
