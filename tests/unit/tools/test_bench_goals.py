"""Why a goal is SHORT, how far a median can be trusted, and a run beside an earlier one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tools.bench.__main__ import main
from tools.bench.reasons import reason
from tools.bench.record import beside, read, write
from tools.bench.spread import Spread, coverage, interval_rank
from tools.bench.table import table
from tools.bench.timing import Comparison, Count, Times


def compared(other: str, ratios: list[float], goal: float | None, cpu: float = 1.0) -> Comparison:
    """Ours takes as many seconds as the ratio, the other 1."""
    ones = [1.0] * len(ratios)
    return Comparison("step", other, Times(ratios, [cpu] * len(ratios)), Times(ones, ones), goal)


@pytest.mark.parametrize("number", [1, 3, 6, 11, 12, 33])
def test_the_interval_of_the_median_holds_as_often_as_it_says(number: int) -> None:
    """Of 40,000 draws from a skewed distribution whose median is known; the next narrower one would hold too rarely."""
    rank = interval_rank(number)
    draws = np.sort(np.random.default_rng(0).exponential(size=(40_000, number)), axis=1)
    holds = (draws[:, rank - 1] <= np.log(2)) & (np.log(2) <= draws[:, -rank])
    assert holds.mean() == pytest.approx(coverage(number, rank), abs=0.01)
    assert coverage(number, rank) >= 0.95 or rank == 1
    assert 2 * rank + 1 > number or coverage(number, rank + 1) < 0.95


def test_a_spread_has_the_rounds_of_its_ranks() -> None:
    spread = Spread.of([float(value) for value in (5, 11, 1, 3, 2, 4, 10, 6, 9, 7, 8)])
    assert spread == Spread(smallest=1, low=2, median=6, high=10, largest=11)
    assert [spread.says_of(value) for value in (2, 10.5, 0.9)] == ["in the interval", "in the rounds' range", "OUTSIDE"]


def test_a_goal_below_the_floor_is_said_to_be_out_of_reach() -> None:
    """Ours takes 1.2 of the floor and 0.9 of the peer, so the floor takes 0.75 of the peer."""
    rows = [compared("floor", [1.2] * 11, 1.0, cpu=1.1), compared("peer", [0.9] * 11, 0.62, cpu=0.6)]
    assert reason(rows[1], rows) == (
        "the floor itself is at 0.75 of it, above the goal, which is out of reach here; ours is at 1.20 of the floor; "
        "in CPU time 0.600 (0.600 to 0.600), within the goal, so the rest is waiting"
    )
    assert reason(rows[0], rows) == "in CPU time 1.100 (1.100 to 1.100), so most of it is work"
    within = [rows[0], compared("peer", [0.9] * 11, 0.8)]
    assert "the floor itself is at 0.75 of it, within the goal" in reason(within[1], within)


def test_a_goal_in_the_interval_is_not_decided() -> None:
    row = compared("floor", [0.9, 0.9, 0.9, 1.1, 1.1, 1.1, 1.1], 1.0, cpu=0.9)
    assert reason(row, [row]).endswith("the goal lies in the interval 0.900 to 1.100: the rounds decide nothing")
    assert "decide" not in reason(compared("floor", [1.1] * 7, 1.0), [])


def test_all_goals_are_listed_and_each_short_one_has_its_reason() -> None:
    rows = [compared("floor", [1.2] * 11, 1.0), Count("sent", 0.5, 1.0, "never"), Count("state", 9, 8, "one byte more")]
    text = table(rows)
    assert [line.split() for line in text.splitlines() if line.startswith(("sent", "state  "))] == [
        ["sent", "0.500", "PASS", "(goal", "1)"],
        ["state", "9.000", "SHORT", "(goal", "8)"],
    ]
    assert "Of 3 goals 1 PASS, 2 are SHORT.\n" in text
    assert text.endswith("state: one byte more")
    assert "step / floor: in CPU time" in text
    assert "never" not in text


def test_a_run_is_laid_beside_an_earlier_one(tmp_path: Path) -> None:
    earlier = [
        compared("floor", [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6], 1.0),
        Count("sent", 100, 1, ""),
        Count("c", 8, 8, ""),
    ]
    write(tmp_path / "run.json", {"ranks": 2}, earlier)
    later = [
        compared("floor", [1.35], None),
        compared("peer", [1.0], None),
        Count("sent", 110, 1, ""),
        Count("c", 8, 8, ""),
    ]
    assert beside(read(tmp_path / "run.json"), later) == [
        ("step / floor", "1.300 (1.000 to 1.600)", "1.350", "in the interval"),
        ("step / peer", "-", "1.000", "not there"),
        ("sent", "100", "110", "+10.0%"),
        ("c", "8", "8", "the same"),
    ]


def test_a_run_keeps_its_numbers_and_the_next_says_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, options = tmp_path / "run.json", ["bench", "--small", "--rows", "tap", "--repetitions", "2"]
    monkeypatch.setattr("sys.argv", [*options, "--out", str(path)])
    main()
    kept = json.loads(path.read_text())
    assert kept["options"]["rows"] == ["tap"]
    assert kept["ratios"]["forward, counting / not counting"]["median"] > 0
    assert "beside" not in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*options, "--previous", str(path)])
    main()
    header, row = capsys.readouterr().out.splitlines()[-2:]
    assert header.split("  ")[0] == f"beside {path}"
    assert row.startswith("forward, counting / not counting  ")
    assert row.endswith(("in the interval", "in the rounds' range", "OUTSIDE"))


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", json.dumps({"ratios": {"a": 1}, "counts": {}})])
def test_a_file_that_no_run_has_written_is_one_line(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr("sys.argv", ["bench", "--small", "--previous", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"{path} is no file that --out has written (")
    assert said.err.endswith("); give --previous one that is\n")
    assert said.err.count("\n") == 1


def test_a_directory_that_is_not_there_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--small", "--out", str(tmp_path / "no" / "run.json")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"--out {tmp_path}/no/run.json: {tmp_path}/no is no directory; name a file in one\n"
    )
