"""`dist-moe status`: what a run is doing, from the files that it writes anyway. Without torch; it changes nothing."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median

from dist_moe.artefacts import checked, checked_lines
from dist_moe.errors import UserError
from dist_moe.files import first_lines, parse_json
from dist_moe.trackers.rank_state import INTERRUPTED, LOGS, RankState, read_state
from dist_moe.training.adjustments import Adjustment
from dist_moe.training.checkpoint_index import Index, checkpoint_directories, read_index
from dist_moe.training.run_status import LastAdjustment, LastCheckpoint, LastStep, RunStatus, State, WeakBatch
from dist_moe.weights.parts import INDEX
from dist_moe.workflows.run_dir import RunDir
from dist_moe.workflows.run_holder import Holder

RECENT = 20
"""Number of steps over which speed is measured."""
TAIL_BYTES = 2**20
FOREIGN = "not a line that training writes"
SILENT_S = 120.0
"""Without locks, a job that has told nothing for so long is not said to run."""
SHOWN = ("counts.zarr", "masks.zarr", "experts", "evaluation.json", "comparison.json", "report.html")


def status(path: Path) -> RunStatus:
    """What a run directory says at this moment.

    Raises:
        UserError: there is no such directory.
    """
    if not path.is_dir():
        raise UserError(f"no run directory {path}: expected one that a command of dist-moe has written, its run_dir")
    run, notes, now = RunDir(path), list[str](), time.time()
    work = RunDir(run.training) if run.training.is_dir() else run
    ranks = _ranks(run.path / LOGS, notes)
    holder = Holder.of(path)
    state = _state(run, work, ranks, holder, now)
    is_working = state == "running"
    first = ranks[0] if ranks else None
    step = _last_step(work.metrics, notes)
    notes += _exchanges(run)
    return RunStatus(
        run_dir=str(path),
        state=state,
        command=first.command if first else None,
        job=holder.who if holder.is_held else None,
        silent_seconds=max(now - first.told, 0) if first and is_working else None,
        done=_done(first, step),
        total=first.total if first else None,
        unit=first.unit if first else None,
        seconds_left=_seconds_left(first, step) if first and is_working else None,
        step=step,
        ranks=ranks,
        token_balance=_balance(ranks),
        checkpoint=_last_checkpoint(work.checkpoints, now, notes),
        adjustment=_last_adjustment(work.adjustments, notes),
        results=[name for name in SHOWN if (path / name).exists()],
        requests=[wish.name for wish in (run.stop, run.requeue) if wish.is_file()],
        error=next((each.error for each in ranks if each.error), None) if state == "failed" else None,
        notes=notes,
    )


def _ranks(directory: Path, notes: list[str]) -> list[RankState]:
    """The states of the ranks of the last job, in their order; none if the first rank's is missing."""
    found = dict[int, RankState]()
    for path in sorted(directory.glob("rank-*.json")):
        try:
            each = read_state(path)
        except UserError as error:
            notes.append(str(error))
            continue
        found[each.rank] = each
    if 0 not in found:
        return []
    job = found[0].command, found[0].num_ranks  # files of an earlier job with more ranks are still there
    return [each for _, each in sorted(found.items()) if (each.command, each.num_ranks) == job]


def _state(run: RunDir, work: RunDir, ranks: list[RankState], holder: Holder, now: float) -> State:
    first = ranks[0] if ranks else None
    if holder.is_held:
        is_its = first is not None and not first.has_ended and holder.who == f"process {first.process} on {first.host}"
        return "running" if is_its else "starting"
    if first is not None and not first.has_ended:
        if holder.is_held is None and _may_live(first, now):
            return "running" if now - first.told < SILENT_S else "unknown"
        return "killed"
    errors = {each.error for each in ranks if each.error}
    if errors:  # where one is interrupted, others may have lost it
        return "interrupted" if INTERRUPTED in errors else "failed"
    if first is None and not run.experts.exists() and any(p.exists() for p in (work.metrics, work.checkpoints)):
        return "killed"
    if first is not None and first.command == "train" and not run.experts.exists():
        return "stopped"
    if first is not None or any((run.path / name).exists() for name in SHOWN):
        return "finished"
    return "killed" if run.analysis.exists() else "not started"


