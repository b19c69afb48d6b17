"""Computes next-token losses one by one, so that a mean over all ranks' tokens can be formed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from dist_moe.moe.grouped import take


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """logits [R, S, V], labels [R, S] (not shifted; -100: no loss) -> losses [n] in fp32.

    Only positions with a label are taken from the logits, so that no second [R, S, V] tensor is made.
    """
    (rows, positions), targets = _labelled(labels)
    return F.cross_entropy(logits[rows, positions].float(), targets, reduction="none")


class LabelledLogits:
    """Makes a model compute logits only at positions from which a labelled token is predicted.

    The output layer is the largest of all, and prompt and padding tokens have no label. A hook, active only inside
    `at`, reduces the layer's input to the positions that the loss needs. (transformers' `logits_to_keep` would cut all
    rows at the same position.)
    """

    def __init__(self, module: PreTrainedModel) -> None:
        self._at_n: torch.Tensor | None = None
        module.get_output_embeddings().register_forward_pre_hook(self._cut)

    @contextmanager
    def at(self, labels: torch.Tensor) -> Iterator[None]:
        """Context manager: inside, the model's logits are [1, n, V], for the n positions whose next token has a
        label."""
        with self.at_positions(positions(labels)):
            yield

    @contextmanager
    def at_positions(self, at_n: torch.Tensor) -> Iterator[None]:
        """The same, for positions that are known: int64 [n], of the R * S."""
        self._at_n = at_n
        try:
            yield
        finally:
            self._at_n = None

    def of(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [1, n, V] from inside `at(labels)` -> [n, V], and the tokens [n] that they predict."""
        targets = _labelled(labels)[1]
        return self.rows(logits, len(targets)), targets

    def rows(self, logits: torch.Tensor, num: int) -> torch.Tensor:
        """Logits [1, n, V] from inside `at`, for n = `num` positions -> [n, V]."""
        assert logits.shape[:2] == (1, num), "the output layer was not reached through its module"
        return logits[0]

    def _cut(self, output_layer: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        """hidden [R, S, H] -> [1, n, H]."""
        if self._at_n is None:
            return None
        return (take(args[0].flatten(0, 1), self._at_n)[None], *args[1:])


def positions(labels: torch.Tensor) -> torch.Tensor:
    """int64 [n]: from which of the R * S positions of [R, S] a labelled token is predicted."""
    rows, columns = _labelled(labels)[0]
    return rows * labels.shape[1] + columns


def at_labels(values_RS: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[n]: values at those positions of [R, S] from which a labelled token is predicted."""
    return values_RS[_labelled(labels)[0]]


def _labelled(labels: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The positions (rows [n], columns [n]) from which a labelled token is predicted, and these tokens [n]."""
    next_RS = labels[:, 1:]
    rows, positions = torch.nonzero(next_RS != -100, as_tuple=True)
    return (rows, positions), next_RS[rows, positions]
