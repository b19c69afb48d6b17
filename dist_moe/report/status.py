"""What a run is doing, as `dist-moe status` and `dist-moe watch` show it."""

from __future__ import annotations

import time
from collections.abc import Iterator

from dist_moe.stats.measured import Estimate
from dist_moe.training.run_status import RunStatus

MOST_RANKS, MOST_WEAK = 16, 8
WORK = {"train": "training", "count": "counting", "compare": "comparison"}
NEXT = {
    "not started": "no command has written results here yet",
    "stopped": "as requested; the same command again resumes",
    "interrupted": "by a signal; the same command again goes on",
    "failed": "with an error; when it is mended, the same command again goes on",
    "killed": "without a word (killed, or its node is lost); the same command again goes on",
    "unknown": "whether it still runs cannot be known here: this file system has no locks",
}


def status_lines(status: RunStatus) -> Iterator[str]:
    """A headline, then a line for each thing that is known."""
    yield f"{status.run_dir}: {headline(status)}"
    for name, text in _facts(status):
        yield f"  {name:<10}  {text}"


def headline(status: RunStatus) -> str:
    """The state in a line: "training is running: step 12 of 48 (25 %), about 3 min left"."""
    work = WORK.get(status.command or "", status.command)
    start = status.state if work is None else f"{work} {'is ' if status.state == 'running' else ''}{status.state}"
    if status.state == "starting":  # what it is will be known when it begins to write
        return "a job works here, and has not yet told what it does"
    place = _place(status)
    left = [] if status.seconds_left is None else [f"about {duration(status.seconds_left)} left"]
    return ": ".join([start, ", ".join([part for part in (place, *left, NEXT.get(status.state)) if part])]).rstrip(": ")


def one_line(status: RunStatus) -> str:
    """For a log: the time, the state, the last step's loss and speed."""
    parts = [time.strftime("%H:%M:%S"), headline(status)]
    if status.step is not None and status.command == "train":
        parts += [f"loss {status.step.loss:.4f}", f"tokens/s {status.step.tokens_per_second:,.0f}"]
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """A time in the largest unit that has at least two of it: 95 s, 12 min, 7 h, 3 days."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _place(status: RunStatus) -> str:
    if status.done is None:
        return ""
    name = (status.unit or "steps").removesuffix("s")
    if not status.total:
        return f"{name} {status.done:,}"
    return f"{name} {status.done:,} of {status.total:,} ({100 * status.done / status.total:.0f} %)"


def _facts(status: RunStatus) -> Iterator[tuple[str, str]]:
    if status.job is not None:
        silent = "" if status.silent_seconds is None else f"; last told {duration(status.silent_seconds)} ago"
        yield "job", f"{status.job}{silent}"
    yield from _last_step(status)
    yield from _ranks(status)
    yield from _kept(status)
    if status.results:
        yield "results", " ".join(status.results)
    if status.requests:
        yield "request", f"to stop after its step: {' '.join(status.requests)}"
    if status.error is not None:
        yield "last error", status.error
    for note in status.notes:
        yield "note", note


def _last_step(status: RunStatus) -> Iterator[tuple[str, str]]:
    step = status.step
    if step is None:
        return
    terms = ", ".join(f"{name} {mean:.4f}" for name, mean in step.terms.items())
    losses = f"loss {step.loss:.4f}" + (f" ({terms})" if len(step.terms) > 1 else "")
    yield "last step", f"{step.step}, epoch {step.epoch}, batch {step.batch} ({step.category}): {losses}"
    yield (
        "",
        (
            f"experts {step.num_active}  norm {step.grad_norm:.4f}  learning rate {step.lr:.3g}  "
            f"masks r{step.mask_revision}"
        ),
    )
    yield "speed", f"{step.tokens_per_second:,.0f} tokens/s, {step.seconds_per_step:.2f} s a step"


def _ranks(status: RunStatus) -> Iterator[tuple[str, str]]:
    even = "" if status.token_balance is None else f"; tokens of a rank, largest / mean: {status.token_balance:.2f}"
    if status.ranks and even:
        yield "ranks", f"{status.ranks[0].num_ranks}{even}"
    for rank in status.ranks[:MOST_RANKS]:
        tokens = f", {rank.num_tokens:,} tokens of its own rows" if rank.num_tokens else ""
        ended = f"; {rank.error}" if rank.error else ""
        memory = f"at most {rank.peak_bytes / 1e9:,.2f} GB of memory"
        where = f"process {rank.process} on {rank.host}, {rank.device}"
        yield f"rank {rank.rank}", f"{where}: {memory}{tokens}{ended}"
    if len(status.ranks) > MOST_RANKS:
        yield "", f"and {len(status.ranks) - MOST_RANKS} more ranks: --json has all"


def _kept(status: RunStatus) -> Iterator[tuple[str, str]]:
    checkpoint, adjustment = status.checkpoint, status.adjustment
    if checkpoint is not None:
        age = f"{duration(checkpoint.age_seconds)} old"
        yield "checkpoint", f"after step {checkpoint.step}, {age}; {checkpoint.layout}; {checkpoint.path}"
        owned, state = checkpoint.num_owned, checkpoint.state_bytes
        yield (
            "",
            (
                f"a rank owns {min(owned)} to {max(owned)} experts, optimizer state {min(state) / 1e6:,.1f} to "
                f"{max(state) / 1e6:,.1f} MB; masks {checkpoint.masks_digest[:12]}"
            ),
        )
    if adjustment is not None:
        found = f"{len(adjustment.weak)} of {adjustment.num_batches} batches after step {adjustment.step}"
        yield "weak", f"{found}, by {adjustment.measure}"
        for weak in adjustment.weak[:MOST_WEAK]:
            yield "", f"batch {weak.batch} ({weak.category}): {_value(weak.value)}"
        if len(adjustment.weak) > MOST_WEAK:
            yield "", f"and {len(adjustment.weak) - MOST_WEAK} more: adjustments.jsonl has all"


def _range(texts: list[str]) -> str:
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def _value(value: Estimate | None) -> str:
    if value is None:
        return "not measured"
    interval = "" if value.low is None or value.high is None else f" ({value.low:.3f} to {value.high:.3f})"
    return f"{value.value:.3f}{interval}"
