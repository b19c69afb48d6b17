"""Where tokens are sent, and under which masks, looked at for many calls of experts at once.

One look takes some fifty small operations. Done at each call, on a GPU they were as many kernels a layer as all else of
an experts layer together; so calls are collected, and a model's are one look, or a few if a pass has many tokens.

Shapes: a look is at G calls, of T tokens with k experts each.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch

from dist_moe.config.schema import TrainConfig
from dist_moe.moe.routing import Applied

AT_ONCE = 1 << 22
"""Values of calls that wait for a look: the tensors of a look take some hundred bytes for each."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What routing may do under the mask, layer by layer."""

    allowed_LE: torch.Tensor
    """Experts that can be chosen."""
    num_added_L: torch.Tensor
    """Number of additional experts."""
    lifted_LE: torch.Tensor
    kept_LE: torch.Tensor
    """Where a token is sent to one of these, it is sent to no other."""

    @classmethod
    def of(cls, mask_LE: torch.Tensor, top_k: int, settings: TrainConfig) -> Rule:
        """The rule of docs/design.md. A layer whose mask is empty or full is not restricted, nor is any layer in mode
        update."""
        is_masked_L1 = mask_LE.any(1, keepdim=True) & ~mask_LE.all(1, keepdim=True) & (settings.mode == "route")
        named_LE, nothing_LE = torch.where(is_masked_L1, mask_LE, True), torch.zeros_like(mask_LE)
        num_missing_L = (top_k - named_LE.sum(1)).clamp(min=0)
        none_L, everything_LE = torch.zeros_like(num_missing_L), torch.ones_like(mask_LE)
        if settings.fill == "natural":
            return cls(everything_LE, none_L, nothing_LE, named_LE)
        if settings.fill == "bias":
            return cls(everything_LE, none_L, mask_LE & is_masked_L1, everything_LE)
        if settings.fill == "best":
            return cls(named_LE, num_missing_L, nothing_LE, everything_LE)
        return cls(named_LE, none_L, nothing_LE, everything_LE)

    def to(self, device: torch.device) -> Rule:
        return Rule(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


class Call(NamedTuple):
    """A call of one layer's experts."""

    layer: int
    index_Tk: torch.Tensor
    weights_Tk: torch.Tensor
    applied: Applied
    """The mask of the layer's router."""

    @property
    def num_values(self) -> int:
        return self.index_Tk.numel() + self.applied.allowed_TE.numel() + self.applied.lifted_TE.numel()

    @property
    def kind(self) -> Hashable:
        """Calls of one kind have the same shapes."""
        applied = self.applied
        shapes = (self.index_Tk.shape, applied.allowed_TE.shape, applied.lifted_TE.shape)
        return shapes, applied.bias, applied.dropping_T is None


class Calls:
    """What calls amount to, on their device: begin a step, then announce tokens, add the calls for them, and look."""

    def __init__(self, num_layers: int, num_experts: int, device: torch.device) -> None:
        self.sent_LE = torch.zeros(num_layers, num_experts, dtype=torch.int64, device=device)
        """How many tokens were sent to each expert."""
        self.outside_LE = torch.zeros_like(self.sent_LE)
        """How many of these should not have been."""
        self.misrouted_L = torch.zeros_like(self.sent_LE[:, 0])
        """To how many tokens a layer's router applied another mask than it should."""
        self._waiting: list[Call] = []
        self._num_waiting = 0
        self._rule: Rule | None = None

    def begin(self, rule: Rule, bias: float) -> None:
        """Forget what was, and count from here on. `bias` is what lifted experts are lifted by."""
        self._rule, self._bias = rule, bias
        self._waiting, self._num_waiting = [], 0
        torch._foreach_zero_([self.sent_LE, self.outside_LE, self.misrouted_L])

    def tokens(self, live_T: torch.Tensor, masked_T: torch.Tensor) -> None:
        """The tokens of the coming calls: bool, which are real, and which of them are masked."""
        self.look()
        self._live_T, self._masked_T = live_T, masked_T

    def add(self, call: Call) -> None:
        self._waiting.append(call)
        self._num_waiting += call.num_values
        if self._num_waiting >= AT_ONCE:
            self.look()

    def look(self) -> None:
        """Count what waits."""
        kinds: dict[Hashable, list[Call]] = {}
        for call in self._waiting:
            kinds.setdefault(call.kind, []).append(call)
        self._waiting, self._num_waiting = [], 0
        for calls in kinds.values():
            self._look(calls)

    def _look(self, calls: Sequence[Call]) -> None:
        assert self._rule is not None
        layer_G = torch.tensor([call.layer for call in calls]).to(self.sent_LE.device, non_blocking=True)
        rule = Rule(*(getattr(self._rule, field.name)[layer_G] for field in fields(Rule)))  # of the calls' layers
        index_GTk = torch.stack([call.index_Tk for call in calls])
        is_used_GTk = torch.stack([call.weights_Tk for call in calls]) != 0
        has_own_GT = self._count_sent(rule, layer_G, index_GTk, is_used_GTk)
        wrong_GT = self._are_misrouted(rule, [call.applied for call in calls], has_own_GT)
        self.misrouted_L.index_add_(0, layer_G, (wrong_GT & self._live_T).sum(1))

    def _count_sent(
        self, rule: Rule, layer_G: torch.Tensor, index_GTk: torch.Tensor, is_used_GTk: torch.Tensor
    ) -> torch.Tensor:
        """Count where tokens go, and those that go to more experts outside the mask than allowed.

        Returns which of the masked tokens go to an expert of the batch: bool [G, T].
        """
        num_experts = self.sent_LE.shape[1]
        is_used_GTk = is_used_GTk & (index_GTk < num_experts) & self._live_T[:, None]
        masked_GTk = is_used_GTk & self._masked_T[:, None]
        expert_GX = index_GTk.clamp(max=num_experts - 1).flatten(1)
        is_kept_GTk, is_allowed_GTk = (
            table_GE.gather(1, expert_GX).view_as(masked_GTk) for table_GE in (rule.kept_LE, rule.allowed_LE)
        )
        has_own_GT = (masked_GTk & is_kept_GTk).any(2)
        outside_GTk = masked_GTk & ~is_allowed_GTk
        outside_GTk = outside_GTk & (outside_GTk.sum(2, keepdim=True) > rule.num_added_L[:, None, None])
        outside_GTk = outside_GTk | (masked_GTk & ~is_kept_GTk & has_own_GT[:, :, None])
        place_X = (expert_GX + (layer_G * num_experts)[:, None]).flatten()
        for counted_LE, pairs_GTk in ((self.sent_LE, is_used_GTk), (self.outside_LE, outside_GTk)):
            counted_LE.view(-1).scatter_add_(0, place_X, pairs_GTk.flatten().long())
        return has_own_GT

    def _are_misrouted(self, rule: Rule, applied: Sequence[Applied], has_own_GT: torch.Tensor) -> torch.Tensor:
        """bool [G, T]: tokens to which a layer's router applied another mask than it should."""
        allowed_GTE = torch.stack([each.allowed_TE for each in applied])  # T is 1 where all tokens are alike
        lifted_GTE = torch.stack([each.lifted_TE for each in applied])
        is_free_GT = allowed_GTE.all(2) & ~lifted_GTE.any(2)
        lacks_GT = (rule.allowed_LE[:, None] & ~allowed_GTE).any(2)
        adds_others_GT = (allowed_GTE & ~rule.allowed_LE[:, None]).sum(2) != rule.num_added_L[:, None]
        lifts_others_GT = (lifted_GTE != rule.lifted_LE[:, None]).any(2)
        if applied[0].bias != self._bias:
            lifts_others_GT = lifts_others_GT | rule.lifted_LE.any(1, keepdim=True)
        wrong_GT = torch.where(self._masked_T, lacks_GT | adds_others_GT | lifts_others_GT, ~is_free_GT)
        # what is dropped: all but the kept experts, of the tokens that have one of these
        keeps_others_G1 = (torch.stack([each.kept_E for each in applied]) != rule.kept_LE).any(1, keepdim=True)
        dropping = [each.dropping_T for each in applied if each.dropping_T is not None]
        drops_others_GT = has_own_GT != torch.stack(dropping) if dropping else has_own_GT
        return wrong_GT | keeps_others_G1 | (drops_others_GT & ~rule.kept_LE.all(1, keepdim=True))
