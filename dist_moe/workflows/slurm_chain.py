"""Which jobs a run is: those stages whose results are not there yet. Without torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_moe.config.load import load_config
from dist_moe.config.schema import Config
from dist_moe.errors import UserError, shown
from dist_moe.evaluation.record import INDEX
from dist_moe.slurm import STAGES, Stage
from dist_moe.slurm.job import Chain, Job, Place, here
from dist_moe.slurm.site import read_site
from dist_moe.workflows.run_dir import RunDir


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments of `submit` and `preview`."""

    config: Path
    settings: Sequence[str] = ()
    site: Path | None = None
    resources: Sequence[str] = ()
    stages: Sequence[Stage] | None = None
    """None: all whose results are not there."""
    parts: int = 1
    """Number of jobs that share the counting."""
    held_out: Sequence[Path] = ()


def chain(request: Request) -> Chain:
    """The jobs of a run.

    Raises:
        UserError: something is wrong in the configuration, the site file or the arguments.
    """
    config = load_config(request.config, request.settings)
    site = read_site(request.site, request.resources)
    cwd = here()
    place = Place(run_dir=cwd / config.run_dir, cwd=cwd, bin=Path(sys.executable).parent)
    skipped = dict[Stage, str]() if request.stages else _results(config)
    wanted = [stage for stage in STAGES if stage in (request.stages or STAGES) and stage not in skipped]
    if "count" in wanted or "select" in wanted:
        if config.overwrite:
            raise UserError(
                "overwrite is set, and a chain of jobs cannot replace counts and masks: choose another run_dir, or "
                "remove them"
            )
        if config.analysis.part is not None:
            raise UserError(f"analysis.part is {shown(config.analysis.part)}: the jobs get their parts by --parts N")
    for file in request.held_out:
        if not file.exists():
            raise UserError(f"--held-out {file}: there is no such file")
    jobs = [_job(stage, request, config) for stage in wanted]
    return Chain(jobs=jobs, skipped=skipped, site=site, place=place)


def _results(config: Config) -> dict[Stage, str]:
    """Stages whose results are there, with these."""
    run, found = RunDir(config.run_dir), dict[Stage, str]()
    masks = config.train.masks or run.masks
    if config.train.masks is not None or run.masks.exists():
        found |= {"count": f"masks are in {masks}", "select": f"masks are in {masks}"}
    elif run.counts.exists():
        found["count"] = f"counts are in {run.counts}"
    if run.experts.exists() and not run.training.exists() and not config.overwrite:
        found["train"] = f"trained experts are in {run.experts}"
        if (evaluation := run.path / INDEX).exists():
            found["evaluate"] = f"the evaluation is in {evaluation}"
    return found


def _job(stage: Stage, request: Request, config: Config) -> Job:
    configured = ("--config", str(request.config), *request.settings)
    run = str(config.run_dir)
    if stage == "count":
        return Job(stage=stage, words=("count", *configured), num_parts=request.parts)
    if stage == "select":  # `analyze` selects from counts that are there, on all its ranks
        return Job(stage=stage, words=("analyze", *configured))
    if stage == "train":
        return Job(stage=stage, words=("train", *configured))
    if stage == "evaluate":
        data = ("--data", *map(str, request.held_out)) if request.held_out else ()
        return Job(stage=stage, words=("evaluate", run, *data, *_of_evaluation(request.settings)))
    return Job(stage=stage, words=("report", run))


def _of_evaluation(settings: Sequence[str]) -> Iterator[str]:
    """Those settings on the command line that the evaluation of a run takes, with their values."""
    is_its = False
    for word in settings:
        is_its = word.startswith("--evaluation.") if word.startswith("--") else is_its
        if is_its:
            yield word
