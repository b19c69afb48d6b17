"""How a model answers, always unmasked, because inference has no mask: losses and refusals for every row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig

from dist_moe.data.batches import micro_batches
from dist_moe.data.tokens import Encoded, collate, collate_prompts
from dist_moe.moe.model import MoEModel
from dist_moe.training.loss import token_losses


@dataclass(frozen=True, slots=True)
class RowScore:
    """`loss_sum` over the `num_loss_tokens` tokens of the row's response; `answer` is the model's own greedy one."""

    loss_sum: float
    num_loss_tokens: int
    answer: str
    refused: bool


def score_rows(
    model: MoEModel,
    rows: Sequence[Encoded],
    *,
    decode: Callable[[list[int]], str],
    refusals: Sequence[str],
    max_new_tokens: int,
    micro_batch_size: int,
    pad_id: int,
    eos_ids: Sequence[int],
    progress: Callable[[int], object],
) -> list[RowScore]:
    """Score R rows in order on one process that holds all experts.

    `refusals` are the lower-case beginnings that count as a refusal; `progress` is told the rows done each time.
    """
    generation = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad_id, eos_token_id=list(eos_ids) or None
    )
    scores = []
    for indices in micro_batches(range(len(rows)), micro_batch_size):
        chosen = [rows[i] for i in indices]
        losses, numbers = _response_losses(model, chosen, pad_id)
        for answer, loss, number in zip(
            _answers(model, chosen, generation, pad_id, decode), losses, numbers, strict=True
        ):
            refused = answer.strip().lower().startswith(tuple(refusals))
            scores.append(RowScore(loss, number, answer, refused))
        progress(len(chosen))
    return scores


@torch.no_grad()
def _response_losses(model: MoEModel, rows: Sequence[Encoded], pad_id: int) -> tuple[list[float], list[int]]:
    device = model.layers[0].comm.device
    batch = collate(rows, pad_id).to(device)
    model.set_live(batch.live)
    logits = model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    model.set_live(None)
    losses, row_n = token_losses(logits, batch.labels)
    sums = torch.zeros(len(rows), dtype=torch.float64, device=device).index_add_(0, row_n, losses.double())
    return sums.tolist(), torch.bincount(row_n, minlength=len(rows)).tolist()


@torch.no_grad()
def _answers(
    model: MoEModel,
    rows: Sequence[Encoded],
    generation: GenerationConfig,
    pad_id: int,
    decode: Callable[[list[int]], str],
) -> list[str]:
    """Greedy answers."""
    device = model.layers[0].comm.device
    input_ids, live = collate_prompts(rows, pad_id)
    out = model.module.generate(  # type: ignore[operator]  # mypy sees nn.Module's __getattr__
        input_ids.to(device), attention_mask=live.long().to(device), generation_config=generation
    )
    return [decode(ids) for ids in out[:, input_ids.shape[1] :].tolist()]
