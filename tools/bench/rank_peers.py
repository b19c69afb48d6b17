"""What one would train experts with on several ranks otherwise, on the rows of this rank.

They are peers in speed only. All train whole tensors, or all of the union, on every batch; what they compute first, the
loss of the first batch, must agree. None computes a logit in vain.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import deepspeed
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.distributed import DistributedConfig
from transformers.utils import output_capturing

from dist_moe.engines.deepspeed import take_over_process_group
from dist_moe.training.loss import LabelledLogits
from tools.bench.memory import local
from tools.bench.peer import PeerStep
from tools.bench.setup import BETAS, EPS, LR, MAX_NORM, Mode, PlainRouteMask, Setup


class ReplicatedStep(PeerStep):
    """The compact union on each rank, with DDP."""

    def __init__(self, setup: Setup, mode: Mode) -> None:
        super().__init__(setup, mode)
        self.network = DistributedDataParallel(self.network, gradient_as_bucket_view=True)


class Sharded:
    """A model whose experts are split over the ranks by its library, which takes the mean of the ranks' gradients."""

    def __init__(self, setup: Setup, mode: Mode, module: PreTrainedModel) -> None:
        self.setup, self.mode, self.logits = setup, mode, LabelledLogits(module)
        self.route_mask: Any = None

    def loss(self, forward: Any, i: int) -> torch.Tensor:
        """Times the number of ranks, for the mean."""
        batch, setup = self.setup.batch(i), self.setup
        self.route_mask.allowed_LE = setup.allowed(self.mode, i)
        with self.logits.at_positions(batch.predicting):
            logits = forward(input_ids=batch.input_ids, use_cache=False).logits[0]
        targets = batch.labels.roll(-1, 1).flatten()[batch.predicting]
        return F.cross_entropy(logits.float(), targets, reduction="sum") / setup.num_answers(i) * setup.comm.size


def why_no_native() -> str | None:
    """Why this transformers has no expert parallelism of its own, if it has none."""
    if "ep_size" in signature(DistributedConfig).parameters:
        return None
    return f"transformers {transformers.__version__} has none (its DistributedConfig has no ep_size)"


class NativeStep(Sharded):
    """transformers' own expert parallelism: tokens by all_to_all, FSDP2 for the rest."""

    def __init__(self, setup: Setup, mode: Mode) -> None:
        comm = setup.comm
        with tempfile.TemporaryDirectory() as own:
            directory = comm.gather(own)[0]
            if comm.rank == 0:
                setup.plain_model().save_pretrained(directory)
            comm.barrier()
            module = AutoModelForCausalLM.from_pretrained(
                directory,
                distributed_config=DistributedConfig(fsdp_size=comm.size, ep_size=comm.size),
                experts_implementation="grouped_mm",
                dtype=getattr(torch, setup.options.dtype),
            )
            comm.barrier()
        super().__init__(setup, mode, module)
        self.route_mask = PlainRouteMask(module)
        self.module = module.eval().requires_grad_(False)
        self.parameters = [weight for layer in module.model.layers for weight in layer.mlp.experts.parameters()]
        for weight in self.parameters:
            weight.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0)

    def __call__(self, i: int) -> float:
        """This rank's share of the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.module, i)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
        self.optimizer.step()
        return loss.item() / self.setup.comm.size

    def num_bytes(self) -> tuple[int, int]:
        """Gradients and optimizer state."""
        state = (tensor for each in self.optimizer.state.values() for tensor in each.values())
        return _bytes(weight.grad for weight in self.parameters), _bytes(state)


@contextmanager
def _registry_like_a_dict() -> Iterator[None]:
    """DeepSpeed 0.19 asks transformers' registry of outputs as it would a dict, which it was in older versions."""
    registry = getattr(output_capturing, "_CanRecordRegistry", dict)
    if registry is dict:
        yield
        return
    asked = registry.get
    registry.get = lambda self, model, default=None: asked(self, model)
    yield
    registry.get = asked


class AutoEPStep(Sharded):
    """DeepSpeed's AutoEP with ZeRO-1."""

    def __init__(self, setup: Setup, mode: Mode) -> None:
        module = setup.plain_model()
        super().__init__(setup, mode, module)
        for layer in module.model.layers:
            layer.mlp.experts.requires_grad_(True)
        take_over_process_group()
        with _registry_like_a_dict():
            self.engine, self.optimizer, *_ = deepspeed.initialize(
                model=module,
                model_parameters=[weight for weight in module.parameters() if weight.requires_grad],
                dist_init_required=False,
                config={
                    "train_micro_batch_size_per_gpu": 1,
                    "steps_per_print": None,
                    "timers": {"throughput": {"enabled": False}},
                    "zero_optimization": {"stage": 1},
                    "gradient_clipping": MAX_NORM,
                    "bf16": {"enabled": setup.options.dtype == "bfloat16"},
                    "optimizer": {
                        "type": "AdamW",
                        "params": {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": 0.0, "torch_adam": True},
                    },
                    "expert_parallel": {"enabled": True, "autoep_size": setup.comm.size, "preset_model": "qwen3_moe"},
                },
            )
        self.route_mask = self
        self.allowed_LE: torch.Tensor | None = None
        for index, layer in enumerate(module.model.layers):
            layer.mlp.router.gate.register_forward_hook(partial(self._mask, index))

    def _mask(self, index: int, gate: nn.Module, args: Any, logits_TE: torch.Tensor) -> torch.Tensor:
        if self.allowed_LE is None:
            return logits_TE
        return logits_TE.masked_fill(~self.allowed_LE[index], float("-inf"))

    def __call__(self, i: int) -> float:
        """This rank's share of the loss."""
        loss = self.loss(self.engine, i)
        self.engine.backward(loss)
        self.engine.step()
        return loss.item() / self.setup.comm.size

    def num_bytes(self) -> tuple[int, int]:
        """Gradients and optimizer state, with the master weights that ZeRO keeps beside the weights."""
        inner = self.optimizer.optimizer
        state = [tensor for each in inner.state.values() for tensor in each.values() if tensor.dim()]
        masters = [weight for group in inner.param_groups for weight in group["params"]]
        weights = [weight for weight in self.engine.module.parameters() if weight.requires_grad]
        return 4 * sum(weight.numel() for weight in weights), _bytes(state) + _bytes(masters)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    """On this rank."""
    return sum(local(each).nbytes for each in tensors)
