"""SelectiveAdamW: AdamW over a set of experts that changes at every step.

State (fp32 master weights, two moments, a step count) exists for the experts of the union only, as one flat row per
expert. Where weights are fp32, they are their own master weights, and are updated in the bank. Each expert's state is
on one rank of the job, the owner among the replicas that hold the expert. A step changes the rows of the batch's
experts, and no other bit. Zeroed gradients would not achieve that: Adam's momentum and weight decay still change a
parameter long after its last gradient.

There are four collectives in a step, whatever the mask: gradients to the owners among the replicas, a table of norms,
and new weights back to the replicas, which takes two. With one replica there is only the table. Dense
weights add one: their gradients.

Some runs train dense weights too (dense.py); they are clipped by the same norm and updated in the same call.

The update itself is torch's own functional AdamW. The class is a `torch.optim.Optimizer`, so that engines and
learning-rate schedulers accept it. Its one registered parameter is a placeholder, because expert weights are not
`nn.Parameter`s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from dist_moe.errors import UserError
from dist_moe.moe.bank import ExpertLayer
from dist_moe.parallel.mesh import Mesh
from dist_moe.parallel.placement import state_replicas
from dist_moe.training.adam import AdamState, update, were_updated
from dist_moe.training.dense import DenseWeights
from dist_moe.training.norms import row_norms


class SelectiveAdamW(torch.optim.Optimizer):
    """Usage: `begin(mask)`, then backward passes, then `step()`; see the module docstring.

    An expert of the batch whose gradient is exactly zero (it got no token that the loss depends on) is not updated, as
    torch's optimizers skip parameters without a gradient.
    """

    def __init__(
        self,
        layers: tuple[ExpertLayer, ...],
        union_LE: torch.Tensor,
        mesh: Mesh,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_norm: float = 0.0,
        state_device: torch.device | None = None,
        dense: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """`mesh`: which ranks have the same experts. `state_device`: where state is kept and updated; None: beside
        the weights. `dense`: dense weights that some steps train, by name."""
        device = mesh.world.device
        placeholder = torch.zeros(1, device=device)
        super().__init__([placeholder], {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.layers, self.mesh, self.max_norm = layers, mesh, max_norm
        self.state_device = state_device or device
        self.dense = DenseWeights(dense or {}, self.state_device)
        self.replica_of = self._dealt(union_LE)
        self.expert_state = {key: self._new_state(key) for key in self._owned()}
        self.left: set[tuple[int, int]] = set()
        """Experts of this rank that were updated and have lost their state since, because they left the union."""
        self.active: list[tuple[int, int]] = []
        self.num_active_R = [0] * mesh.replicas.size
        # kept from step to step: on a CPU fresh memory of this size costs more than the pass that fills it
        self._grad_buffer = torch.empty(0, layers[0].layout.size, device=device)
        self.last_norm = 0.0
        self.num_stepped = 0

    def begin(self, mask_LE: torch.Tensor, *, dense: bool = False) -> None:
        """Make exactly these experts trainable, bool [L, E], and the dense weights or not; the same on all ranks. Call
        it before the first forward pass."""
        self.dense.begin(dense)
        self.active = sorted((key for key in self.replica_of if mask_LE[key]), key=self.replica_of.__getitem__)
        self.num_active_R = [0] * len(self.num_active_R)
        for key in self.active:
            self.num_active_R[self.replica_of[key]] += 1
        for layer in self.layers:
            layer.grads, layer.unwritten = {}, {*layer.bank}
        if len(self._grad_buffer) < len(self.active):
            size = self._grad_buffer.shape[1]
            self._grad_buffer = self._grad_buffer.new_empty(0, size)  # the smaller one goes first
            self._grad_buffer = self._grad_buffer.new_empty(len(self.active), size)
        every = self.layers[0].layout.views(self._grad_buffer[: len(self.active)])
        views = zip(*(block.unbind(0) for block in every.values()), strict=True)
        for (index, expert), of_one in zip(self.active, views, strict=True):
            layer = self.layers[index]
            layer.grads[layer.local.index(expert)] = dict(zip(every, of_one, strict=True))

    @property
    def grad_AN(self) -> torch.Tensor:
        """The gradients of `active`, [A, N]. The first backward pass after `begin` writes them, the others add; those
        that none has written are 0 from here on."""
        for layer in self.layers:
            for name in layer.unwritten:
                for views in layer.grads.values():
                    views[name].zero_()
            layer.unwritten = set()
        return self._grad_buffer[: len(self.active)]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # a step has no closure to re-evaluate
        """Clip by the global norm over the batch's experts on all ranks, and the dense weights if they are trained;
        update all of these, and write the new weights to the banks and the model."""
        world, owned = self.mesh.world, self.owned_active
        grads = self.mesh.replicas.reduce_rows(self.grad_AN, self.num_active_R)
        # a table, not a scalar: every entry has one owner, so the sum has the same bits for any number of ranks
        norms_LE = world.sum_(self._norms(owned, grads)).cpu()
        norms, dense_grads, norms_of_dense = norms_LE, self.dense.summed(world), {}
        if dense_grads:
            norms_of_dense = dict(zip(dense_grads, self.dense.norms().cpu(), strict=True))
            norms = torch.cat([norms_LE.flatten(), torch.stack([*norms_of_dense.values()])])
        self.last_norm = float(torch.linalg.vector_norm(norms))
        if not math.isfinite(self.last_norm):
            raise UserError(
                f"gradient norm is {self.last_norm}: this step changed no weight; lower train.lr or train in float32"
            )
        # of the gradients, so that the norm of all is at most max_norm
        divisor = max(1.0, (self.last_norm + 1e-6) / self.max_norm) if self.max_norm > 0 else 1.0
        self.num_stepped = int((norms_LE > 0).sum())
        grads = grads.to(self.state_device)  # all at once, where state is kept apart
        stepping = {key: grad for key, grad in zip(owned, grads, strict=True) if norms_LE[key] > 0}
        of_dense = {name: dense_grads[name] for name, norm in norms_of_dense.items() if norm > 0}
        states = [self.expert_state[key] for key in stepping] + [self.dense.state[name] for name in of_dense]
        if states:
            update(states, [*stepping.values(), *of_dense.values()], self.param_groups[0], divisor)
        states_of = {key: self.expert_state[key] for key in stepping}
        self._write({key: state.master for key, state in states_of.items() if not state.is_weight})
        for name in of_dense:
            self.dense.write(name)
        self._share_weights()

    @torch.no_grad()
    def reconcile(self, union_LE: torch.Tensor) -> None:
        """Train the experts of `union_LE`, bool [L, E], from now on. Called by all ranks together, between two steps.

        Experts that stay keep master weights, moments and step count, bit for bit. New ones start from their weights,
        without moments. Those that leave keep their weights and lose their state. Experts do not move to other ranks.
        Only the owners among replicas are chosen anew, as for an optimizer that is created with this union; their state
        is sent to them, one layer at a time.
        """
        stepped_LE = torch.zeros(union_LE.shape, dtype=torch.int64)
        for key in were_updated(self.expert_state):
            stepped_LE[key] = 1
        stepped_LE = self.mesh.world.sum_(stepped_LE.to(self.mesh.world.device)).cpu()
        before, self.replica_of = self.replica_of, self._dealt(union_LE)
        self.left |= {key for key in before if key not in self.replica_of and stepped_LE[key]}
        for layer in self.layers:
            self._move_state(layer.index, before)
        self.expert_state = {key: self.state_of(key) for key in self._owned()}
        self.active = []

    def _move_state(self, layer: int, before: dict[tuple[int, int], int]) -> None:
        """Send state to the replicas that own it from now on, and receive that of this rank, for one layer."""
        replicas, num = self.mesh.replicas, self.layers[layer].layout.size
        moving = [
            (source, target, key)
            for key, target in self.replica_of.items()
            if key[0] == layer and (source := before.get(key, target)) != target
        ]
        sent = sorted(((t, key) for s, t, key in moving if s == replicas.rank))
        got = sorted(((s, key) for s, t, key in moving if t == replicas.rank))
        rows = torch.empty(len(sent), 3 * num + 1, device=self.mesh.world.device)
        for row, (_, key) in zip(rows, sent, strict=True):
            state = self.expert_state.pop(key)
            row.copy_(torch.cat([tensor.reshape(-1) for tensor in state.tensors().values()]))
        counts = [[[replica for replica, _ in each].count(r) for r in range(replicas.size)] for each in (sent, got)]
        for row, (_, key) in zip(replicas.swap_rows(rows, *counts), got, strict=True):
            self.expert_state[key] = self._new_state(key)
            for tensor, part in zip(
                self.expert_state[key].tensors().values(), row.split([num, num, num, 1]), strict=True
            ):
                tensor.copy_(part.view_as(tensor))

    @property
    def changed(self) -> list[tuple[int, int]]:
        """Experts that differ from the base and that this rank has to write; each is on one rank of the job."""
        left = sorted(self.left - self.replica_of.keys())
        dealt = zip(left, state_replicas(len(left), self.mesh.replicas.size), strict=True)
        mine = [key for key, replica in dealt if replica == self.mesh.replicas.rank]
        stepped = were_updated(self.expert_state)
        return [key for key in self.expert_state if key in stepped or key in self.left] + mine

    def state_of(self, key: tuple[int, int]) -> AdamState:
        """An expert's state; without moments and steps if it has left the union, or is back and was not updated
        since."""
        return self.expert_state.get(key) or self._new_state(key)

    @property
    def state_bytes(self) -> int:
        """Memory of this rank's master weights and moments: 12 bytes per parameter of what it owns, 8 where weights are
        their own master weights."""
        return sum(state.num_bytes for state in (*self.expert_state.values(), *self.dense.state.values()))

    @property
    def gradient_bytes(self) -> int:
        """Memory of this rank's gradients: of the most experts that a batch has trained here, and of dense weights."""
        dense = sum(grad.nbytes for grad in self.dense.grads.values())
        return self._grad_buffer.nbytes + dense

    @property
    def owned_active(self) -> list[tuple[int, int]]:
        """The batch's experts whose state this rank owns, and which it updates."""
        return [key for key in self.active if key in self.expert_state]

    @torch.no_grad()
    def restore(self, key: tuple[int, int], tensors: dict[str, torch.Tensor]) -> None:
        """Restore the saved state of an expert of this rank: one tensor for each field of `AdamState`.

        A rank that holds the expert without owning its state takes the weights only.
        """
        if not tensors["step"]:
            self.left.add(key)
        if key in self.expert_state:
            for name, tensor in self.expert_state[key].tensors().items():
                tensor.copy_(tensors[name])
        self._write({key: tensors["master"]})

    def _dealt(self, union_LE: torch.Tensor) -> dict[tuple[int, int], int]:
        """Which replica owns the state of each expert that this rank holds, in (layer, expert) order."""
        held = [(layer.index, e) for layer in self.layers for e in layer.local if union_LE[layer.index, e]]
        return dict(zip(held, state_replicas(len(held), self.mesh.replicas.size), strict=True))

    def _owned(self) -> list[tuple[int, int]]:
        return [key for key, replica in self.replica_of.items() if replica == self.mesh.replicas.rank]

    def _new_state(self, key: tuple[int, int]) -> AdamState:
        return AdamState.new(self._flat(key), self.state_device)

    def _share_weights(self) -> None:
        """Send updated weights from their owners to the other replicas, in the bank's data type, so that all have
        the same bits."""
        if self.mesh.replicas.size == 1:
            return
        rows = [self._flat(key) for key in self.owned_active]
        mine = torch.stack(rows) if rows else self.layers[0].flat_SN[:0]
        every = zip(self.active, self.mesh.replicas.gather_rows(mine, self.num_active_R), strict=True)
        self._write({key: flat for key, flat in every if key not in self.expert_state})

    def _flat(self, key: tuple[int, int]) -> torch.Tensor:
        return self.layers[key[0]].flat(key[1])

    def _norms(self, keys: list[tuple[int, int]], grads: torch.Tensor) -> torch.Tensor:
        """The norm of each of these experts' gradients [A, N] in its place of a table, float64 [L, E], else 0."""
        norms_LE = torch.zeros(len(self.layers), len(self.layers[0].key_E), dtype=torch.float64, device=grads.device)
        if keys:
            at_A = torch.tensor([layer * norms_LE.shape[1] + expert for layer, expert in keys])
            norms_LE.view(-1)[at_A.to(grads.device, non_blocking=True)] = row_norms(grads)
        return norms_LE

    def _write(self, new: Mapping[tuple[int, int], torch.Tensor]) -> None:
        """Write flat vectors to the experts' weights in the bank, rounded to the bank's data type."""
        if new:
            torch._foreach_copy_([self._flat(key) for key in new], [*new.values()], non_blocking=True)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Does nothing: `begin` makes the gradient buffer of a batch."""
