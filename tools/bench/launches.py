"""All rows of a run, measured in several launches: fresh processes, one after another.

Each launch times every row with a few rounds, so a row's rounds are spread over the run's minutes and over processes
with memory laid out anew. What is counted, and what does not vary with a launch, is measured in the first one.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import get_args

import torch

from tools.bench.experts import bench_experts
from tools.bench.permutation import bench_permutation
from tools.bench.ranks import bench_counted, bench_ranks
from tools.bench.setup import Mode, Options, Setup
from tools.bench.step import bench_larger, bench_step
from tools.bench.store import bench_store
from tools.bench.tap import bench_tap
from tools.bench.timing import Comparison, Result

ONCE = ("counted", "store")
"""Rows without ratios."""


def measure_all(options: Options) -> list[Result]:
    """All rows that were asked for."""
    timed = any(row not in ONCE for row in options.rows)
    launches = []
    for launch in range(options.launches if timed else 1):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            launches.append(pool.submit(measure_launch, options, launch).result())
    return together(launches)


def together(launches: Sequence[Sequence[Result]]) -> list[Result]:
    """The first launch's results, each comparison with the rounds of all launches."""
    comparisons = [{r.name: r for r in results if isinstance(r, Comparison)} for results in launches]
    return [
        Comparison.of_launches([each[r.name] for each in comparisons]) if isinstance(r, Comparison) else r
        for r in launches[0]
    ]


def measure_launch(options: Options, launch: int) -> list[Result]:
    """In this process."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    setup = Setup(options, launch=launch)
    results: list[Result] = []
    for mode in get_args(Mode) if "experts" in options.rows else ():
        results += bench_experts(setup, mode)
    for mode in get_args(Mode) if "step" in options.rows else ():
        results += bench_step(setup, mode)
    for mode in get_args(Mode) if "larger" in options.rows else ():
        results += bench_larger(options, mode, launch)
    for mode in get_args(Mode) if "ranks" in options.rows else ():
        results += bench_ranks(options, mode, launch)
    if "tap" in options.rows:
        results += bench_tap(setup)
    if "permutation" in options.rows:
        results += bench_permutation(options, launch)
    return results if launch > 0 else [*results, *_once(options)]


def _once(options: Options) -> list[Result]:
    results: list[Result] = []
    for mode in get_args(Mode) if "counted" in options.rows else ():
        results += bench_counted(options, mode)
    return [*results, *bench_store(options)] if "store" in options.rows else results
