"""MoEModel: a loaded model with frozen dense weights, experts in banks, and hooks that count and mask routing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from dist_moe.config.schema import ModelConfig
from dist_moe.errors import UserError
from dist_moe.model.attention import refuse_attention
from dist_moe.moe.adapters.adapt import adapt
from dist_moe.moe.bank import ExpertLayer, take_experts, train_from
from dist_moe.moe.dense import requiring_gradients, take_dense
from dist_moe.moe.discover import MoELayer, MoEShape, find_moe_layers, moe_shape
from dist_moe.moe.experts import use_banks
from dist_moe.moe.internals import checkpoint_activations, must_be_alone
from dist_moe.moe.liger import use_liger
from dist_moe.moe.load import empty_model, fill, keep_experts
from dist_moe.moe.originals import Originals
from dist_moe.moe.route_mask import RouteMask, RoutePlan
from dist_moe.moe.tap import RoutingTap
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.placement import Placement
from dist_moe.weights.model_dir import check_model_dir

T = TypeVar("T")


@dataclass(slots=True)
class MoEModel:
    """`module` is the transformers model without its expert weights; `layers` hold the experts of this rank."""

    module: PreTrainedModel
    shape: MoEShape
    layers: tuple[ExpertLayer, ...]
    tap: RoutingTap
    route_mask: RouteMask
    placement: Placement
    num_parameters: int
    """Parameters of the whole model, including the experts of all ranks."""
    rows_alone: bool
    """Whether each row needs a forward pass of its own, because padding would change its results."""
    router_names: tuple[str, ...]
    """Names of the MoE layers' router weights, each followed by that of its bias if it has one."""
    packed: bool = False
    """Whether the rows of a pass are laid end to end, and not padded. Answers are always generated from padded
    prompts."""
    dense: dict[str, torch.Tensor] = field(default_factory=dict)
    """Dense weights that may be trained, by name: the tensors that the module computes with."""
    originals: Originals | None = None
    """Copies of what is trained as it was before; None if they are not kept."""
    sharded_over: Comm | None = None
    """The ranks over which an engine has sharded the dense weights; None: every rank has them whole."""

    @property
    def in_step(self) -> Comm:
        """The ranks that run forward passes together: those that share experts, or dense weights."""
        return self.sharded_over or self.layers[0].comm

    def at_once(self, limit: T) -> T | int:
        """`limit` (of rows or tokens in a forward pass) if rows may share a pass, else a limit that gives every row its
        own."""
        return 1 if self.rows_alone else limit

    @contextmanager
    def batch(
        self,
        live_RS: torch.Tensor | None = None,
        *,
        route: RoutePlan | None = None,
        first_layer: int | None = None,
        dense: bool = False,
    ) -> Iterator[None]:
        """Context manager for the forward passes of one batch. On leaving, also by an exception, everything is as
        before.

        `live_RS` is as for `next_pass`; `route` says what routing may use (None: no mask). `first_layer` is the MoE
        layer from which autograd runs (None: no gradients), the same on all ranks; no activations are kept below it.
        With `dense`, the weights in `dense` get gradients; it goes with `first_layer` 0. On entering, no expert has a
        gradient buffer; buffers made inside are freed on leaving. Batches may be nested; nothing of the outer one is in
        effect inside the inner one.
        """
        with ExitStack() as stack:
            stack.enter_context(self.route_mask.restored())
            for layer in self.layers:
                stack.enter_context(layer.restored())
                layer.grads, layer.unwritten = {}, set()
                layer.most_active = None if route is None else route.most_active(layer.index)
            train_from(self.layers, len(self.layers) if first_layer is None else first_layer)
            if dense:
                stack.enter_context(requiring_gradients(self.dense))
            self.route_mask.set(route)
            self.next_pass(live_RS)
            yield

    def next_pass(
        self, live_RS: torch.Tensor | None, masked_RS: torch.Tensor | None = None, *, num_live: int | None = None
    ) -> None:
        """Inside `batch`: announce the tokens of the next forward pass, and of its recomputation in the backward pass.

        Args:
            live_RS: bool [R, S], the real tokens; others are not sent to experts. None: all are real.
            masked_RS: bool [R, S], the tokens that are routed under the mask. None: all.
            num_live: how many are real, if it is known; else a GPU computes on padding too, and drops it.
        """
        live_T = None if live_RS is None else live_RS.reshape(-1)
        for layer in self.layers:
            layer.live_T, layer.num_live = live_T, num_live
        self.route_mask.masked_T = None if masked_RS is None else masked_RS.reshape(-1)

    def keep_originals(self, chosen_LE: torch.Tensor) -> None:
        """Keep a copy of these experts, bool [L, E], and of the weights in `dense`; call it before they are trained.

        Copies that are kept already stay.
        """
        if self.originals is None:
            self.originals = Originals(self.layers, chosen_LE, self.dense)
        else:
            self.originals.include(self.layers, chosen_LE)

    def train_dense(self, names: Iterable[str]) -> None:
        """Prepare these dense weights for training; call it before an engine is built around the module."""
        assert not self.dense
        self.dense = take_dense(self.module, names, self.router_names)

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass; `batch` still decides where autograd starts."""
        checkpoint_activations(self.module)


def load_model(
    config: ModelConfig, comm: Comm, placement: Placement | None = None, *, packed: bool = False
) -> MoEModel:
    """Load the base model's dense weights and this rank's experts.

    `placement` says how each layer's experts are split over the ranks of `comm`; None: in equal contiguous blocks.
    `packed` is the setting `data.packing`.
    """
    check_model_dir(config.path)
    disable_progress_bar()  # one bar a rank would be noise
    dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
    module = empty_model(config.path, dtype, attention=config.attention)
    refuse_attention(config.attention, comm.device, module.dtype)
    layers = find_moe_layers(module)
    num_parameters = module.num_parameters()
    placement = _place(moe_shape(module, layers), comm, placement)
    owned = [placement.local(layer.index, comm.rank) for layer in layers]
    fill(module, layers, config.path, owned)
    if config.kernels == "liger":
        use_liger(module, comm.device)
    model = _assemble(module, layers, placement, comm, num_parameters)
    model.packed = packed
    return model


def adopt(module: PreTrainedModel, comm: Comm, placement: Placement | None = None) -> MoEModel:
    """Wrap a transformers model that is in memory already; keeps this rank's experts, placed as by `load_model`."""
    adapt(module)
    layers = find_moe_layers(module)
    num_parameters = module.num_parameters()
    placement = _place(moe_shape(module, layers), comm, placement)
    keep_experts(layers, [placement.local(layer.index, comm.rank) for layer in layers])
    return _assemble(module, layers, placement, comm, num_parameters)


