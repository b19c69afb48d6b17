"""What grows with the number of ranks: collectives, bytes, memory and time of a training step, on threads."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from dist_moe.config.schema import TrainConfig
from dist_moe.data.tokens import Encoded
from dist_moe.engines.local import LocalEngine
from dist_moe.model.model import adopt
from dist_moe.parallel.mesh import Mesh
from dist_moe.parallel.placement import Placement
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.promise import Promise
from dist_moe.training.split import Split
from dist_moe.training.step import MaskedStep
from tools.growth.threads import on_threads

NUM_LAYERS, LENGTH = 2, 8
"""Tokens of a row."""


@dataclass(frozen=True, slots=True)
class RankStep:
    """One rank's last step."""

    collectives: Mapping[str, int]
    bytes_sent: int
    bank_bytes: int
    gradient_bytes: int
    """Of the batch's experts."""
    state_bytes: int
    seconds: float
    """CPU time of the thread, the least of the steps after the first."""
    loss: float
    weights: Mapping[tuple[int, int], torch.Tensor]
    """The trained experts that this rank holds: by layer and expert, all weights of one in a row."""


def config(num_experts: int) -> Qwen3MoeConfig:
    return Qwen3MoeConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=NUM_LAYERS, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, intermediate_size=16, moe_intermediate_size=8, num_experts=num_experts, num_experts_per_tok=2,
        norm_topk_prob=True, max_position_embeddings=32, pad_token_id=0,
    )  # fmt: skip


def batch_of(num_rows: int) -> list[Encoded]:
    """Rows of made-up tokens, the first half safe."""
    ids = torch.randint(3, 60, (num_rows, LENGTH), generator=torch.Generator().manual_seed(1)).tolist()
    return [Encoded(tuple(row[:4]), tuple(row[4:]), number >= num_rows // 2) for number, row in enumerate(ids)]


def steps(
    num_ranks: int,
    ep_size: int,
    *,
    num_experts: int,
    num_rows: int,
    settings: TrainConfig,
    share: float = 0.25,
    num_steps: int = 2,
) -> Sequence[RankStep]:
    """Take steps on a batch of a small model, whose mask has a share of each layer's experts; each rank's last one."""
    order_LE = torch.rand(NUM_LAYERS, num_experts, generator=torch.Generator().manual_seed(2)).argsort(1)
    mask_LE = order_LE < max(1, round(share * num_experts))
    rows = batch_of(num_rows)
    promise = Promise.of(mask_LE.numpy(), [row.unsafe for row in rows])
    torch.manual_seed(0)
    weights = Qwen3MoeForCausalLM(config(num_experts)).state_dict()
    placement = Placement.balanced(mask_LE.numpy()[None], ep_size)

    def work(mesh: Mesh, calls: Counter[str], sent: Counter[str]) -> RankStep:
        module = Qwen3MoeForCausalLM(config(num_experts))
        module.load_state_dict(weights)
        model = adopt(module, mesh.ep, placement)
        optimizer = SelectiveAdamW(model.layers, mask_LE, mesh, lr=1e-2, eps=1e-4, max_norm=settings.max_norm)
        engine = LocalEngine(model.module, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0))
        step = MaskedStep(model, optimizer, engine, mesh.world, settings, lambda _: promise)
        local = Split.of(num_rows, mesh.world.size, None).local(rows, mesh.world.rank, 0)
        seconds = []
        for _ in range(num_steps):
            calls.clear()
            sent.clear()
            start = time.thread_time()
            result = step("the batch", mask_LE, local)
            seconds.append(time.thread_time() - start)
        return RankStep(
            collectives=dict(calls),
            bytes_sent=sent.total(),
            bank_bytes=sum(weight.nbytes for layer in model.layers for weight in layer.bank.values()),
            gradient_bytes=optimizer.grad_AN.nbytes,
            state_bytes=optimizer.state_bytes,
            seconds=min(seconds[1:]),
            loss=result.loss,
            weights={
                (layer.index, expert): torch.cat([weight[slot].flatten() for weight in layer.bank.values()])
                for layer in model.layers
                for slot, expert in enumerate(layer.local)
                if mask_LE[layer.index, expert]
            },
        )

    return on_threads(num_ranks, ep_size, work)
