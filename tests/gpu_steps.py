"""Training steps on the fake GPU: what they compute, and what a GPU would have felt. For a process of its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file

from dist_moe.config.schema import TrainConfig
from dist_moe.conformance.sizes import build
from dist_moe.data.tokens import Encoded, TokenBatch, collate
from dist_moe.engines.local import LocalEngine
from dist_moe.model.model import adopt
from dist_moe.parallel.comm import Comm, SoloComm
from dist_moe.parallel.mesh import Mesh
from dist_moe.training.checkpoint import UnfinishedCheckpoint
from dist_moe.training.checkpoint_index import Layout
from dist_moe.training.feed import BatchFeed
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.promise import Promise
from dist_moe.training.save import save_experts
from dist_moe.training.split import Rows, Split
from dist_moe.training.state import Position, RevisionInForce, TrainState
from dist_moe.training.step import MaskedStep
from tests.fake_gpu import DEVICE, Counts, FakeGpu

CPU = torch.device("cpu")
Result = dict[str, Any]


class Twin(SoloComm):
    """One of two ranks that do the same, without the other: what it sends to itself, the other sends it too.

    What comes back from the other is made up, so only shapes, places and counts are right. `exchanges` counts.
    """

    size = 2

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.exchanges = 0

    def swap_counts(self, counts: torch.Tensor) -> torch.Tensor:
        self.exchanges += 1
        return counts[:1].expand_as(counts).contiguous()

    def swap_rows(self, rows: torch.Tensor, send: list[int], recv: list[int]) -> torch.Tensor:
        self.exchanges += 1
        mine = rows.split(send)[0]
        return torch.cat([mine, mine if len(mine) == recv[1] else rows.new_zeros(recv[1], *rows.shape[1:])])


def batch(rows: int, seed: int) -> TokenBatch:
    """Rows of different lengths, every other one unsafe."""
    ids = torch.randint(3, 120, (rows, 14), generator=torch.Generator().manual_seed(seed)).tolist()
    return collate([Encoded(tuple(r[:5]), tuple(r[5 : 14 - i % 3]), unsafe=i % 2 == 1) for i, r in enumerate(ids)], 0)


class Stepped:
    """A tiny model of a family and its step on a device."""

    def __init__(
        self,
        family: str,
        comm: Comm,
        settings: TrainConfig,
        mask_LE: torch.Tensor,
        dtype: torch.dtype,
        **changes: Any,
    ) -> None:
        """`changes` are of the model's configuration."""
        self.model = adopt(build(family, **changes).to(dtype), comm)
        self.mask_LE = mask_LE[: self.model.shape.num_layers, : self.model.shape.num_experts].clone()
        optimizer = SelectiveAdamW(self.model.layers, self.mask_LE, Mesh.one_replica(comm), lr=1e-3, max_norm=1.0)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        engine = LocalEngine(self.model.module, optimizer, schedule)
        self.step = MaskedStep(self.model, optimizer, engine, comm, settings, lambda _: self.promise)

    def banks(self) -> list[torch.Tensor]:
        """All experts' weights."""
        return [bank for layer in self.model.layers for bank in layer.bank.values()]

    def run(self, batches: list[TokenBatch]) -> float:
        unsafe = [bool(x) for b in batches for x in b.is_unsafe[:, 0]]
        self.promise = Promise.of(self.mask_LE.numpy(), unsafe)
        return self.step("the batch", self.mask_LE, batches).loss


def random_mask(share: float, seed: int = 3) -> torch.Tensor:
    """bool [8, 64], to be cut to a model's shape."""
    return torch.rand(8, 64, generator=torch.Generator().manual_seed(seed)) < share


def step(
    family: str,
    settings: dict[str, Any],
    *,
    dtype: str = "bfloat16",
    num_micro: int = 1,
    share: float = 0.35,
    compare: bool = False,
    **changes: Any,
) -> Result:
    """What a step costs on the fake GPU, of a model with changes of its configuration. To compare: its loss there and
    on the CPU, how far the weights have moved, and how far apart they are afterwards."""
    config, kind = TrainConfig(**settings), getattr(torch, dtype)
    batches = [batch(4, seed) for seed in range(num_micro)]
    mask_LE = random_mask(share)
    with FakeGpu() as counts:
        found = Stepped(family, SoloComm(DEVICE), config, mask_LE, kind, **changes)
        counts.reset()
        loss = found.run(batches)
        result = _result(counts) | {"active": int(found.mask_LE.sum())}
    if compare:
        right = Stepped(family, SoloComm(CPU), config, mask_LE, kind)
        before, on_cpu = [bank.clone() for bank in right.banks()], right.run(batches)
        mine = [bank.inner for bank in found.banks()]  # type: ignore[attr-defined]
        result |= {"loss": loss, "on_cpu": on_cpu, "moved": _apart(right.banks(), before)}
        result["apart"] = _apart(right.banks(), mine)
    return result


def _apart(ones: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(ones, others, strict=True))


