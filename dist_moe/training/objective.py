"""The terms of a run's objective on a batch: which tokens each is a mean over, and what is minimized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dist_moe.data.tokens import TokenBatch
from dist_moe.objective import ContrastTerm, Inputs, Over, Rows, Term, TokenTerm
from dist_moe.training.parts import in_parts

Numbers = Mapping[tuple[Over, Rows], int]
"""Of a whole batch, over all ranks: loss tokens (answers), all of the rows' own tokens, or rows with a rejected answer
(pairs), by the rows' label."""
LABELS: tuple[Rows, Rows] = ("safe", "unsafe")


@dataclass(frozen=True, slots=True)
class TermResult:
    """A term in one step."""

    mean: float
    """Over the term's tokens in the whole batch's chosen rows, without its weight; 0 where there is no token. Of a
    contrast: its value."""
    tokens: int
    """How many these are; of a term over pairs: how many pairs."""


@dataclass(frozen=True, slots=True)
class Read:
    """What a forward pass leaves."""

    logits_nV: torch.Tensor
    """At the loss tokens of the rows that it was asked for."""
    router_logits_TW: Sequence[torch.Tensor] = ()
    """Of each MoE layer, at all T positions of the micro-batch, padding included; empty: not read."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a micro-batch: n loss tokens, and T positions in all."""

    target_n: torch.Tensor
    unsafe_n: torch.Tensor
    """bool, whether a token's row is unsafe."""
    at_n: torch.Tensor
    """The position from which each is predicted, of the T."""
    own_T: torch.Tensor
    """bool, no padding, and no row of a rejected answer."""
    unsafe_T: torch.Tensor
    pair_n: torch.Tensor
    """The number of a token's pair; -1: its row has no rejected answer, or none was asked for."""
    rejected_n: torch.Tensor
    """bool, whether a token is of a rejected answer."""
    model: Read
    base: Read | None
    """At the rows in the objective's `base_rows`; None: not needed."""

    @classmethod
    def of(cls, batch: TokenBatch, model: Read, base: Read | None) -> Tokens:
        """Those of a micro-batch, and what passes over it have left."""
        at_n = batch.predicting
        target_n, unsafe_n, pair_n, rejected_n = (
            values_RS.flatten()[at_n]
            for values_RS in (batch.all_labels.roll(-1, 1), batch.is_unsafe, batch.pair, batch.is_rejected)
        )
        own_T, unsafe_T = batch.own.reshape(-1), batch.is_unsafe.reshape(-1)
        return cls(target_n, unsafe_n, at_n, own_T, unsafe_T, pair_n, rejected_n, model, base)


@dataclass(frozen=True, slots=True)
class Contrast:
    """A contrast term in one batch."""

    value: float
    direction: Mapping[Rows, Sequence[torch.Tensor]]
    """By label, how the value changes with the values of one of its tokens."""


