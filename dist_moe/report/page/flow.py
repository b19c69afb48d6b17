"""The way of a run as a picture: each stage with what it made, hollow where it has not been."""

from __future__ import annotations

from markupsafe import Markup

from dist_moe.report.page.charts import cut
from dist_moe.report.page.contents import RunContents
from dist_moe.report.page.svg import WIDTH, element, figure, path, text

HIGH, BETWEEN = 46.0, 18.0


def flow_picture(run: RunContents, key: str) -> Markup:
    """From prompts to evaluation, downwards."""
    stages = list(_stages(run))
    parts = []
    for index, (name, told) in enumerate(stages):
        top = 1.0 + index * (HIGH + BETWEEN)
        state = "done" if told else "open"
        parts.append(element("rect", x=1, y=top, width=WIDTH - 2, height=HIGH, rx=6, class_=f"stage {state}"))
        parts.append(text(name, 12, top + 18, class_="name"))
        parts.append(text(cut(told or "not yet", 56), 12, top + 36))
        if index + 1 < len(stages):
            middle, end = WIDTH / 2, top + HIGH + BETWEEN
            parts.append(path([(middle, top + HIGH), (middle, end)], class_="axis"))
            parts.append(path([(middle - 4, end - 6), (middle, end), (middle + 4, end - 6)], class_="axis"))
    description = "; then ".join(f"{name}: {told or 'not yet'}" for name, told in stages)
    return figure(key, "From prompts to a repaired model", description, (WIDTH, len(stages) * (HIGH + BETWEEN)), parts)


def _stages(run: RunContents) -> list[tuple[str, str]]:
    """Name, and what it made; blank if it has not been."""
    masks, training, steps, evaluation = run.masks, run.training, run.steps, run.evaluation
    index = run.counts.index if run.counts else None
    prompts = counts = selected = union = ""
    if index is not None:
        num_unsafe = int(index.unsafe_P.sum())
        prompts = f"{index.num_prompts - num_unsafe} safe and {num_unsafe} unsafe, in {len(index)} batches"
        _, num_layers, num_experts = run.counts.shape_BLE if run.counts else (0, 0, 0)
        counts = f"each prompt's routing to {num_layers} layers x {num_experts} experts"
    if masks is not None:
        safe, unsafe = masks.arms_B2.sum(axis=0)
        prompts = prompts or f"{safe} safe and {unsafe} unsafe, in {len(masks.batches)} batches"
        sizes = masks.signs_B3.sum(axis=1)
        selected = f"{masks.selection_rule['name']}: {sizes.min()} to {sizes.max()} experts a batch"
        union = f"{masks.union().sum()} of {masks.union().size} experts are in at least one mask"
    trained = ""
    if training is not None:
        trained = f"{training.facts.num_steps} steps changed {len(training.experts)} experts"
    elif steps:
        trained = f"{len(steps)} steps so far"
    scored = f"{evaluation.facts.num_rows} rows, without a mask" if evaluation is not None else ""
    return [
        ("Prompts", prompts),
        ("Counts", counts),
        ("Masks", selected),
        ("Union", union),
        ("Training: each batch moves its mask's experts only", trained),
        ("Evaluation, before and after", scored),
    ]