def _may_live(rank: RankState, now: float) -> bool:
    """Whether a process that was not seen to end may still work; on another host that cannot be asked."""
    return rank.host != socket.gethostname() or Path(f"/proc/{rank.process}").exists() or not os.path.isdir("/proc/1")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Term:
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """What is read of a line of metrics.jsonl."""

    step: int
    epoch: int
    batch: int
    category: str
    loss: float
    terms: dict[str, _Term]
    grad_norm: float
    lr: float
    num_active: int
    mask_revision: int
    tokens_per_second: float
    seconds: float


def _last_step(metrics: Path, notes: list[str]) -> LastStep | None:
    """From the last whole lines; a line that a killed job has begun is none."""
    lines = list[_Line]()
    for text in _last_lines(metrics, RECENT) if metrics.is_file() else ():
        try:
            lines.append(
                checked(_Line, parse_json(text, str(metrics)), str(metrics), "not a line that training writes")
            )
        except UserError as error:
            notes.append(str(error))
    if not lines:
        return None
    last = asdict(lines[-1])
    del last["seconds"]
    return LastStep(
        **last
        | {
            "terms": {name: term.mean for name, term in lines[-1].terms.items()},
            "tokens_per_second": median(line.tokens_per_second for line in lines),
            "seconds_per_step": fmean(line.seconds for line in lines),
        }
    )


def _last_lines(path: Path, number: int) -> list[str]:
    """The last whole lines of a text file, which may be large."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        start = max(size - TAIL_BYTES, 0)
        stream.seek(start)
        lines = stream.read().split(b"\n")
    whole = lines[1 if start else 0 : -1]
    return [line.decode(errors="replace") for line in whole[-number:]]


def _done(first: RankState | None, step: LastStep | None) -> int | None:
    """Steps are known from metrics.jsonl at once, from a rank after a second."""
    if step is not None and (first is None or first.command == "train"):
        return step.step
    return None if first is None else first.done


def _seconds_left(first: RankState, step: LastStep | None) -> float | None:
    if first.command == "compare":  # some of its runs may be there already
        return None
    if first.command == "train":
        return None if step is None else (first.total - step.step) * step.seconds_per_step
    return (first.total - first.done) * (first.told - first.begun) / first.done if first.done else None


def _balance(ranks: list[RankState]) -> float | None:
    tokens = [each.num_tokens for each in ranks]
    return max(tokens) / fmean(tokens) if any(tokens) and len(tokens) == ranks[0].num_ranks > 1 else None


def _last_checkpoint(root: Path, now: float, notes: list[str]) -> LastCheckpoint | None:
    for path in reversed(checkpoint_directories(root)):
        try:
            index = read_index(path)
            _require_sizes(path, index)
        except UserError as error:
            notes.append(f"{error}; a run that resumes uses the one before")
            continue
        return LastCheckpoint(
            path=str(path),
            step=index.state.step,
            age_seconds=max(now - (path / INDEX).stat().st_mtime, 0),
            layout=f"{index.layout.num_ranks} rank(s), engine {index.layout.engine}",
            masks_digest=index.state.masks.digest,
            num_owned=[part.num_owned for part in index.files.values()],
            state_bytes=[part.state_bytes for part in index.files.values()],
        )
    return None


def _require_sizes(path: Path, index: Index) -> None:
    for name, part in index.files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != part.num_bytes:
            raise UserError(f"{file} is missing or has another size than when it was written")


def _last_adjustment(path: Path, notes: list[str]) -> LastAdjustment | None:
    last = deque((line for line in first_lines(path, None) if line.endswith(b"\n")), maxlen=1)
    if not last:
        return None
    try:
        (found,) = checked_lines(Adjustment, [last[0].decode(errors="replace")], path, FOREIGN)
    except UserError as error:
        notes.append(str(error))
        return None
    weak = [WeakBatch(batch=each.batch, category=each.category, value=each.value) for each in found.weak]
    return LastAdjustment(step=found.step, measure=found.measure, num_batches=len(found.batches), weak=weak)


def _exchanges(run: RunDir) -> list[str]:
    """Exchanges of results that are not finished; `workflows/results.py` names their places."""
    commands = {path.name.rpartition("-")[2] for path in run.path.glob(".publish*-*")}
    again = (f"`dist-moe {'analyze' if command == 'select' else command}`" for command in sorted(commands))
    said = "new results are being moved into place: if no job does it, the same"
    return [f"{said} {command} again finishes it" for command in again]
