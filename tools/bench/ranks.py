"""One training step on several ranks: ours against what one would train experts with there otherwise.

The floor is a copy on each rank that trains on this rank's rows alone and tells nobody: what a step costs without
communication. Before the clock starts, the losses of all first steps must agree.
"""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass, field

from dist_moe.parallel.comm import GroupComm
from tools.bench.processes import on_ranks
from tools.bench.rank_contenders import AUTO, CONTENDERS, FLOOR, NATIVE, OURS, Contender, absent, peaks
from tools.bench.rank_counts import counted_goals
from tools.bench.setup import Mode, Options
from tools.bench.timing import Comparison, Fact, Result, Times, measure
from tools.bench.traffic import Traffic

PEERS: dict[Mode, float] = {"update": 0.68, "route": 0.52}
GOALS: dict[Mode, dict[str, float]] = {
    "update": {FLOOR: 1.10, NATIVE: PEERS["update"], AUTO: PEERS["update"]},
    "route": {FLOOR: 1.15, NATIVE: PEERS["route"], AUTO: PEERS["route"]},
}


@dataclass(frozen=True, slots=True)
class Report:
    """One rank's, by contender."""

    times: dict[str, tuple[Times, Times]] = field(default_factory=dict)
    sent: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Collectives and bytes of one step."""
    held: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Bytes of gradients and of optimizer state."""


def bench_ranks(options: Options, mode: Mode, launch: int) -> list[Result]:
    """Of the slowest rank in each round; from the first launch, bytes and memory of the rank with most, too."""
    row, missing = f"step on {options.ranks} ranks, {mode}", absent()
    names = [name for name in CONTENDERS if name not in missing]
    ranks = on_ranks(options.ranks, options.threads, _compete, names, options, mode, launch)
    results: list[Result] = []
    for name in names[1:]:
        ours, other = (Times.of_ranks(each) for each in zip(*(rank.times[name] for rank in ranks), strict=True))
        results.append(Comparison(row, name, ours, other, GOALS[mode].get(name), is_on_ranks=True))
    if launch > 0:
        return results
    highest = {name: peaks(options.ranks, name, options, mode) for name in names}
    results += [Fact(f"{row}: {name}", _facts(name, ranks, max(highest[name]))) for name in names]
    results += [Fact(f"{row}: {name}", f"not measured: {why}") for name, why in missing.items()]
    num_cores = len(os.sched_getaffinity(0))
    if options.ranks > num_cores:
        results.append(Fact(row, f"{num_cores} cores: the ranks' times say little, what is counted does not change"))
    return [*results, *counted_goals(options.ranks, options, mode, highest[OURS], highest[FLOOR])]


def bench_counted(options: Options, mode: Mode) -> list[Result]:
    """The counted goals alone, on `counted_ranks`."""
    number = options.counted_ranks
    ours, floor = (peaks(number, name, options, mode) for name in (OURS, FLOOR))
    return [*counted_goals(number, options, mode, ours, floor)]


def _facts(name: str, ranks: list[Report], peak: int) -> str:
    collectives, sent = max(rank.sent[name] for rank in ranks)
    gradients, state = (max(rank.held[name][i] for rank in ranks) for i in (0, 1))
    mib = {"sent": sent, "gradients": gradients, "state": state, "peak": peak}
    return f"{collectives} collectives, MiB " + ", ".join(f"{key} {value / 2**20:.1f}" for key, value in mib.items())


def _compete(comm: GroupComm, names: list[str], options: Options, mode: Mode, launch: int) -> Report:
    """Ours is kept; of the others there is one at a time, as all together need much memory."""
    ours, report = Contender(OURS, options, mode, comm), Report()
    expected = _first_steps(OURS, ours, comm, report)
    for name in names[1:]:
        other = Contender(name, options, mode, comm)
        ours.setup.check(_first_steps(name, other, comm, report), expected)
        pair = {name: other.step}
        report.times.update(measure(ours.step, pair, options.rounds(launch), comm.device, ready=comm.barrier))
        report.held[name] = other.step.num_bytes()
        del other
        gc.collect()
    report.held[OURS] = ours.step.num_bytes()
    return report


def _first_steps(name: str, contender: Contender, comm: GroupComm, report: Report) -> float:
    """The first loss, of all ranks; what the second step sends is counted."""
    loss = sum(comm.gather(contender.share(0)))
    with Traffic(comm.rank, comm.size) as traffic:
        contender.step(1)
    report.sent[name] = traffic.num_collectives, traffic.num_bytes
    return loss
