"""How a model answers, always unmasked, because inference has no mask: losses and refusals for every row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dist_moe.data.batches import micro_batches
from dist_moe.data.tokens import Encoded, collate, collate_prompts
from dist_moe.model.generate import Sampling, write_answers
from dist_moe.model.model import MoEModel
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
    greedy = Sampling(max_new_tokens=max_new_tokens, temperature=0, seed=0, eos_ids=tuple(eos_ids))
    scores = []
    for indices in micro_batches(range(len(rows)), model.at_once(micro_batch_size)):
        chosen = [rows[i] for i in indices]
        losses, numbers = _response_losses(model, chosen, pad_id)
        for answer, loss, number in zip(_answers(model, chosen, greedy, pad_id, decode), losses, numbers, strict=True):
            refused = answer.strip().lower().startswith(tuple(refusals))
            scores.append(RowScore(loss, number, answer, refused))
        progress(len(chosen))
    return scores


@torch.no_grad()
def _response_losses(model: MoEModel, rows: Sequence[Encoded], pad_id: int) -> tuple[list[float], list[int]]:
    device = model.layers[0].comm.device
    batch = collate(rows, pad_id).to(device)
    with model.batch(batch.live):
        logits = model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    losses, row_n = token_losses(logits, batch.labels)
    sums = torch.zeros(len(rows), dtype=torch.float64, device=device).index_add_(0, row_n, losses.double())
    return sums.tolist(), torch.bincount(row_n, minlength=len(rows)).tolist()


def _answers(
    model: MoEModel, rows: Sequence[Encoded], greedy: Sampling, pad_id: int, decode: Callable[[list[int]], str]
) -> list[str]:
    device = model.layers[0].comm.device
    input_ids, is_prompt = (tensor.to(device) for tensor in collate_prompts(rows, pad_id))
    return [decode(ids) for ids in write_answers(model, input_ids, is_prompt, is_prompt, greedy, pad_id)]
