"""The terms of a run's objective on a batch: which tokens each is a mean over, and what is minimized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dist_moe.objective import Inputs, Rows, Term

Numbers = Mapping[Rows, int]
"""Loss tokens of a whole batch, over all ranks, by the rows that they are in."""


@dataclass(frozen=True, slots=True)
class TermResult:
    """A term in one step."""

    mean: float
    """Over the loss tokens of the whole batch's chosen rows, without its weight; 0 where there is no token."""
    tokens: int


@dataclass(frozen=True, slots=True)
class LossTokens:
    """The n loss tokens of a micro-batch."""

    logits_nV: torch.Tensor
    target_n: torch.Tensor
    unsafe_n: torch.Tensor
    """bool, whether a token's row is unsafe."""
    base_logits: torch.Tensor | None
    """[of the tokens in the objective's `base_rows`, V]; None: not needed."""


class Objective:
    """A sum over terms of weight * mean, and each mean is one of all ranks' loss tokens in the term's rows."""

    def __init__(self, terms: Sequence[Term]) -> None:
        assert terms, "an objective without a term"
        self.terms = tuple(terms)
        rows = {term.rows for term in terms if "base_logits" in term.needs}
        self.base_rows: Rows | None = rows.pop() if len(rows) == 1 else "all" if rows else None
        """Rows whose base logits some term needs. None: no term needs any."""

    def losses(self, tokens: LossTokens, numbers: Numbers) -> dict[str, torch.Tensor]:
        """By term, the loss of each token of its rows, [m] float32; with the graph of the logits, if m is 0 too."""
        return {term.name: self._losses(term, tokens, numbers) for term in self.terms}

    def total(self, losses: Mapping[str, torch.Tensor], numbers: Numbers) -> torch.Tensor:
        """A micro-batch's share of what is minimized: shares of all micro-batches on all ranks add up to it."""
        total = None
        for term in self.terms:
            mean = losses[term.name].sum() / max(numbers[term.rows], 1)
            mean = mean if term.weight == 1 else term.weight * mean
            total = mean if total is None else total + mean
        assert total is not None
        return total

    def results(self, sums: torch.Tensor, numbers: Numbers) -> tuple[float, dict[str, TermResult]]:
        """What was minimized, and each term of it, from the sums of all ranks' losses in the order of the terms."""
        results = {}
        for term, loss_sum in zip(self.terms, sums.tolist(), strict=True):
            number = numbers[term.rows]
            results[term.name] = TermResult(loss_sum / max(number, 1), number)
        return sum(term.weight * results[term.name].mean for term in self.terms), results

    def _losses(self, term: Term, tokens: LossTokens, numbers: Numbers) -> torch.Tensor:
        if numbers[term.rows] == 0:  # nothing to ask the term, whose inputs may lack the base's logits
            return tokens.logits_nV[:0].float().sum(-1)
        logits, target, base = tokens.logits_nV, tokens.target_n, None
        if term.rows != "all":
            chosen_n = in_rows(tokens.unsafe_n, term.rows)
            logits, target = logits[chosen_n], target[chosen_n]
        if "base_logits" in term.needs:
            base = tokens.base_logits
            assert base is not None
            if self.base_rows != term.rows:
                base = base[in_rows(tokens.unsafe_n, term.rows)]
        return term.losses(Inputs(logits_mV=logits, target_m=target, base_logits_mV=base))


def in_rows(unsafe: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Which tokens are in the chosen rows, bool like `unsafe`."""
    if rows == "all":
        return torch.ones_like(unsafe)
    return unsafe if rows == "unsafe" else ~unsafe
