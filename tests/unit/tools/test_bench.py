"""The benchmark pairs what it compares, refuses contenders that do not compute the same, and prints every row."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import count

import pytest
import torch

from tools import bench
from tools.bench import SMALL, Comparison, Fact, Options, Setup, measure, parse, table

CPU = torch.device("cpu")


def test_every_contender_runs_once_a_round_and_each_starts_one() -> None:
    calls: list[tuple[int, str]] = []
    contenders = {name: lambda i, name=name: calls.append((i, name)) for name in "abc"}
    seconds = measure(contenders, 3, CPU)
    assert calls == [(i, name) for i, names in enumerate(("abc", "bca", "cab")) for name in names]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_seconds_are_those_of_the_contender(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that ticks once a look: each contender takes one tick, and `slow` looks five times itself."""
    ticks = count()
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(ticks))
    contenders = {"slow": lambda i: [next(ticks) for _ in range(5)], "quick": lambda i: None}
    assert measure(contenders, 2, CPU) == {"slow": [6, 6], "quick": [1, 1]}


def test_ratios_are_taken_in_each_round() -> None:
    """Medians of 2 and 2 s, but a median ratio of 0.5: rounds are compared, not medians."""
    row = Comparison("row", ours=[1.0, 2.0, 3.0], other=[2.0, 8.0, 2.0])
    assert row.ratios == [0.5, 0.25, 1.5]
    text = table([row], [Fact("size", "7 MiB")]).splitlines()
    assert text[1].split() == ["row", "2000.0", "2000.0", "0.250", "0.500", "1.500"]
    assert text[-1].split() == ["size", "7", "MiB"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Options()),
        (["--hidden", "2048", "--rows", "tap"], Options(hidden=2048, rows=("tap",))),
        (["--small"], replace(SMALL, small=True)),
        (["--experts", "8", "--small"], replace(SMALL, small=True, experts=8)),
    ],
)
def test_small_replaces_what_is_not_given(arguments: list[str], expected: Options) -> None:
    assert parse(arguments) == expected


@pytest.mark.parametrize("contest", [bench.bench_experts, bench.bench_step])
def test_contenders_that_compute_something_else_are_refused(contest, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(SMALL)
    plain_model = setup.plain_model
    seeds = count()

    def another_model() -> torch.nn.Module:
        model = plain_model()
        with torch.no_grad():
            model.model.layers[1].mlp.experts.down_proj[:, 0] += next(seeds)
        return model

    monkeypatch.setattr(setup, "plain_model", another_model)
    with pytest.raises(AssertionError, match="contenders differ"):
        contest(setup, "update")


def test_usual_step_applies_the_routing_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole step in mode route agrees with masked routing by definition, and with nothing else."""
    monkeypatch.setattr(bench.PlainRouteMask, "_route", lambda self, index, router, args, output: output)
    with pytest.raises(AssertionError, match="contenders differ"):
        bench.bench_step(Setup(SMALL), "route")


@pytest.mark.timeout(120)
def test_small_run_prints_every_row() -> None:
    """Sizes are known: gradients of 3 of 16 experts; 12 bytes of state in place of 8, for the union only."""
    arguments = [sys.executable, bench.__file__, "--small", "--threads", "1", "--repetitions", "2"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for mode in ("update", "route"):
        assert f"experts forward + backward, {mode} / grouped_mm, whole tensors" in done.stdout
        assert f"experts forward + backward, {mode} / grouped_mm, frozen" in done.stdout
        assert f"training step, {mode} / whole tensors, gradients x mask" in done.stdout
    assert "forward, counting / not counting" in done.stdout
    facts = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    union = int(Setup(SMALL).masks_BLE.any(0).sum())
    for mode in ("update", "route"):
        assert facts[f"gradients, {mode}: ours / usual"].endswith(f" = {3 / 16:.3f}")
        state = facts[f"optimizer state, {mode}: ours / usual"]
        assert float(state.split("= ")[1]) == pytest.approx(union * 12 / (SMALL.layers * SMALL.experts * 8), abs=2e-3)
    assert 0 < float(facts["store: bytes a mask cell"].split()[-1]) < 2
    assert " ms (" in facts["store: one mask row, cold"]
