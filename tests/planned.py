"""Models of moderate size of several families, what a training step of them takes, and what the plan says of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from dist_moe.config.schema import TrainConfig
from dist_moe.conformance.sizes import FAMILY_CONFIGS, randomize
from dist_moe.data.tokens import Encoded
from dist_moe.engines.local import LocalEngine
from dist_moe.model.model import adopt
from dist_moe.moe.adapters.adapt import adapt
from dist_moe.moe.discover import find_moe_layers
from dist_moe.parallel.comm import Comm, GroupComm, SoloComm
from dist_moe.parallel.mesh import Mesh
from dist_moe.parallel.placement import Placement
from dist_moe.planning.live import LiveBytes
from dist_moe.planning.memory import Memory, Setup, training_memory
from dist_moe.planning.outline import Outline, known_model
from dist_moe.planning.share import Share, of_masks
from dist_moe.planning.trace import outline_of
from dist_moe.planning.traffic import traffic
from dist_moe.training.engine import Engine
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.promise import Promise
from dist_moe.training.split import Split
from dist_moe.training.step import MaskedStep

LARGER: dict[str, Any] = {"hidden_size": 256, "vocab_size": 512, "max_position_embeddings": 512}


@dataclass(frozen=True)
class Case:
    family: str
    dtype: str = "float32"
    mode: str = "update"
    micro_batch_size: int | None = None
    checkpointing: bool = False
    rows: int = 4
    length: int = 96
    answer: int = 32
    share: float = 0.3
    packed: bool = False
    ragged: bool = False
    """Whether rows, and their answers, are shorter one after the other, down to a quarter."""

    def __str__(self) -> str:
        """What differs from other cases."""
        given = ((each.name, getattr(self, each.name), each.default) for each in fields(self))
        return " ".join(str(value) if value is not True else name for name, value, default in given if value != default)

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """Of each row: its prompt's and its answer's."""
        shares = [1 - 0.75 * i / (self.rows - 1) if self.ragged else 1.0 for i in range(self.rows)]
        answers = [round(share * self.answer) for share in shares]
        return [(round(share * self.length) - num, num) for share, num in zip(shares, answers, strict=True)]

    @property
    def setup(self) -> Setup:
        pass_rows = self.lengths[: self.micro_batch_size]  # the longest come first
        return Setup(
            num_ranks=1, ep_size=1, checkpointing=self.checkpointing, batch_size=self.rows,
            micro_batch_size=self.micro_batch_size, row_tokens=self.length, answer_tokens=self.answer, audits=False,
            masks_rows=self.packed,
            live_tokens=sum(prompt + answer for prompt, answer in pass_rows) if self.ragged else None,
            loss_tokens=sum(answer for _, answer in pass_rows) if self.ragged else None,
        )  # fmt: skip


def config_of(family: str) -> PreTrainedConfig:
    return FAMILY_CONFIGS[family](**LARGER)


@cache
def traced(family: str, dtype: str) -> Outline:
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config_of(family), dtype=getattr(torch, dtype))
    adapt(module)
    return outline_of(module.eval())


def rows_of(case: Case) -> list[Encoded]:
    ids = torch.randint(3, 120, (case.rows, case.length), generator=torch.Generator().manual_seed(1)).tolist()
    return [
        Encoded(tuple(r[:prompt]), tuple(r[prompt : prompt + answer]), unsafe=i % 2 == 1)
        for i, (r, (prompt, answer)) in enumerate(zip(ids, case.lengths, strict=True))
    ]


class Run:
    """A model and its step on one rank."""

    def __init__(self, case: Case, mesh: Mesh, engine: Any = LocalEngine) -> None:
        torch.manual_seed(0)
        module = AutoModelForCausalLM.from_config(config_of(case.family), dtype=getattr(torch, case.dtype))
        module.set_experts_implementation("eager")
        randomize(module, 0)
        adapt(module)
        module.eval()
        layers = find_moe_layers(module)
        num_experts = layers[0].num_experts
        order = torch.rand(len(layers), num_experts, generator=torch.Generator().manual_seed(2)).argsort(1)
        self.mask_LE = order < max(1, round(case.share * num_experts))
        self.placement = Placement.balanced(self.mask_LE.numpy()[None], mesh.ep.size)
        self.model = adopt(module, mesh.ep, self.placement)
        if case.checkpointing:
            self.model.checkpoint_activations()
        self.optimizer = SelectiveAdamW(self.model.layers, self.mask_LE, mesh, lr=1e-3, max_norm=1.0)
        schedule = torch.optim.lr_scheduler.ConstantLR(self.optimizer, factor=1.0)
        self.engine: Engine = engine(self.model.module, self.optimizer, schedule)
        rows = rows_of(case)
        promise = Promise.of(self.mask_LE.numpy(), [row.unsafe for row in rows])
        settings = TrainConfig(mode=case.mode)
        self.step = MaskedStep(self.model, self.optimizer, self.engine, mesh.world, settings, lambda _: promise)
        at_once = self.model.at_once(case.micro_batch_size)
        split = Split.of(case.rows, mesh.world.size, at_once, packed=case.packed)
        self.local = split.local(rows, mesh.world.rank, 0)

    def take(self) -> float:
        return self.step("the batch", self.mask_LE, self.local).loss

    @property
    def shares(self) -> list[Share]:
        mesh = self.optimizer.mesh
        return of_masks(self.mask_LE.numpy()[None], self.placement.owner_LE.numpy(), mesh.world.size, mesh.ep.size)

    def taken(self, peak: int) -> dict[str, int]:
        """Bytes on this rank, if its first step has taken so many at most beside what was there before it."""
        banks = sum(weight.nbytes for layer in self.model.layers for weight in layer.bank.values())
        there = {
            "weights": banks + sum(tensor.nbytes for _, tensor in self.engine.dense()),
            "state": self.optimizer.state_bytes,
        }
        gradients = self.optimizer.gradient_bytes
        total = sum(there.values()) + peak
        return there | {"gradients": gradients, "activations": peak - gradients, "total": total}


def memory_of(case: Case, outline: Outline, comm: Comm, ep_size: int, share: Share) -> Memory:
    return training_memory(outline, replace(case.setup, num_ranks=comm.size, ep_size=ep_size), share)


def on_fake_gpu(case: Case) -> tuple[Memory, dict[str, int]]:
    """What is planned for one rank, and what a step takes there. For a process of its own."""
    from tests.fake_gpu import DEVICE, FakeGpu

    outline = traced(case.family, case.dtype)
    comm = SoloComm(DEVICE)
    with FakeGpu() as counts:
        run = Run(case, Mesh.one_replica(comm))
        counts.reset()
        run.take()
        peak = counts.peak_bytes - counts.base_bytes
    planned = memory_of(case, outline, comm, 1, run.shares[0])
    return planned, run.taken(peak)


def on_cpu(case: Case) -> tuple[Memory, dict[str, int]]:
    """What is planned for one rank, and what tensors a step has alive on a CPU, where attention is one operation."""
    comm = SoloComm(torch.device("cpu"))
    run = Run(case, Mesh.one_replica(comm))
    with LiveBytes() as live:
        run.take()
    return memory_of(case, traced(case.family, case.dtype), comm, 1, run.shares[0]), run.taken(live.peak)


class OneOfMany(SoloComm):
    """One of many ranks that do the same, without the others: what it sends to itself, every other sends it too.

    What comes from others is made up, so that only numbers are right. `calls` counts exchanges.
    """

    def __init__(self, size: int, calls: Counter[str]) -> None:
        super().__init__(torch.device("cpu"))
        self.size, self.calls = size, calls

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        self.calls["sums"] += 1
        return tensor

    def swap_counts(self, counts: torch.Tensor) -> torch.Tensor:
        self.calls["tokens"] += 1
        return counts[:1].expand_as(counts).contiguous()

    def swap_rows(self, rows: torch.Tensor, send: list[int], recv: list[int]) -> torch.Tensor:
        self.calls["tokens"] += 1
        mine = rows[: send[0]]
        return torch.cat([mine[torch.arange(number) % max(1, len(mine))] for number in recv])

    def reduce_rows(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        self.calls["experts"] += 1
        return rows[: counts[0]]

    def gather_rows(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        self.calls["experts"] += 1
        return torch.zeros(sum(counts), *rows.shape[1:], dtype=rows.dtype)

    def gather(self, value: Any) -> list[Any]:
        return [value] * self.size


def exchanges_of_many(num_ranks: int, ep_size: int, **more: Any) -> tuple[Counter[str], int]:
    """How often one of so many ranks exchanges in a step, and how often the plan says for tokens."""
    calls = Counter[str]()
    replicas = OneOfMany(num_ranks // ep_size, calls) if num_ranks > ep_size else SoloComm(torch.device("cpu"))
    mesh = Mesh(OneOfMany(num_ranks, calls), OneOfMany(ep_size, calls), replicas)
    case = Case("qwen3_moe", **{"rows": 2 * num_ranks, "length": 8, "answer": 2, "share": 1.0} | more)
    run = Run(case, mesh)
    run.step.monitor.check = lambda: ""  # type: ignore[method-assign]  # it would see that the others are made up
    run.take()
    outline = replace(known_model("qwen3-30b-a3b").outline, num_layers=len(run.model.layers))
    setup = replace(case.setup, num_ranks=num_ranks, ep_size=ep_size)
    return calls, traffic(outline, setup, run.shares[0]).exchanges


def on_fake_group(name: str, num_ranks: int, ep_size: int) -> tuple[Memory, dict[str, int]]:
    """What is planned for the first of so many ranks, and what there is: the whole model on the meta device, in a
    process group without the others. For a process of its own."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    known = known_model(name)
    meta = torch.device("meta")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=num_ranks)
    mesh = Mesh.of(GroupComm(dist.group.WORLD, meta), ep_size)
    outline = known.outline
    masks_BLE = np.random.default_rng(0).random((2, outline.num_layers, outline.num_experts)) < 0.02
    placement = Placement.balanced(masks_BLE, ep_size)
    values = {key: value for key, value in known.config.items() if key != "model_type"}
    with meta:
        config = CONFIG_MAPPING[known.config["model_type"]](**values)
        module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = adopt(module, mesh.ep, placement)
    optimizer = SelectiveAdamW(model.layers, torch.from_numpy(masks_BLE.any(0)), mesh, lr=1e-3)
    for mask_LE in masks_BLE:
        optimizer.begin(torch.from_numpy(mask_LE))
    banks = sum(weight.nbytes for layer in model.layers for weight in layer.bank.values())
    dense = sum(tensor.nbytes for _, tensor in LocalEngine(module, optimizer, None).dense())  # type: ignore[arg-type]
    setup = Setup(num_ranks=num_ranks, ep_size=ep_size, row_tokens=512, answer_tokens=128)
    share = of_masks(masks_BLE, placement.owner_LE.numpy(), num_ranks, ep_size)[0]
    taken = {"weights": banks + dense, "gradients": optimizer.gradient_bytes, "state": optimizer.state_bytes}
    return training_memory(outline, setup, share), taken
