"""The engine `deepspeed`: uses DeepSpeed's launcher, process groups, engine, accumulation boundary, monitor and timers.

The DeepSpeed engine runs at ZeRO stage 0. It finds no trainable parameter in the model, because expert weights are not
`nn.Parameter`s; it gets our optimizer and returns it unwrapped. So it neither reduces, rescales, casts nor partitions
expert weights. If the user asks for stage 3, `zero.py` shards the dense weights first. To know when reading it:

- `gradient_clipping` must be 0: DeepSpeed's clipping fails without a trainable parameter, and would average local
  norms.
  Our optimizer clips by the global norm of all ranks.
- `backward(scale_wrt_gas=False)`: our loss is already a share of the global mean.
- DeepSpeed's throughput timer would wait for the device twice in each micro-step, so it is off unless the user asks for
  it.
- On CPU, DeepSpeed would compile a shared-memory helper at start. That takes about a minute and a compiler, and a
  killed
  build leaves a lock file behind. gloo works without it, so the helper is reported as not available.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from dist_moe.engines.deepspeed_config import is_zero3
from dist_moe.engines.local import stored_tensors
from dist_moe.engines.zero import PartitionedDense


def take_over_process_group() -> None:
    """Make DeepSpeed use the process group that torch has started."""
    if get_accelerator().device_name() == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=dist.get_backend())


class DeepSpeedEngine:
    """`deepspeed.initialize` around the frozen model and the selective optimizer."""

    name = "deepspeed"

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: LRScheduler,
        *,
        user_config: dict[str, Any],
        micro_batch_size: int,
        num_micro_batches: int,
    ) -> None:
        take_over_process_group()
        zero = user_config.get("zero_optimization", {})
        self.partitioned = PartitionedDense(module, zero, micro_batch_size) if is_zero3(user_config) else None
        config = {
            "steps_per_print": None,
            "timers": {"throughput": {"enabled": False}},
            **user_config,
            "zero_optimization": {"stage": 0},
            "train_micro_batch_size_per_gpu": micro_batch_size,
            "gradient_accumulation_steps": num_micro_batches,
            "gradient_clipping": 0.0,
        }
        self.engine, hosted, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, lr_scheduler=schedule, config=config, dist_init_required=False
        )
        assert hosted is optimizer, "DeepSpeed wrapped the optimizer: expert weights would not be stepped as promised"

    def forward(self, **inputs: Any) -> torch.Tensor:
        return self.engine(**inputs).logits

    def backward(self, loss: torch.Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self, *, last: bool) -> None:
        assert self.engine.is_gradient_accumulation_boundary() == last
        self.engine.step()
        self.release()

    @property
    def is_sharded(self) -> bool:
        return self.partitioned is not None

    def release(self) -> None:
        if self.partitioned is not None:
            self.partitioned.release()

    def dense(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in stored_tensors(self.engine.module):
            yield name, getattr(tensor, "ds_tensor", tensor)  # ZeRO-3's piece of it
