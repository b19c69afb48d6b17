"""The engine `fsdp`: FSDP2 shards the frozen dense weights over all ranks; a layer's weights are gathered while it
runs.

Experts are not parameters of the module, so `fully_shard` finds the dense weights only: nothing has to be excluded. As
these are frozen, there are no gradients to reduce. The collectives are the same on all ranks, whatever a batch trains,
because autograd starts at the same layer on all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel

from dist_moe.engines.local import LocalEngine
from dist_moe.moe.internals import is_decoder_layer
from dist_moe.parallel.comm import GroupComm


class FsdpEngine(LocalEngine):
    """Plain PyTorch around a module whose decoder layers, and the rest, are sharded over all ranks of `comm`."""

    name = "fsdp"
    is_sharded = True

    def __init__(
        self, module: PreTrainedModel, optimizer: torch.optim.Optimizer, schedule: LRScheduler, comm: GroupComm
    ) -> None:
        mesh = DeviceMesh.from_group(comm.group, comm.device.type)
        for layer in module.modules():
            if is_decoder_layer(layer):
                fully_shard(layer, mesh=mesh)
        fully_shard(module, mesh=mesh)
        super().__init__(module, optimizer, schedule)

    def step(self, *, last: bool) -> None:
        super().step(last=last)
        self.release()

    def release(self) -> None:
        # what is outside of the layers waits for a backward pass, which a batch that trains nothing does not have
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def dense(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.release()
        for name, tensor in super().dense():
            yield name, tensor.to_local() if isinstance(tensor, DTensor) else tensor
