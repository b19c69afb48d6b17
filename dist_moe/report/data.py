"""What a command says of its prompts before it uses them: what was lost or changed, and which batches they make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from dist_moe.config.schema import DataConfig
from dist_moe.data.batches import BatchPlan
from dist_moe.data.encode import Findings
from dist_moe.data.rows import PromptSet


def data_lines(data: DataConfig, prompts: PromptSet, findings: Findings, most_positions: object) -> Iterator[str]:
    """All but the batches. `most_positions` is the model's max_position_embeddings, if it names a number."""
    yield from prompts.notes
    yield from _lengths(data, most_positions)
    yield from _findings(findings, data)


def batch_lines(plan: BatchPlan) -> list[str]:
    """Number of batches in total and by category, and of rows that are not used."""
    index = plan.index
    num_unsafe = int(index.unsafe_P[index.rows(0)].sum())
    counts = Counter(index.categories)
    lines = [f"Batches: {len(index)}, each of {index.sizes_B[0] - num_unsafe} safe + {num_unsafe} unsafe rows"]
    for name in sorted(counts.keys() | plan.left_over_unsafe.keys()):
        left = plan.left_over_unsafe.get(name, 0)
        why = " (too few safe rows)" if left >= num_unsafe else ""
        lines.append(f"  {name}: {counts[name]}; unsafe rows not used: {left}{why}")
    lines.append(f"safe rows not used: {plan.left_over_safe}")
    return lines


def _lengths(data: DataConfig, most_positions: object) -> Iterator[str]:
    if isinstance(most_positions, int) and data.max_length > most_positions:
        yield (
            f"data.max_length = {data.max_length} is above the model's max_position_embeddings = {most_positions}: "
            "longer rows are at positions that the model does not know"
        )


def _findings(found: Findings, data: DataConfig) -> list[str]:
    """Lines about rows that were cut, and about rows that are not as a user may expect."""
    lines = [
        (found.prompts_cut, f"whose prompt lost its start to data.max_length = {found.max_length}"),
        (found.responses_cut, f"whose response lost its end to data.max_length = {found.max_length}"),
        (found.spans_cut, f"whose span lost tokens to data.max_length = {found.max_length}"),
        (
            found.straddling,
            "in which one token has the end of the prompt and the start of the answer: it is the answer's",
        ),
        (
            found.other_prompts,
            "whose prompt has other tokens before the answer than alone, as inference feeds it; in the first, "
            f"{found.other_prompt}",
        ),
        (found.changed, "whose answer the chat template changes: what it writes is trained"),
        (found.endless, "without a token that ends the answer's turn: training does not teach the model to stop"),
        (found.lost, "in which the chat template leaves out or changes a message: it does not count as content"),
    ]
    said = [f"rows {text}: {number}" for number, text in lines if number]
    if found.date_asked:
        said.append(f"The chat template asks for the date: it is told data.template_date = {data.template_date}")
    if found.example is not None:
        said.append(f"One row, its trained part between >>> and <<<: {found.example}")
    return said