def _place(shape: MoEShape, comm: Comm, placement: Placement | None) -> Placement:
    if shape.num_experts < comm.size:
        raise UserError(
            f"{shape.num_experts} experts per layer cannot be split over {comm.size} ranks: start fewer ranks, or "
            "lower parallel.ep_size"
        )
    if placement is None:
        return Placement.contiguous(shape.num_layers, shape.num_experts, comm.size)
    assert placement.owner_LE.shape == (shape.num_layers, shape.num_experts)
    assert placement.num_ranks == comm.size
    return placement


def _assemble(
    module: PreTrainedModel, layers: tuple[MoELayer, ...], placement: Placement, comm: Comm, num_parameters: int
) -> MoEModel:
    """Freeze the model, move the experts of this rank to banks, and attach the hooks."""
    shape = moe_shape(module, layers)
    module.requires_grad_(False)
    expert_layers = take_experts(layers, placement, comm)
    use_banks(module)
    torch.nn.Module.to(module, comm.device).eval()
    tap = RoutingTap(layers, shape.num_experts)
    route_mask = RouteMask(layers, shape.top_k, comm.device)
    rows_alone, routers = must_be_alone(module), tuple(name for layer in layers for name in layer.router_names)
    return MoEModel(module, shape, expert_layers, tap, route_mask, placement, num_parameters, rows_alone, routers)
