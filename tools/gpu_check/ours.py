"""Our training step on a large model: time, memory, waits and kernels."""

from __future__ import annotations

import gc
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch.optim.lr_scheduler import LambdaLR
from torch.profiler import ProfilerActivity, profile

from dist_moe.config.schema import TrainConfig
from dist_moe.engines.local import LocalEngine
from dist_moe.model.model import adopt
from dist_moe.moe.liger import use_liger
from dist_moe.parallel.comm import SoloComm
from dist_moe.parallel.mesh import Mesh
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.promise import Promise
from dist_moe.training.step import MaskedStep, StepResult
from tools.gpu_check import large
from tools.gpu_check.here import Here, guarded, report

MODES = ("update", "route")


def run_largest(
    here: Here,
    section: str,
    shape: str,
    sizes: list[tuple[int | None, int]],
    kernels: Sequence[str] = ("torch",),
    modes: Sequence[str] = MODES,
) -> None:
    """The first of these sizes (layers, rows at once) that fits into memory, with each of `kernels` in each mode."""
    for layers, rows in sizes:
        with guarded(section, f"{layers or 'all'} layers, {rows} rows at once") as attempt:
            ours = Ours(here, section, shape, layers, rows)
            for each in kernels:
                if each == "liger":
                    use_liger(ours.model.module, here.device)
                for mode in modes:
                    ours.run(mode, each)
        if not attempt.failed:
            return
        ours = None
        gc.collect()
        torch.cuda.empty_cache()


class Ours:
    """A model with its optimizer, batches and masks."""

    def __init__(
        self,
        here: Here,
        section: str,
        name: str,
        layers: int | None,
        rows: int,
        state_device: torch.device | None = None,
    ) -> None:
        self.here, self.section, self.config = here, section, large.config_of(name, here, layers)
        self.rate, self.comm = here.matmul_rate(), SoloComm(here.device)
        self.model = adopt(large.build(self.config, here), self.comm)
        self.masks_BLE = large.masks(self.config)
        mesh = Mesh.one_replica(self.comm)
        self.optimizer = SelectiveAdamW(
            self.model.layers, self.masks_BLE.any(0), mesh, lr=1e-6, max_norm=1.0, state_device=state_device
        )
        self.engine = LocalEngine(self.model.module, self.optimizer, LambdaLR(self.optimizer, lambda _: 1.0))
        self.batches = large.batches(name, self.config, here, rows)
        self.unsafe = [bool(row) for batch in self.batches for row in batch.is_unsafe[:, 0]]
        experts = sum(bank.nbytes for layer in self.model.layers for bank in layer.bank.values())
        dense = sum(p.nbytes for p in self.model.module.parameters())
        report(
            section,
            "model",
            shape=name,
            layers=self.config.num_hidden_layers,
            rows_at_once=rows,
            experts_gib=experts / 2**30,
            dense_gib=dense / 2**30,
            state_gib=self.optimizer.state_bytes / 2**30,
        )

    def run(self, mode: Any, kernels: str = "torch") -> None:
        """One mode; `kernels` says what computes norms: torch, liger, or compiled (`train.compile`)."""
        if self.here.left < 12 and not self.here.dry:
            report(self.section, f"step {mode}", skipped="no time left")
            return
        settings = TrainConfig(mode=mode, compile=kernels == "compiled")
        warm = len(self.masks_BLE) if settings.compile else 1  # layers below the lowest expert have graphs of their own
        step = MaskedStep(self.model, self.optimizer, self.engine, self.comm, settings, self._promise)

        def one(i: int) -> StepResult:
            return step(str(i), self._mask(i), self.batches)

        before, begun = _graphs(), time.perf_counter()
        for i in range(warm):
            one(i)
        self.here.sync()
        first = {"first_s": time.perf_counter() - begun, "graphs": _graphs() - before}
        if self.here.cuda:
            torch.cuda.reset_peak_memory_stats()
        times: list[float] = []
        stop = time.monotonic() + (0 if self.here.dry else min(4, self.here.left / 6))
        while len(times) < 3 or (time.monotonic() < stop and len(times) < 12):
            started = time.perf_counter()
            result = one(len(times))
            self.here.sync()
            times.append(time.perf_counter() - started)
        self._report(mode, kernels, times, result, **first, graphs_later=_graphs() - before - first["graphs"])
        if kernels != "liger":
            num_layers = self.config.num_hidden_layers * len(self.batches)
            waits(self.here, self.section, mode, kernels, lambda: one(0), num_layers)
        if mode == "update":
            launches(self.here, self.section, kernels, lambda: one(1))

    def _mask(self, i: int) -> torch.Tensor:
        mask_LE: torch.Tensor = self.masks_BLE[i % len(self.masks_BLE)]
        return mask_LE

    def _promise(self, batch_id: str) -> Promise:
        return Promise.of(self._mask(int(batch_id)).numpy(), self.unsafe)

    def _report(self, mode: str, kernels: str, times: list[float], result: StepResult, **more: float) -> None:
        seconds, mask_LE = sorted(times)[len(times) // 2], self._mask(len(times) - 1)
        received = torch.stack([layer.received_S for layer in self.model.layers]).cpu()
        first = int(torch.nonzero(mask_LE.any(1))[0])
        pairs, active = float(received.sum()), float(received[mask_LE].sum())
        needed = large.flops(self.config, self.batches, result.num_loss_tokens, pairs, active, first)
        report(
            self.section,
            "step",
            more["graphs"] > 0 and more["graphs_later"] == 0 if kernels == "compiled" else None,
            mode=mode,
            kernels=kernels,
            seconds=seconds,
            fastest=min(times),
            slowest=max(times),
            **more,
            steps_per_s=1 / seconds,
            tokens_per_s=result.num_tokens / seconds,
            teraflop=needed / 1e12,
            of_matmul_rate=needed / seconds / self.rate,
            loss=result.loss,
            stepped=result.num_stepped,
            peak_gib=torch.cuda.max_memory_allocated() / 2**30 if self.here.cuda else None,
        )


def _graphs() -> int:
    """How many torch's compiler has made in this process."""
    return int(counters["stats"]["unique_graphs"])


def waits(here: Here, section: str, mode: str, kernels: str, call: Callable[[], object], num_layers: int) -> None:
    """Where the host waits for the device in a step, as torch says it."""
    how = {"mode": mode, "kernels": kernels}
    if not here.cuda:
        call()
        report(section, "waits", **how, skipped="no GPU")
        return
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in seen if "synchronizing" in str(warning.message)]
    places = Counter(f"{Path(warning.filename).name}:{warning.lineno}" for warning in found)
    in_layers = sum(number for place, number in places.items() if place.startswith(("experts.py", "grouped.py")))
    number = sum(places.values())
    report(section, "waits", in_layers == 0, **how, number=number, a_layer=number / num_layers, places=dict(places))


def launches(here: Here, section: str, kernels: str, call: Callable[[], object]) -> None:
    """What a step's time goes to on the device."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if here.cuda else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        call()
        here.sync()
    events = profiler.key_averages()
    found = [event for event in events if str(event.device_type).endswith("CUDA" if here.cuda else "CPU")]
    cost = "self_device_time_total" if here.cuda else "self_cpu_time_total"
    found.sort(key=lambda event: -getattr(event, cost))
    report(
        section,
        "launches",
        kernels=kernels,
        busy_s=sum(getattr(event, cost) for event in found) / 1e6,
        launches=sum(event.count for event in found),
        top=[{"name": e.key[:110], "ms": getattr(e, cost) / 1e3, "n": e.count} for e in found[:24]],
    )
