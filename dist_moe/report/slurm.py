"""Jobs of a run, as `dist-moe slurm` shows them."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any

from dist_moe.registry import field_docs
from dist_moe.report.columns import columns
from dist_moe.report.status import status_lines
from dist_moe.slurm import STAGES
from dist_moe.slurm.job import Chain, sbatch
from dist_moe.slurm.queue import Failure, StageStatus
from dist_moe.slurm.record import Record
from dist_moe.slurm.scheduler import Task
from dist_moe.slurm.site import Container, Resources, Site
from dist_moe.training.run_status import RunStatus

MOST_FAILURES = 5
HEADER = """\
# A cluster, for `dist-moe slurm submit --site`. A line that starts with # and a name is a key with what holds where it
# is not set: remove the # to change it.
"""


def preview_lines(chain: Chain) -> Iterator[str]:
    """Every batch file, and the command that submits it; `$count` stands for the number that Slurm will give."""
    yield from skipped_lines(chain)
    before: list[str] = []
    for job, text in chain.batch_files():
        yield f"==> {chain.place.file(job.stage)}"
        yield text.rstrip()
        *words, file = sbatch(job, chain.place, before)
        yield f"==> {job.stage}=$({' '.join(words)} {shlex.quote(file)})"
        before = [f"${job.stage}"]


def submitted_lines(chain: Chain, record: Record) -> Iterator[str]:
    """What was submitted, and what to do next."""
    yield from skipped_lines(chain)
    for each in record.jobs:
        parts = f", {each.num_parts} parts" if each.num_parts > 1 else ""
        yield f"{each.stage:<8}  job {each.job}{parts}"
    run = shlex.quote(str(chain.place.run_dir))
    yield f"`dist-moe slurm status {run}` says how far they are; their logs are in {chain.place.directory}"


def skipped_lines(chain: Chain) -> Iterator[str]:
    """What is not submitted, and why."""
    for stage, why in chain.skipped.items():
        yield f"{stage:<8}  not needed: {why}"


def slurm_lines(run: RunStatus, stages: Sequence[StageStatus]) -> Iterator[str]:
    """The jobs, why one has not succeeded, and the run itself."""
    lines = [(each.stage, each.job, _state(each), *_place(each)) for each in stages]
    yield columns(("stage", "job", "state", "time", "nodes"), lines)
    for each in stages:
        for failure in each.failures[:MOST_FAILURES]:
            yield _failure(each, failure)
        if len(each.failures) > MOST_FAILURES:
            yield f"{each.stage}: and {len(each.failures) - MOST_FAILURES} parts more; --json has all"
    yield from status_lines(run)


def slurm_json(run: RunStatus, stages: Sequence[StageStatus]) -> str:
    """The same as one JSON object: the fields of `RunStatus` and `StageStatus`."""
    return json.dumps({"run": asdict(run), "stages": [asdict(each) for each in stages]}, indent=2)


def cancelled_lines(tasks: Sequence[Task]) -> Iterator[str]:
    """Which jobs were cancelled."""
    for task in tasks:
        yield f"Cancelled job {task.id} ({task.name}, {task.state})"
    if not tasks:
        yield "No job of this run is left in the queue"


def site_template() -> str:
    """A site file with every key and its help; all are commented out."""
    text = [HEADER, *_keys(Site, but=STAGES), "# Of the jobs of one stage, where they ask for something else:"]
    text += [f"#{stage}: {{}}  # {field_docs(Site)[stage]}" for stage in STAGES]
    inside = ", ".join(each.name for each in fields(Resources))
    return (
        "\n".join([*text, f"# Keys of a stage: {inside}. Such as:", "#train: {nodes: 2, mem: 119G, time: 24:00:00}"])
        + "\n"
    )


def _keys(kind: type, indent: str = "", but: Sequence[str] = ()) -> Iterator[str]:
    docs, default = field_docs(kind), kind()
    for each in fields(kind):
        if each.name in but:
            continue
        value: Any = getattr(default, each.name)
        for line in textwrap.wrap(docs[each.name], width=110 - len(indent), break_long_words=False):
            yield f"{indent}# {line}"
        if isinstance(value, Container):
            yield f"{indent}{each.name}:"
            yield from _keys(Container, indent + "  ")
        else:
            yield f"{indent}#{each.name}: {json.dumps(value)}"


def _state(stage: StageStatus) -> str:
    if not stage.tasks:
        return "not known to Slurm any more"
    states = stage.states
    if stage.num_parts == 1:
        said = next(iter(states)).lower()
    else:
        said = ", ".join(f"{number} {state.lower()}" for state, number in sorted(states.items()))
        said = f"{said} of {stage.num_parts}"
    reason = next((task.reason for task in stage.tasks if task.state == "PENDING" and task.reason), "")
    if stage.waits_for is not None:
        ended = all(task.is_over for task in stage.tasks)
        return f"{said}: {stage.waits_for} {'has not succeeded' if ended else 'comes first'}"
    return f"{said} ({reason})" if reason else said


def _place(stage: StageStatus) -> tuple[str, str]:
    if len(stage.tasks) != 1:
        return "", ""
    return stage.tasks[0].time, stage.tasks[0].nodes


def _failure(stage: StageStatus, failure: Failure) -> str:
    part = "" if failure.part is None else f" part {failure.part}"
    return f"{stage.stage}{part}: {failure.line or 'it has left no message'} ({failure.log})"
