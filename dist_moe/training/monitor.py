"""The monitor: checks at every step, on every rank, that the step does only what the batch's mask allows.

What is allowed follows from the batch's row in the mask store and from the train settings, independently of what the
step was given. After the last backward pass, and before the optimizer's step, it is compared with

- the experts that are about to be updated, each on exactly one rank, and their gradient buffers: each must be part of
  the optimizer's row of the same expert; none in a step that trains no experts;
- the dense weights that have gradients: those that the step trains, and the model computes with the optimizer's;
- the mask that each layer's router applied to each token: the batch's own on the rows that `scope` names, with as
  many additional experts per token as `fill` allows; none on other rows or in mode `update`; with `fill: natural`, on
  those of the tokens that are sent to an expert of the batch;
- the experts that each token was sent to, as seen at the call of the experts;
- the rows that each rank's experts received: they must be those that all ranks' tokens were sent to.

A violation is a bug of this package. It raises an `AssertionError`, on all ranks alike, before any weight has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dist_moe.config.schema import TrainConfig
from dist_moe.data.tokens import TokenBatch
from dist_moe.model.model import MoEModel
from dist_moe.moe.bank import FlatLayout
from dist_moe.moe.dense import in_use
from dist_moe.moe.internals import named_arguments
from dist_moe.moe.routing import Applied
from dist_moe.parallel.comm import Comm
from dist_moe.stats.masks import mask_hash
from dist_moe.stats.names import expert_name
from dist_moe.training.calls import Call, Calls, Rule
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.promise import Promises
from dist_moe.training.rounds import EXPERTS, Trained

MOST_NAMES = 8
"""Maximum number of experts that a message names."""


class MaskMonitor:
    """Inside `during`, for one step: call `watch` before each micro-batch, and `check` before the optimizer's step."""

    def __init__(
        self, model: MoEModel, optimizer: SelectiveAdamW, comm: Comm, settings: TrainConfig, promises: Promises
    ) -> None:
        self.model, self.optimizer, self.comm = model, optimizer, comm
        self.settings, self.promises = settings, promises
        self._shape_LE = (model.shape.num_layers, model.shape.num_experts)
        self._calls = Calls(*self._shape_LE, comm.device)
        self._no_mask = Applied.nothing(torch.ones(self._shape_LE[1], dtype=torch.bool, device=comm.device))
        self._rows_2 = torch.zeros(2, dtype=torch.int64, device=comm.device)
        self._watching = False
        self._modules = [*model.module.modules()]  # to walk through the tree, with names, takes five times as long
        slot_LE = torch.stack([layer.key_E.long() - layer.comm.rank * layer.num_slots for layer in model.layers])
        num_slots = model.layers[0].num_slots
        self._is_local_LE, self._slot_LE = (slot_LE >= 0) & (slot_LE < num_slots), slot_LE.clamp(0, num_slots - 1)
        for index, layer in enumerate(model.layers):
            assert layer.index == index
            layer.module.register_forward_pre_hook(self._at_experts(index), with_kwargs=True)

    @contextmanager
    def during(self, batch_id: str, trained: Trained = EXPERTS) -> Iterator[None]:
        """Context manager for the step of one batch, which trains what `trained` says; outside, nothing is watched."""
        self._promise, self._trained = self.promises(batch_id), trained
        mask_LE = torch.from_numpy(self._promise.mask_LE)
        self._moving_LE = self._promise.mask_LE & trained.experts
        rule = Rule.of(mask_LE, self.model.shape.top_k, self.settings)
        self._calls.begin(rule.to(self.comm.device), self.settings.route_bias)
        torch._foreach_zero_([self._rows_2, *(layer.ended_S for layer in self.model.layers)])
        try:
            yield
        finally:
            self._watching = False

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Context manager for a forward pass that is not part of the step."""
        before, self._watching = self._watching, False
        ended = [layer.ended_S.clone() for layer in self.model.layers]
        try:
            yield
        finally:
            self._watching = before
            torch._foreach_copy_([layer.ended_S for layer in self.model.layers], ended)

    def watch(self, batch: TokenBatch) -> None:
        """Announce the rows of the next forward pass, and of its recomputation in the backward pass."""
        live_T, unsafe_T = batch.live.reshape(-1), batch.is_unsafe.reshape(-1)
        self._calls.tokens(live_T, live_T if self.settings.scope == "all" else live_T & unsafe_T)
        self._watching = True
        begins = batch.own & batch.begins
        self._rows_2 += torch.stack([begins.sum(), (begins & batch.is_unsafe).sum()])

    def check(self) -> str:
        """Assert that the step is as the store says for the batch; returns the hash of the experts that were seen."""
        promise = self._promise
        self._calls.look()
        mine = [*self._wrong_buffers(), *self._wrong_dense()]
        num_layers, num_experts = self._shape_LE
        # what the host knows: movable, number wrong
        told = torch.zeros(num_layers * num_experts + 1, dtype=torch.int64)
        for layer, expert in self.optimizer.owned_active:
            told[layer * num_experts + expert] += 1
        told[-1] = len(mine)
        tables = (self._calls.sent_LE, self._received_LE(), self._calls.outside_LE)
        parts = [*(table.flatten() for table in tables), self._calls.misrouted_L, self._rows_2]
        parts.append(told.to(self.comm.device, non_blocking=True))
        seen = self.comm.sum_(torch.cat(parts)).cpu().split([part.numel() for part in parts])
        sent, received, outside, movable = (part.view(self._shape_LE) for part in (*seen[:3], seen[5][:-1]))
        misrouted, (num_rows, num_unsafe), num_wrong = seen[3], seen[4].tolist(), int(seen[5][-1])
        if num_wrong:
            raise AssertionError(next(lines[0] for lines in self.comm.gather(mine) if lines))
        assert (num_rows, num_unsafe) == (promise.num_rows, promise.num_unsafe), (
            f"{num_rows} rows were seen, {num_unsafe} of them unsafe, but the store's batch has {promise.num_rows} and "
            f"{promise.num_unsafe}"
        )
        assert not misrouted.any(), f"tokens were not routed under the batch's mask, by layer: {misrouted.tolist()}"
        assert not outside.any(), f"tokens were sent to experts outside the batch's mask: {_named(outside)}"
        assert torch.equal(received, sent), f"experts got other tokens than were sent: {_named(received - sent)}"
        assert movable.max() <= 1, f"an expert would be updated on several ranks: {_named(movable > 1)}"
        differ = movable.bool() != torch.from_numpy(self._moving_LE)
        assert not differ.any(), f"the experts that would move are not the batch's mask: {_named(differ)}"
        seen_hash = mask_hash(movable.bool().numpy())
        expected = promise.mask_hash if self._trained.experts else mask_hash(self._moving_LE)
        assert seen_hash == expected, f"mask in force {seen_hash}, but the batch's is {expected}"
        return seen_hash

    def _at_experts(self, index: int) -> Any:
        def hook(experts: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self._watching:
                return
            named = named_arguments(args, kwargs)
            applied = self.model.route_mask.applied[index] or self._no_mask
            self._calls.add(Call(index, named["top_k_index"], named["top_k_weights"].detach(), applied))

        return hook

    def _received_LE(self) -> torch.Tensor:
        """Number of rows that each of this rank's experts received."""
        ended_LS = torch.stack([layer.ended_S for layer in self.model.layers])
        received_LS = torch.diff(ended_LS, prepend=torch.zeros_like(ended_LS[:, :1]))
        return received_LS.gather(1, self._slot_LE) * self._is_local_LE

    def _wrong_buffers(self) -> Iterator[str]:
        """Gradient buffers that do not belong to their expert. Row i of the optimizer is that of its i-th active
        expert."""
        optimizer, rank = self.optimizer, self.comm.rank
        held = {(layer.index, expert) for layer in self.model.layers for expert in layer.local}
        expected = {key for key in held if self._moving_LE[key]}
        dealt = sorted(expected, key=lambda key: (optimizer.replica_of.get(key, 0), key))
        if optimizer.active != dealt or len(optimizer.grad_AN) != len(dealt):
            yield f"rank {rank}: gradients are kept for {_names(optimizer.active)}, expected {_names(dealt)}"
        address, grad_AN = optimizer.grad_AN.data_ptr(), optimizer.grad_AN
        row_of = {key: address + row * grad_AN[0].nbytes for row, key in enumerate(optimizer.active[: len(grad_AN)])}
        for layer in self.model.layers:
            found = {(layer.index, layer.local[slot]): views for slot, views in layer.grads.items()}
            if found.keys() != {key for key in expected if key[0] == layer.index}:
                yield f"rank {rank}: layer {layer.index} sums gradients of {_names(found)}"
            for key, views in found.items():
                if key in row_of and not _are_at(row_of[key], views, layer.layout, grad_AN.dtype):
                    yield f"rank {rank}: the gradient buffer of {expert_name(*key)} is another expert's"

    def _wrong_dense(self) -> Iterator[str]:
        """Dense weights that would be updated, or would not be, against what the step trains."""
        dense, rank = self.optimizer.dense, self.comm.rank
        expected = [*self.model.dense] if self._trained.dense else []
        if [*dense.grads] != expected or (self._trained.dense and not expected):
            yield f"rank {rank}: gradients are kept of {len(dense.grads)} dense weights, expected {len(expected)}"
        known = {id(weight) for weight in self.model.dense.values()} if self._trained.dense else set()
        weights = (w for module in self._modules for w in module._parameters.values() if w is not None)
        if any(weight.requires_grad != (id(weight) in known) for weight in (*weights, *self.model.dense.values())):
            for name, weight in (*self.model.module.named_parameters(), *self.model.dense.items()):
                if weight.requires_grad != (id(weight) in known):
                    has = weight.requires_grad
                    yield f"rank {rank}: {name} has gradients: {has}, but the step trains {self._trained}"
        for name in expected:
            used = in_use(self.model.module, name)
            if used is not self.model.dense[name] or used is not dense.weights.get(name):
                yield f"rank {rank}: the model does not compute with the {name} that would be updated"


def _are_at(address: int, views: dict[str, torch.Tensor], layout: FlatLayout, dtype: torch.dtype) -> bool:
    """Whether these are the views of a flat vector at an address, value for value."""
    return views.keys() == {name for name, *_ in layout.parts} and all(
        view.data_ptr() == address + start * dtype.itemsize
        and view.dtype == dtype
        and view.shape == shape
        and view.is_contiguous()
        for name, shape, start, _ in layout.parts
        for view in [views[name]]
    )


def _names(keys: Iterable[tuple[int, int]]) -> str:
    """Names of the first experts, and how many more there are."""
    names = [expert_name(*key) for key in sorted(keys)]
    more = [f"and {len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
    return " ".join(names[:MOST_NAMES] + more) or "no expert"


def _named(table_LE: torch.Tensor) -> str:
    """Names of the experts where a table is not 0."""
    return _names((layer, expert) for layer, expert in table_LE.nonzero().tolist())
