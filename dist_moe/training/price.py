"""What mode `route` changes in a batch before anything is trained: it trains a state in which a model is never used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dist_moe.data.tokens import TokenBatch
from dist_moe.model.model import MoEModel
from dist_moe.moe.choices import Choice, choices
from dist_moe.moe.route_mask import RoutePlan
from dist_moe.parallel.comm import Comm
from dist_moe.training.loss import at_labels, token_losses
from dist_moe.training.passes import next_pass

LABELS = ("safe", "unsafe")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelPrice:
    """Of a batch's rows of one label. A routing slot is a place for an expert: k of each token in each layer."""

    slots: float
    """Slots in use under the mask, as a share of those without it, over all tokens of prompts and answers."""
    chosen: float
    """Share of the (token, expert) pairs without the mask that are there under it too."""
    loss: float
    """Mean of -log p over the tokens of the answers, in nats, without the mask."""
    masked_loss: float
    """Under it."""


@torch.no_grad()
def route_price(
    model: MoEModel, micro_batches: Sequence[TokenBatch], plan: RoutePlan, comm: Comm
) -> dict[str, LabelPrice]:
    """By label, over the rows of all ranks, which call it together; labels without a token are left out."""
    sums = torch.zeros(len(LABELS), 6, dtype=torch.float64, device=comm.device)
    for batch in micro_batches:
        batch = batch.to(comm.device)
        own, loss_n = _seen(model, batch, None)
        masked, masked_loss_n = _seen(model, batch, plan)
        for label, of_label_RS in enumerate((~batch.is_unsafe, batch.is_unsafe)):
            counted_T1 = (batch.own & of_label_RS).reshape(-1, 1)
            of_label_n = at_labels(of_label_RS, batch.labels)
            for before, under in zip(own, masked, strict=True):
                slots = (before.active_Tk, under.active_Tk, before.also_in(under))
                sums[label, :3] += torch.stack([(each_Tk & counted_T1).sum() for each_Tk in slots])
            losses = (of_label_n, loss_n * of_label_n, masked_loss_n * of_label_n)
            sums[label, 3:] += torch.stack([each_n.double().sum() for each_n in losses])
    found = zip(LABELS, comm.sum_(sums).tolist(), strict=True)
    return {
        label: LabelPrice(
            slots=under / active,
            chosen=both / active,
            loss=loss / max(num_tokens, 1),
            masked_loss=masked_loss / max(num_tokens, 1),
        )
        for label, (active, under, both, num_tokens, loss, masked_loss) in found
        if active
    }


def _seen(model: MoEModel, batch: TokenBatch, plan: RoutePlan | None) -> tuple[list[Choice], torch.Tensor]:
    """Each layer's choice, and the loss of each token of an answer [n]."""
    with model.batch(route=plan), choices(model.layers) as seen:
        next_pass(model, batch, plan)
        logits = model.module(**batch.inputs).logits
    return seen, token_losses(logits, batch.labels)
