"""Next-token loss as a sum and a number of tokens, so that a mean over ranks can weigh every token alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [R, S, V], labels [R, S] (not shifted, -100 = no loss) -> losses [n] in fp32 and their rows [n].

    Only the positions that have a label are taken from the logits, so no second [R, S, V] tensor is made.
    """
    targets = labels[:, 1:]
    rows, positions = torch.nonzero(targets != -100, as_tuple=True)
    chosen = logits[rows, positions].float()
    return F.cross_entropy(chosen, targets[rows, positions], reduction="none"), rows