class Objective:
    """A sum over terms of weight * mean, and each mean is one of all ranks' tokens in the term's rows."""

    def __init__(self, terms: Sequence[Term]) -> None:
        assert terms, "an objective without a term"
        for term in terms:
            assert term.over != "tokens" or not term.needs & {"logits", "base_logits"}, f"{term.name}: no logits there"
        self.terms = tuple(terms)
        self.contrasted = tuple(term for term in terms if isinstance(term, ContrastTerm))
        needing = [term for term in terms if term.needs & {"base_logits", "base_router_logits"}]
        rows = {_rows(term) for term in needing}
        self.base_terms = tuple(needing)
        self.base_rows: Rows | None = rows.pop() if len(rows) == 1 else "all" if rows else None
        """Rows of which some term needs what the base model computes. None: no term does."""
        self.has_pairs = any(term.over == "pairs" for term in terms)
        self.reads_routers = any("router_logits" in term.needs for term in terms)
        self.reads_base_routers = any("base_router_logits" in term.needs for term in terms)

    def needs_base(self, numbers: Numbers) -> bool:
        """Whether a batch with so many tokens needs the base model."""
        return any(numbers[term.over, _rows(term)] > 0 for term in self.base_terms)

    def sums(self, tokens: Tokens) -> dict[str, list[torch.Tensor]]:
        """Of each contrast's values, the sums over safe and over unsafe tokens: [2, N] each, float64."""
        found = {}
        for term in self.contrasted:
            by_label = [term.values(self._inputs(term, tokens, label)) for label in LABELS]
            found[term.name] = [torch.stack([v.double().sum(0) for v in pair]) for pair in zip(*by_label, strict=True)]
        return found

    def contrasts(self, sums: Mapping[str, Sequence[torch.Tensor]], numbers: Numbers) -> dict[str, Contrast]:
        """From the `sums` of all ranks' micro-batches."""
        return {term.name: _contrast(term, sums[term.name], numbers) for term in self.contrasted}

    def losses(
        self, tokens: Tokens, numbers: Numbers, contrasts: Mapping[str, Contrast] | None = None
    ) -> dict[str, torch.Tensor]:
        """By term, the loss of each token of its rows, [m] float32; with the graph of the logits, if m is 0 too.

        Of a contrast it is what has its gradient: the token's values along its direction.
        """
        found = {}
        for term in self.terms:
            if isinstance(term, ContrastTerm):
                assert contrasts is not None
                losses = self._along(term, tokens, contrasts[term.name])
            else:
                assert isinstance(term, TokenTerm)
                empty = numbers[term.over, term.rows] == 0  # nothing to ask the term, whose inputs may lack the base's
                losses = _nothing(tokens) if empty else self._of_tokens(term, tokens)
            # through the output layer, so that backward visits all layers, and in the same order, on every rank
            found[term.name] = losses if term.over != "tokens" else torch.cat([losses, _nothing(tokens)])
        return found

    def _of_tokens(self, term: TokenTerm, tokens: Tokens) -> torch.Tensor:
        inputs = self._inputs(term, tokens, term.rows)
        reads_logits_only = term.over == "answers" and term.needs <= {"logits", "base_logits"}
        return in_parts(term.losses, inputs) if reads_logits_only else term.losses(inputs)

    def total(self, losses: Mapping[str, torch.Tensor], numbers: Numbers) -> torch.Tensor:
        """A micro-batch's share of what is minimized: shares of all micro-batches on all ranks add up to it.

        Of a contrast its value does not add up to that, but its gradient does.
        """
        total = None
        for term in self.terms:
            number = numbers[term.over, term.rows] if isinstance(term, TokenTerm) else 1
            mean = losses[term.name].sum() / max(number, 1)
            mean = mean if term.weight == 1 else term.weight * mean
            total = mean if total is None else total + mean
        assert total is not None
        return total

    def results(
        self, sums: torch.Tensor, numbers: Numbers, contrasts: Mapping[str, Contrast] | None = None
    ) -> tuple[float, dict[str, TermResult]]:
        """What was minimized, and each term of it, from the sums of all ranks' losses in the order of the terms."""
        results = {}
        for term, loss_sum in zip(self.terms, sums.tolist(), strict=True):
            number = numbers[term.over, _rows(term)]
            value = contrasts[term.name].value if contrasts and term.name in contrasts else loss_sum / max(number, 1)
            results[term.name] = TermResult(value, number)
        return sum(term.weight * results[term.name].mean for term in self.terms), results

    def _along(self, term: ContrastTerm, tokens: Tokens, contrast: Contrast) -> torch.Tensor:
        """[m], float32: safe tokens first."""
        parts = []
        for label in LABELS:
            values = term.values(self._inputs(term, tokens, label))
            along = [(v * d.float()).sum(1) for v, d in zip(values, contrast.direction[label], strict=True)]
            parts.append(torch.stack(along).sum(0))
        return torch.cat(parts)

    def _inputs(self, term: Term, tokens: Tokens, rows: Rows) -> Inputs:
        base_logits = pair = rejected = None
        num_pairs = 0
        if term.over == "tokens":
            logits, target = tokens.model.logits_nV[:0], tokens.target_n[:0]
            at = torch.nonzero(tokens.own_T & in_rows(tokens.unsafe_T, rows)).flatten()
        else:
            logits, target, at = tokens.model.logits_nV, tokens.target_n, tokens.at_n
            chosen_n = in_rows(tokens.unsafe_n, rows)
            if self.has_pairs:
                chosen_n = chosen_n & (tokens.pair_n >= 0 if term.over == "pairs" else ~tokens.rejected_n)
            if rows != "all" or self.has_pairs:
                logits, target, at = logits[chosen_n], target[chosen_n], at[chosen_n]
            if "base_logits" in term.needs:
                assert tokens.base is not None
                assert self.base_rows is not None
                base_logits = tokens.base.logits_nV
                if self.base_rows != rows or self.has_pairs:
                    base_logits = base_logits[chosen_n[in_rows(tokens.unsafe_n, self.base_rows)]]
            if term.over == "pairs":
                pairs, pair = tokens.pair_n[chosen_n].unique(return_inverse=True)
                rejected, num_pairs = tokens.rejected_n[chosen_n], len(pairs)
        routers: Sequence[torch.Tensor] = ()
        base_routers: Sequence[torch.Tensor] = ()
        if "router_logits" in term.needs:
            routers = [logits_TW[at] for logits_TW in tokens.model.router_logits_TW]
        if "base_router_logits" in term.needs:
            assert tokens.base is not None
            base_routers = [logits_TW[at] for logits_TW in tokens.base.router_logits_TW]
        return Inputs(
            logits_mV=logits,
            target_m=target,
            base_logits_mV=base_logits,
            router_logits_mW=routers,
            base_router_logits_mW=base_routers,
            pair_m=pair,
            rejected_m=rejected,
            num_pairs=num_pairs,
        )


def in_rows(unsafe: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Which tokens are in the chosen rows, bool like `unsafe`."""
    if rows == "all":
        return torch.ones_like(unsafe)
    return unsafe if rows == "unsafe" else ~unsafe


def _contrast(term: ContrastTerm, sums: Sequence[torch.Tensor], numbers: Numbers) -> Contrast:
    counts = [numbers["tokens", label] for label in LABELS]
    if not all(counts):
        return Contrast(0.0, {label: [torch.zeros_like(each[0]) for each in sums] for label in LABELS})
    with torch.enable_grad():
        safe, unsafe = ([(each[i] / n).requires_grad_() for each in sums] for i, n in enumerate(counts))
        value = term.contrast(safe, unsafe)
        grads = torch.autograd.grad(value, [*safe, *unsafe])
    halves = grads[: len(sums)], grads[len(sums) :]
    scaled = [[grad / n for grad in half] for half, n in zip(halves, counts, strict=True)]
    return Contrast(value.item(), dict(zip(LABELS, scaled, strict=True)))


def _rows(term: Term) -> Rows:
    return term.rows if isinstance(term, TokenTerm) else "all"


def _nothing(tokens: Tokens) -> torch.Tensor:
    """No loss, [0] float32, with the graph of the logits."""
    return tokens.model.logits_nV[:0].float().sum(-1)
