"""The benchmark pairs what it compares, refuses contenders that do not compute the same, and prints every row."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from itertools import count
from typing import NamedTuple, get_args

import pytest
import torch

from tools.bench import floor, launches, setup, timing
from tools.bench.__main__ import parse
from tools.bench.experts import bench_experts
from tools.bench.launches import together
from tools.bench.setup import SMALL, Options, Row, Setup
from tools.bench.step import CONTENDERS, bench_step, peak_memory
from tools.bench.table import table
from tools.bench.timing import Comparison, Fact, Times, measure

CPU = torch.device("cpu")


class Told(NamedTuple):
    pid: int
    launch: int


def times(*wall: float, cpu: tuple[float, ...] = ()) -> Times:
    return Times([*wall], [*(cpu or wall)])


def test_each_other_contender_has_ours_at_its_side_and_order_changes() -> None:
    calls: list[tuple[int, str]] = []
    ours, *others = (lambda i, name=name: calls.append((i, name)) for name in "oab")
    found = measure(ours, dict(zip("ab", others, strict=True)), range(3), CPU)
    assert calls == [(i, name) for i, names in enumerate(("oaob", "boao", "oaob")) for name in names]
    assert {name: [len(each.wall) for each in pair] for name, pair in found.items()} == {"a": [3, 3], "b": [3, 3]}


def test_seconds_are_those_of_the_contender(monkeypatch: pytest.MonkeyPatch) -> None:
    """On clocks that tick once a look: `slow` looks five times at the clock and twice at CPU time itself."""
    wall, cpu = count(), count()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(timing.time, "process_time", lambda: next(cpu))
    slow = lambda i: [next(clock) for clock in (wall, wall, wall, wall, wall, cpu, cpu)]  # noqa: E731
    assert measure(slow, {"quick": lambda i: None}, range(2), CPU) == {
        "quick": (Times([6, 6], [3, 3]), Times([1, 1], [1, 1])),
    }


def test_ratios_are_taken_in_each_round() -> None:
    """Medians of 2 and 2 s, but a median ratio of 0.5: rounds are compared, not medians."""
    launch = Comparison("row", "other", times(1, 2, 3, cpu=(3, 3, 3)), times(2, 8, 2, cpu=(1, 2, 3)))
    assert launch.ratios == [0.5, 0.25, 1.5]
    row = Comparison.of_launches([launch, launch])
    text = table([row, Fact("size", "7 MiB")]).splitlines()
    values = ["row", "/", "other", "2000.0", "2000.0", "0.250", "0.500", "(0.500", "to", "0.500)", "1.500", "1.500"]
    assert text[1].split() == values
    assert text[-1].split() == ["size", "7", "MiB"]


def test_rounds_of_launches_stand_one_after_the_other_and_their_medians_count() -> None:
    """Two quick launches with one slow round and a slow launch: 0.5, 0.5 and 2, where all rounds' median is 1."""
    seconds = [(0.5, 0.5, 3.0, 1.0), (0.5, 0.5, 3.0, 1.0), (2.0, 2.0, 2.0, 1.0)]
    launches = [Comparison("row", "o", times(*wall[:3], cpu=wall[1:]), times(1, 1, 1), 0.6) for wall in seconds]
    row = Comparison.of_launches(launches)
    assert row.num_launches == 3
    assert row.ratios == [second for wall in seconds for second in wall[:3]]
    assert row.cpu_ratios == [second for wall in seconds for second in wall[1:]]
    assert (row.spread.median, row.cpu_spread.median, row.verdict) == (0.5, 1.0, "PASS (goal 0.60)")
    assert (row.spread.smallest, row.spread.largest) == (0.5, 3.0)


def test_a_run_has_the_first_launchs_counts_and_all_launches_rounds() -> None:
    """Also where a launch has its rows in another order."""
    one, two = (Comparison("row", name, times(1), times(2)) for name in "ab")
    found = together([[one, two, Fact("size", "1")], [two, one]])
    assert found == [Comparison.of_launches([one] * 2), Comparison.of_launches([two] * 2), Fact("size", "1")]


def test_launches_are_fresh_processes_and_go_on_with_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process tells its number and the rounds it would measure."""
    assert [list(replace(SMALL, repetitions=3).rounds(launch)) for launch in range(2)] == [[0, 1, 2], [3, 4, 5]]
    monkeypatch.setattr(launches, "measure_launch", told)
    monkeypatch.setattr(launches, "together", lambda results: results)
    (first, *_), (second, *_) = launches.measure_all(replace(SMALL, rows=("tap",)))
    assert len({os.getpid(), first.pid, second.pid}) == 3
    assert [first.launch, second.launch] == [0, 1]


def test_the_slowest_rank_counts_and_the_work_of_all() -> None:
    assert Times.of_ranks([times(1, 5, cpu=(1, 2)), times(3, 4, cpu=(2, 2))]) == Times([3, 5], [3, 4])


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


def test_rows_are_padded_and_masks_differ_from_layer_to_layer() -> None:
    small = Setup(SMALL)
    live = torch.stack([batch.live for batch in small.batches])
    assert live.float().mean() == pytest.approx(1 - SMALL.padding, abs=0.05)
    assert (live[:, :, 1:] <= live[:, :, :-1]).all()
    assert all((batch.labels != -100).any(1).all() for batch in small.batches)
    assert (small.masks_BLE.sum((1, 2)) == SMALL.num_trained).all()
    assert len(set(small.masks_BLE.sum(2).flatten().tolist())) > 1


@pytest.mark.parametrize(("goal", "verdict"), [(0.5, "PASS (goal 0.50)"), (0.49, "SHORT (goal 0.49)"), (None, "")])
def test_the_median_is_judged(goal: float | None, verdict: str) -> None:
    row = Comparison.of_launches([Comparison("row", "other", times(1, 2, 3), times(2, 8, 2), goal)] * 2)
    assert row.verdict == verdict
    assert table([row]).splitlines()[1].endswith(verdict or "0.500")


def told(options: Options, launch: int) -> list[Told]:
    return [Told(os.getpid(), launch)]


@pytest.mark.parametrize("contest", [bench_experts, bench_step])
def test_contenders_that_compute_something_else_are_refused(contest, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Setup(SMALL)
    plain_model = small.plain_model
    seeds = count()

    def another_model() -> torch.nn.Module:
        model = plain_model()
        with torch.no_grad():
            model.model.layers[1].mlp.experts.down_proj[:, 0] += next(seeds)
        return model

    monkeypatch.setattr(small, "plain_model", another_model)
    with pytest.raises(AssertionError, match="contenders differ"):
        contest(small, "update")


def test_usual_step_applies_the_routing_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole step in mode route agrees with masked routing by definition, and with nothing else."""
    monkeypatch.setattr(setup.PlainRouteMask, "_route", lambda self, index, router, args, output: output)
    with pytest.raises(AssertionError, match="contenders differ"):
        bench_step(Setup(SMALL), "route")


