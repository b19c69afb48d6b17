"""How a model answers, always unmasked, because inference has no mask: losses and refusals for every row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dist_moe.data.tokens import Encoded, collate
from dist_moe.model.generate import Asked, Sampling, write_answers
from dist_moe.model.model import MoEModel
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.rows import map_rows
from dist_moe.training.loss import token_losses

NO_TOKEN = -1
"""Behind an answer's end."""


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
    micro_batch_tokens: int,
    pad_id: int,
    eos_ids: Sequence[int],
    comm: Comm,
    progress: Callable[[int], object],
) -> list[RowScore]:
    """Score R rows in their order, the same on every rank; all ranks of `comm` call it with the same rows.

    Ranks may share the experts of `model`. `micro_batch_tokens` bounds a forward pass, its padding and the answers that
    it becomes; where padding would change results, each row is alone. `refusals` are the lower-case beginnings that
    count as a refusal; `progress` is told the rows done each time.
    """
    greedy = Sampling(max_new_tokens=max_new_tokens, temperature=0, seed=0, eos_ids=tuple(eos_ids))
    scores = map_rows(
        rows,
        lambda some: {**_response_losses(model, some, pad_id), "answers": _answers(model, some, greedy, pad_id)},
        comm,
        results={
            "loss_sums": (torch.float64, ()),
            "num_loss_tokens": (torch.int64, ()),
            "answers": (torch.int64, (max_new_tokens,)),
        },
        length=lambda row: max(len(row.prompt_ids) + len(row.response_ids), len(row.inference_ids) + max_new_tokens),
        budget=model.at_once(micro_batch_tokens),
        sharing=model.layers[0].comm.size,
        progress=progress,
    )
    lists = (scores[name].tolist() for name in ("loss_sums", "num_loss_tokens", "answers"))
    return [
        _score(loss, number, decode([token for token in ids if token != NO_TOKEN]), refusals)
        for loss, number, ids in zip(*lists, strict=True)
    ]


def _score(loss: float, number: int, answer: str, refusals: Sequence[str]) -> RowScore:
    refused = answer.strip().lower().startswith(tuple(refusals))
    return RowScore(loss, number, answer, refused)


@torch.no_grad()
def _response_losses(model: MoEModel, rows: Sequence[Encoded], pad_id: int) -> dict[str, torch.Tensor]:
    """Of each row: its response's losses added up, float64 [R], and how many there are, int64 [R]."""
    device = model.layers[0].comm.device
    batch = collate(rows, pad_id).to(device)
    with model.batch(batch.live):
        logits = model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    losses, row_n = token_losses(logits, batch.labels)
    sums = torch.zeros(len(batch.live), dtype=torch.float64, device=device).index_add_(0, row_n, losses.double())
    return {"loss_sums": sums, "num_loss_tokens": torch.bincount(row_n, minlength=len(batch.live))}


def _answers(model: MoEModel, rows: Sequence[Encoded], greedy: Sampling, pad_id: int) -> torch.Tensor:
    """int64 [R, max_new_tokens]: each row's answer, and `NO_TOKEN` behind its end."""
    device = model.layers[0].comm.device
    answers_RS = torch.full((len(rows), greedy.max_new_tokens), NO_TOKEN, device=device)
    for row, ids in enumerate(write_answers(model, Asked.of(rows, pad_id, device), greedy)):
        answers_RS[row, : len(ids)] = torch.tensor(ids, device=device)
    return answers_RS
