"""ZeRO-3's parameter partitioning for the frozen dense weights: each rank keeps a shard, gathered while its layer runs.

DeepSpeed does this with hooks on the modules (`DeepSpeedZeRoOffload`), which are installed before its engine; the
engine then runs at stage 0, because nothing in the module is trained. To know when reading it:

- Every rank must visit the modules in the same order, in forward and backward, or DeepSpeed stops. They do: autograd
  starts at the same layer on all ranks, and an experts layer has the same graph with and without trained experts.
- A batch whose autograd starts at another layer visits modules in another order: DeepSpeed notices that and records
  the new order.
- Below the first trained layer no backward hook frees what was gathered; `release` does.
- A decoder layer's weights are gathered together (DeepSpeed calls such a module a leaf), as with FSDP. Many families
  read a weight of one module in another, such as a convolution's in a mixer, and DeepSpeed does not notice that.
- DeepSpeed replaces `F.linear`, for the whole process, by a function of its own, so that autograd keeps no gathered
  weight. torch's function modes see only the operations inside of it, which depend on the shapes and whose gradients
  are not recorded. So the route mask, which is such a mode, missed the logits of a router with a bias. `linear` is the
  same function, but modes see it as one call.
- Weights of up to `stage3_param_persistence_threshold` elements (100,000 by default) stay gathered after their first
  use. `release` frees them, so this setting has an effect within a step only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
from deepspeed.utils import set_z3_leaf_module
from deepspeed.utils.timer import NoopTimer
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function

from dist_moe.moe.internals import is_decoder_layer


def linear(
    input: torch.Tensor,  # noqa: A002 - as F.linear names it
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """`F.linear` as DeepSpeed has it under ZeRO-3, seen by torch's function modes as one call."""
    given = (input, weight, bias)
    if has_torch_function(given):
        result: torch.Tensor = handle_torch_function(linear, given, *given)
        return result
    return zero3_linear_wrap(*given)


class PartitionedDense:
    """The parameters of `module`, sharded over all ranks as the `zero_optimization` section of a DeepSpeed JSON
    says."""

    def __init__(self, module: nn.Module, section: dict[str, Any], micro_batch_size: int) -> None:
        for layer in filter(is_decoder_layer, module.modules()):
            set_z3_leaf_module(layer, True)
        zero = DeepSpeedZeroConfig(**section)
        config = {"train_micro_batch_size_per_gpu": micro_batch_size, "zero_optimization": section}
        self.offload = DeepSpeedZeRoOffload(
            module,
            NoopTimer(),
            config,
            overlap_comm=bool(zero.overlap_comm),
            prefetch_bucket_size=zero.prefetch_bucket_size,
            max_reuse_distance=zero.max_reuse_distance,
            max_live_parameters=zero.max_live_parameters,
            param_persistence_threshold=zero.param_persistence_threshold,
            model_persistence_threshold=zero.model_persistence_threshold,
            offload_param_config=zero.offload_param,
        )
        if F.linear is zero3_linear_wrap:  # not where the section says `memory_efficient_linear: false`
            F.linear = linear

    def release(self) -> None:
        """Free everything but the shards, including small weights, which DeepSpeed would keep."""
        self.offload.release_backward_leftovers()
        self.offload.partition_all_parameters()
