"""The interface of a term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from dist_moe.ranges import NonNegative
from dist_moe.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

Rows = Literal["all", "safe", "unsafe"]
Need = Literal["logits", "base_logits", "router_logits", "base_router_logits"]
Over = Literal["answers", "tokens", "pairs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What the model computes at m tokens, in the order of their rows: those of one micro-batch on one rank.

    m may be 0. Of a term over `answers` these are the loss tokens, and what stands here is of the position from which
    each is predicted: a loss token is a token of an answer, or the one that ends its turn. Of a term over `tokens` they
    are the rows' own, prompts' and answers', without padding; there are no logits then, [0, V]. Of a term over `pairs`
    they are the loss tokens of rows that have a rejected answer, of both answers.
    """

    logits_mV: Tensor
    """The model's, from which the token is predicted, under the mask in force; in the model's dtype."""
    target_m: Tensor
    """The token, int64."""
    base_logits_mV: Tensor | None = None
    """The base model's, without a mask and without gradients. None: the term does not need them."""
    router_logits_mW: Sequence[Tensor] = ()
    """Of each MoE layer, as its router's weight gives them: before the mask, and before what the family makes of them
    (scores, caps, correction biases, top-k). W is the number of experts, and a few more where the family scores null or
    always-on experts too. The layers after the batch's first trained one have a graph. Empty: the term does not need
    them."""
    base_router_logits_mW: Sequence[Tensor] = ()
    """The base model's, without gradients."""
    pair_m: Tensor | None = None
    """int64, the number of the token's pair, from 0 without a gap. None: the term is not over pairs."""
    rejected_m: Tensor | None = None
    """bool, whether the token is of the pair's rejected answer."""
    num_pairs: int = 0


@dataclass(frozen=True, kw_only=True)
class Term:
    """What all terms have. A term is one of the two kinds below."""

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset({"logits"})
    """What of `Inputs` it reads beside the targets."""
    over: ClassVar[Over] = "answers"
    """The tokens that it is asked for: see `Inputs`."""

    weight: NonNegative = 0.0
    """Weight of the term in the sum that training minimizes. 0: off, at no cost."""


@dataclass(frozen=True, kw_only=True)
class TokenTerm(Term):
    """The mean of a loss over the tokens of the chosen rows of the whole batch, times its weight."""

    rows: Literal["all", "safe", "unsafe"] = "all"
    """Rows of a batch over whose response tokens the term is averaged: all, the safe or the unsafe ones. A batch
    without such tokens contributes 0."""

    def losses(self, inputs: Inputs) -> Tensor:
        """[m], float32: the loss of each token, with a graph where the inputs have one; over pairs [num_pairs].

        Over `answers`, a token's loss depends on no other token: it may be asked for some of them at a time.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ContrastTerm(Term):
    """A function of what safe and unsafe tokens are in the mean of the whole batch, times its weight.

    The means must be known before a gradient can be taken, so a step first runs its forward passes once without
    gradients. A batch that lacks tokens of one label has 0 of the term.
    """

    needs = frozenset({"router_logits"})
    over = "tokens"

    def values(self, inputs: Inputs) -> Sequence[Tensor]:
        """Tensors [m, N], float32, each of its own N, whose means over tokens `contrast` is given; with a graph."""
        raise NotImplementedError

    def contrast(self, safe: Sequence[Tensor], unsafe: Sequence[Tensor]) -> Tensor:
        """A scalar, of the means over all safe and over all unsafe tokens of the batch, float64 [N] each."""
        raise NotImplementedError


TERMS: Registry[Term] = Registry("objective term", "dist_moe.objective")