def fed(*, ahead: bool) -> Result:
    """What a step of many rows waits for, whose batch was made ready ahead or not."""
    ids = torch.randint(3, 120, (300, 30), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [Encoded(tuple(r[:20]), tuple(r[20:]), unsafe=i % 2 == 1) for i, r in enumerate(ids)]
    of_batches = Rows(lambda _: rows, Split.of(300, 1, None), 0, 0)
    with FakeGpu() as counts:
        settings = TrainConfig(mode="update")
        found = Stepped("qwen3_moe", SoloComm(DEVICE), settings, random_mask(0.35), torch.bfloat16)
        masks: Any = SimpleNamespace(digest="m", masks=[found.mask_LE.numpy()])
        feed = BatchFeed(of_batches, DEVICE if ahead else CPU)
        feed.begin(masks, 0)
        ready = feed.take(masks, 0)
        counts.reset()
        found.run(ready.micro_batches)
    return _result(counts) | {"bytes": ready.micro_batches[0].input_ids.nbytes}


def saved(share: float, root: str) -> Result:
    """What a checkpoint and the trained experts cost, after a step of a mask of this share of all experts; and whether
    both are on the disk as they are on the device."""
    with FakeGpu() as counts:
        comm = SoloComm(DEVICE)
        found = Stepped("qwen3_moe", comm, TrainConfig(mode="update"), random_mask(share), torch.bfloat16)
        found.run([batch(4, 0)])
        optimizer, layers = found.step.optimizer, found.model.layers
        counts.reset()
        state = TrainState.first(Position(0, 0, (0,)), 1, RevisionInForce(0, "d"), seed=0)
        schedule = found.step.engine.schedule  # type: ignore[attr-defined]
        layout = Layout("local", 1, 1, "p")
        begun = UnfinishedCheckpoint(Path(root), state, optimizer, schedule, comm, {}, layout, None, copy=True)
        done = begun.write()
        path = begun.publish(lambda: done, keep=1)
        save_experts(Path(root) / "experts", layers, optimizer, comm, {})
        result = _result(counts) | {"experts": len(optimizer.changed)}
        state_of = load_file(path / "experts-00000.safetensors")
        weights = load_file(Path(root) / "experts" / "experts-00000.safetensors")
        result["equal"] = all(
            torch.equal(of_device.inner, of_disk)  # type: ignore[attr-defined]
            for (layer, expert), one in optimizer.expert_state.items()
            for of_device, of_disk in [
                *((tensor, state_of[f"{layer}.{expert}.{name}"]) for name, tensor in one.tensors().items()),
                *((row, weights[f"{layer}.{expert}.{name}"]) for name, row in layers[layer].row(expert).items()),
            ]
            if (layer, expert) in optimizer.changed
        )
    return result


def gradients_grow() -> Result:
    """Bytes of the gradients of a few experts, of more of them after that, and of the most that there was meanwhile."""
    with FakeGpu() as counts:
        found = Stepped("qwen3_moe", SoloComm(DEVICE), TrainConfig(mode="update"), random_mask(1.0), torch.bfloat16)
        optimizer, few_LE = found.step.optimizer, found.mask_LE.clone()
        few_LE[1:] = False
        optimizer.begin(few_LE)
        few = optimizer.gradient_bytes
        counts.reset()
        optimizer.begin(found.mask_LE)
        return {"few": few, "many": optimizer.gradient_bytes, "peak": few + counts.peak_bytes - counts.base_bytes}


def pass_without_tokens(family: str) -> Result:
    """Forward and backward of rows that are all padding, which the host does not know."""
    with FakeGpu():
        model = adopt(build(family).to(torch.bfloat16), SoloComm(DEVICE))
        tokens = batch(4, 0).to(DEVICE)
        with model.batch(torch.zeros_like(tokens.live), first_layer=0):
            layer = model.layers[-1]
            flat = torch.zeros(len(layer.local), layer.layout.size, device=DEVICE)
            layer.grads = {slot: layer.layout.views(flat[slot]) for slot in range(len(layer.local))}
            logits = model.module(input_ids=tokens.input_ids, use_cache=False).logits
            logits.float().square().mean().backward()
        return {"finite": bool(logits.isfinite().all()), "gradients": int(flat.count_nonzero())}


def passes_of_twins(family: str) -> Result:
    """Forward and backward of a rank that shares experts with another, every expert trained."""
    with FakeGpu() as counts:
        comm = Twin(DEVICE)
        model = adopt(build(family).to(torch.bfloat16), comm)
        rows = batch(4, 0)
        tokens = rows.to(DEVICE)
        with model.batch(first_layer=0):
            model.next_pass(tokens.live, num_live=rows.num_live)
            for layer in model.layers:
                flat = torch.zeros(len(layer.local), layer.layout.size, device=DEVICE)
                layer.grads = {slot: layer.layout.views(flat[slot]) for slot in range(len(layer.local))}
            counts.reset()
            inputs = {"input_ids": tokens.input_ids, "attention_mask": tokens.live.long(), "use_cache": False}
            model.module(**inputs).logits.float().square().mean().backward()
    return _result(counts) | {"layers": len(model.layers), "exchanges": comm.exchanges}


def _result(counts: Counts) -> Result:
    return {
        "waits": dict(counts.waits),
        "uploads": dict(counts.uploads),
        "launches": dict(counts.launches),
        "places": dict(counts.places),
        "peak_bytes": counts.peak_bytes - counts.base_bytes,
    }
