"""Next-token loss as a sum and a number of tokens, so that a mean over ranks can weigh every token alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [R, S, V], labels [R, S] (not shifted, -100 = no loss) -> losses [n] in fp32 and their rows [n].

    Only the positions that have a label are taken from the logits, so no second [R, S, V] tensor is made.
    """
    (rows, positions), targets = _labelled(labels)
    return F.cross_entropy(logits[rows, positions].float(), targets, reduction="none"), rows


class LabelledLogits:
    """Logits of a model only at positions that have a label, and their tokens.

    The output layer is the widest of all, and prompt and padding tokens have no label. A hook on it, silent outside
    `at`, cuts its input to what the loss needs; transformers' `logits_to_keep` could only cut all rows alike.
    """

    def __init__(self, module: PreTrainedModel) -> None:
        self._labelled: tuple[torch.Tensor, torch.Tensor] | None = None
        module.get_output_embeddings().register_forward_pre_hook(self._cut)

    @contextmanager
    def at(self, labels: torch.Tensor) -> Iterator[None]:
        """While entered, the model's logits are [1, n, V]: those of the n positions whose next token has a label."""
        self._labelled = _labelled(labels)[0]
        try:
            yield
        finally:
            self._labelled = None

    def of(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [1, n, V] from inside `at(labels)` -> [n, V], and the tokens [n] that they predict."""
        targets = _labelled(labels)[1]
        assert logits.shape[:2] == (1, len(targets)), "the output layer was not reached through its module"
        return logits[0], targets

    def _cut(self, output_layer: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        """hidden [R, S, H] -> [1, n, H]."""
        if self._labelled is None:
            return None
        return (args[0][self._labelled][None], *args[1:])


def at_labels(values_RS: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[n]: the values of those positions of [R, S] from which a labelled token is predicted."""
    return values_RS[_labelled(labels)[0]]


def _labelled(labels: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(rows [n], positions [n]) from which a labelled token is predicted, and these tokens [n]."""
    next_RS = labels[:, 1:]
    rows, positions = torch.nonzero(next_RS != -100, as_tuple=True)
    return (rows, positions), next_RS[rows, positions]
