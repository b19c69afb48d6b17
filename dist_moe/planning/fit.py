"""On which GPUs a run fits, and which settings make it fit where it does not: the fewest and cheapest changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from dist_moe.planning.memory import Setup, counting_memory, training_memory
from dist_moe.planning.outline import Outline
from dist_moe.planning.share import Share, assumed

GPU_SIZES = (24, 40, 48, 80, 96, 141, 192)
"""Memory of usual GPUs as it is written on them, in GB (10^9 bytes)."""
GB = 10**9
FREE = 0.08
"""Share of a GPU's memory that a plan leaves to CUDA, to communication, and to gaps between tensors."""


@dataclass(frozen=True, slots=True)
class Change:
    """One setting that takes memory from a GPU."""

    words: str
    """As on the command line."""
    cost: float
    """What is given for it, as an order: a pass more, computing again, exchanging more."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A GPU size, and a way to train on it."""

    gpu: int
    """GB."""
    needs: int
    """Bytes, after the changes."""
    changes: tuple[Change, ...] = ()
    setup: Setup | None = None
    """None: no change makes it fit."""
    host: int = 0
    """Bytes of the host's memory, of one rank."""

    @property
    def fits(self) -> bool:
        return self.setup is not None


@dataclass(frozen=True, slots=True)
class Counting:
    """A way to count routing on GPUs of a size."""

    words: str
    """Settings, as on the command line; empty: as it is set."""
    host: int
    """Bytes of the host's memory, of one rank, while it loads."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A value of parallel.ep_size that is not for this run."""

    ep_size: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """How many experts are trained: in all, and by one batch at most."""

    in_all: int
    in_batch: int

    def share(self, outline: Outline, setup: Setup) -> Share:
        """That of the rank with most."""
        return assumed(
            outline.num_layers, outline.num_experts, self.in_all, self.in_batch, setup.num_ranks, setup.ep_size
        )


def room(gpu: int) -> int:
    """Bytes of a GPU of so many GB that a plan uses."""
    return usable(gpu * GB)


def usable(size: int) -> int:
    """Of so many bytes of a device, those that a plan uses."""
    return int(size * (1 - FREE))


def smallest_ep_size(outline: Outline, setup: Setup, trained: Trained, size: int) -> tuple[int, dict[int, int]]:
    """The fewest ranks that may share experts, where each has room for `size` bytes, or those that need least.

    Returns:
        `parallel.ep_size`, and for each value that was tried what the rank with most needs.
    """
    needs: dict[int, int] = {}
    for ep_size in (each for each in divisors(setup.num_ranks) if each <= outline.num_experts):
        changed = replace(setup, ep_size=ep_size)
        needs[ep_size] = training_memory(outline, changed, trained.share(outline, changed)).total
        if needs[ep_size] <= size:
            return ep_size, needs
    return min(needs, key=lambda ep_size: needs[ep_size]), needs


def fit(outline: Outline, setup: Setup, trained: Trained, gpu: int) -> Fit:
    """The cheapest way to train on GPUs of this size."""
    least: Fit | None = None
    for changes, changed in sorted(_ways(outline, setup), key=lambda way: sum(change.cost for change in way[0])):
        memory = training_memory(outline, changed, trained.share(outline, changed))
        if memory.total <= room(gpu):
            return Fit(gpu, memory.total, changes, changed, memory.host)
        if least is None or memory.total < least.needs:
            least = Fit(gpu, memory.total, changes)
    assert least is not None
    return least


def rejected(outline: Outline, setup: Setup, trained: Trained, gpu: int) -> Iterator[Rejected]:
    """The sizes of `parallel.ep_size` that this number of ranks could have, and this run not, as it is set."""
    for ep_size in divisors(setup.num_ranks):
        if ep_size > outline.num_experts:
            yield Rejected(ep_size, f"{outline.num_experts} experts of a layer cannot be split over {ep_size} ranks")
            continue
        changed = replace(setup, ep_size=ep_size)
        total = training_memory(outline, changed, trained.share(outline, changed)).total
        if total > room(gpu):
            yield Rejected(
                ep_size, f"needs {total / GB:,.0f} GB on each GPU, of which a plan uses {room(gpu) / GB:,.0f}"
            )


def counting(outline: Outline, setup: Setup, tokens: int, gpu: int) -> Counting | None:
    """How the model can be counted on GPUs of this size: on as few for a copy, and with as many tokens in a pass of the
    `tokens` that are set, as there is room for. None: it does not fit."""
    for fewer in (1, 4, 16):
        for size in divisors(setup.num_ranks):
            needs = counting_memory(outline, size, tokens // fewer, masks_rows=setup.masks_rows)
            if size <= outline.num_experts and needs <= room(gpu):
                host = 2 * GB + outline.num_layers * outline.num_experts * outline.expert_bytes // size
                words = [f"--analysis.ep_size {size}"] if size > 1 else []
                words += [f"--analysis.micro_batch_tokens {tokens // fewer}"] if fewer > 1 else []
                return Counting(" ".join(words), host)
    return None


def divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _ways(outline: Outline, setup: Setup) -> Iterator[tuple[tuple[Change, ...], Setup]]:
    """Every combination of changes, with the setup that it gives."""
    sizes = [size for size in divisors(setup.num_ranks) if setup.ep_size < size <= outline.num_experts]
    could_shard = not setup.shards_dense and setup.num_ranks > 1
    steps: list[list[tuple[Change, dict[str, object]]]] = [
        [(Change(f"--train.micro_batch_size {n}", 1 + 0.1 / n), {"micro_batch_size": n}) for n in _smaller(setup)],
        [(Change("--train.activation_checkpointing", 3), {"checkpointing": True})] if not setup.checkpointing else [],
        [(Change(f"--parallel.ep_size {n}", 5 + 0.001 * n), {"ep_size": n}) for n in sizes],
        [(Change("--engine fsdp", 7), {"shards_dense": True})] if could_shard else [],
        [(Change("--parallel.offload_optimizer cpu", 12), {"offloads": True})] if not setup.offloads else [],
    ]
    for way in product(*([None, *step] for step in steps)):
        chosen = [each for each in way if each is not None]
        values = {name: value for _, each in chosen for name, value in each.items()}
        yield tuple(change for change, _ in chosen), replace(setup, **values)  # type: ignore[arg-type]


def _smaller(setup: Setup) -> list[int]:
    """Fewer rows in a pass: half as many, a quarter, ... 1."""
    sizes, rows = [], setup.at_once // 2
    while rows:
        sizes.append(rows)
        rows //= 2
    return sizes