@pytest.mark.parametrize("change", ["eps", "step", "route"])
def test_a_floor_that_steps_otherwise_is_refused(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Setup(replace(SMALL, repetitions=1))
    if change == "eps":
        monkeypatch.setattr(floor, "EPS", 1e-3)
    if change == "step":
        monkeypatch.setattr(floor.FloorStep, "_adamw", lambda self, active, scale: None)
    if change == "route":
        monkeypatch.setattr(floor.FloorStep, "_route", _unmasked)
    with pytest.raises(AssertionError, match="contenders differ"):
        bench_step(small, "route")


def _unmasked(self: floor.FloorStep, logits_TE: torch.Tensor, mask_E: torch.Tensor) -> tuple[torch.Tensor, ...]:
    weights_Tk, index_Tk = logits_TE.softmax(-1).topk(SMALL.top_k)
    return weights_Tk / weights_Tk.sum(-1, keepdim=True), index_Tk


@pytest.mark.long
def test_peak_memory_is_that_of_the_contender_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole-tensor state of a wide model weighs 100 MiB and more; this process's own memory weighs nothing."""
    wide = replace(SMALL, hidden=512, intermediate=256, tokens=32, threads=1)
    ballast = torch.ones(300 * 2**20 // 4)
    ours, usual = (peak_memory(name, "update", wide) for name in (next(iter(CONTENDERS)), list(CONTENDERS)[-1]))
    weights = wide.layers * wide.experts * 3 * wide.hidden * wide.intermediate * 4
    assert 4 * weights < usual < 4 * weights + ballast.nbytes
    assert ours < usual


@pytest.mark.timeout(600)
@pytest.mark.long
def test_small_run_prints_every_row_of_one_process() -> None:
    """Sizes are known: gradients of 6 of 32 experts; 8 bytes of state, of ours for the union only."""
    arguments = [sys.executable, "-m", "tools.bench", "--small", "--threads", "1", "--repetitions", "2"]
    rows = [row for row in get_args(Row) if row not in ("ranks", "counted")]
    done = subprocess.run([*arguments, "--rows", *rows], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    mebibyte = 2**20
    weights = SMALL.layers * SMALL.experts * 3 * SMALL.hidden * SMALL.intermediate
    union = int(Setup(SMALL).masks_BLE.any(0).sum()) / (SMALL.layers * SMALL.experts)
    for mode in ("update", "route"):
        assert f"experts forward + backward, {mode} / grouped_mm, whole tensors" in done.stdout
        assert f"experts forward + backward, {mode} / grouped_mm, frozen" in done.stdout
        assert lines[f"step, {mode} / floor"].endswith("(goal 1.00)")
        assert lines[f"step, {mode} / peer, compact union"].endswith(f"(goal {'0.92' if mode == 'update' else '0.62'})")
        assert f"step, {mode} / whole tensors, gradients x mask" in done.stdout
        larger = f"step of larger experts, {mode}"
        assert lines[f"{larger} / floor"].endswith("(goal 1.00)")
        assert lines[f"{larger} / peer, compact union"].endswith(f"(goal {'0.92' if mode == 'update' else '0.62'})")
        state = {name: float(lines[f"MiB, {mode}: {name}"].split()[-1]) for name in CONTENDERS}
        expected = [8 * union, 8 * union, 8 * union, 8]
        for found, share in zip(state.values(), expected, strict=True):
            assert found == pytest.approx(share * weights / mebibyte, abs=0.06)
        assert f"gradients {4 * weights * 6 / 32 / mebibyte:.1f}," in lines[f"MiB, {mode}: ours"]
        bytes_a_parameter = lines[f"step, {mode}: bytes of optimizer state a parameter of the union"]
        assert bytes_a_parameter.split()[-4:] == ["8.000", "PASS", "(goal", "8)"]
        assert any(line.startswith(f"step, {mode}: peak memory / ") for line in lines)
    assert lines["4 forward passes, counting / not counting"].endswith("(goal 1.02)")
    assert "200 permutations of 16 x 6,144 / a loop over them" in lines
    assert 0 < float(lines["masks: bits a mask cell"].removeprefix("masks: bits a mask cell").split()[0]) < 20
    for name, goal_ms in (("counts", 15), ("masks", 5)):
        assert lines[f"{name}: files"].endswith("PASS (goal 999)")
        assert lines[f"{name}: open, cold"].endswith("(goal 5)")
        assert lines[f"{name}: open and one row, cold"].endswith(f"(goal {goal_ms})")
