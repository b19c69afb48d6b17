"""`dist-moe analyze` and launch/analyze.py: count, then select.

Masks are written in blocks of batches, so that selecting can be resumed after a kill, and split over ranks and jobs.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from dist_moe.config.load import save_config
from dist_moe.config.schema import Config
from dist_moe.files import writing
from dist_moe.measure.parts import share_of
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.parallel.shared_files import remove_partial
from dist_moe.report.analysis import report
from dist_moe.rules import Rule
from dist_moe.selection.choose import mask_plan, population_of, require_some, selected, sums_of
from dist_moe.selection.statistics import selection_rule
from dist_moe.stats.evidence import Population
from dist_moe.stats.population import PopulationSums
from dist_moe.store import Counts, MaskStore, StoreWriter
from dist_moe.store.mask_plan import MaskResults
from dist_moe.workflows.count import Counting, begin, counted, unfinished_store
from dist_moe.workflows.model_place import from_hub
from dist_moe.workflows.results import is_finished, publish_results
from dist_moe.workflows.run_dir import RunDir, require_absent
from dist_moe.workflows.run_lock import RunLock, run_lock

log = logging.getLogger(__name__)


def analyze(config: Config, comm: Comm) -> None:
    """Count routing for every batch, select each batch's unsafe experts, and write counts and masks.

    Every rank does a part of the rows, and then of the batches. Counts that `dist-moe count` has written are used.
    """
    comm.heartbeat.limit_s = config.parallel.timeout
    config, run = from_hub(config, comm), RunDir(config.run_dir)
    with run_lock(run.path, comm, shared=config.analysis.part is not None) as lock:
        if is_finished("analyze", config, lock, comm, (run.analysis,)):
            if lock is not None:
                shutil.rmtree(run.analysis, ignore_errors=True)
            log.info(f"Masks: {run.masks} (they were complete; only the move to this place was left)")
        else:
            _analyze(config, comm, lock)


def _analyze(config: Config, comm: Comm, lock: RunLock | None) -> None:
    run = RunDir(config.run_dir)
    with together(comm):
        require_absent(run.masks, config.overwrite)
        selection_rule(config.analysis)  # its error comes before the model runs
    counting = begin(config, comm)
    with together(comm):
        is_counted = _are_there(config, counting)
    place = run.counts if is_counted else counted(config, counting, comm)
    if place is not None:
        _select(config, place, comm, lock)


def _are_there(config: Config, counting: Counting) -> bool:
    """Whether counts of an earlier command exist and can be used.

    Raises:
        UserError: there are other counts.
    """
    run = RunDir(config.run_dir)
    if config.overwrite or not run.counts.exists():
        return False
    StoreWriter(run.counts, counting.plan)  # for its error
    return True


def _select(config: Config, place: Path, comm: Comm, lock: RunLock | None) -> None:
    """Write this job's share of the masks; if nothing is left to other jobs, publish and report them."""
    run, settings = RunDir(config.run_dir), config.analysis.statistics
    with together(comm), writing(run.path):
        counts = Counts.open_whole(place)
        rule = selection_rule(config.analysis)
        plan = mask_plan(counts, rule, settings)
        run.analysis.mkdir(exist_ok=True)
        writer = StoreWriter(unfinished_store(run, plan), plan)
        share = share_of(config.analysis.part, writer.num_steps)
    missing = comm.gather([step for step in share if writer.is_missing(step)])[0]
    if missing:
        population = population_by(counts, rule, comm)
        with together(comm), writing(run.analysis):
            for step in missing[comm.rank :: comm.size]:
                batches = writer.batches(step)
                progress = log.isEnabledFor(logging.INFO)
                writer.write(batches, selected(counts, batches, rule, settings, population, progress=progress))
    with together(comm), writing(run.path):
        if lock is not None:
            _publish_if_whole(config, counts, writer, lock)


def population_by(counts: Counts, rule: Rule, comm: Comm) -> Population:
    """What is known of all batches together. Ranks take blocks in turn, and all add the sums in the same order."""
    return population_of(_sums(counts, rule, comm))


def _sums(counts: Counts, rule: Rule, comm: Comm) -> Iterator[PopulationSums]:
    steps = counts.steps()
    for start in range(0, len(steps), comm.size):
        with together(comm):
            mine = [sums_of(counts, batches, rule) for batches in steps[start : start + comm.size][comm.rank :][:1]]
        for of_rank in comm.gather(mine):
            yield from of_rank


def _publish_if_whole(config: Config, counts: Counts, writer: StoreWriter[MaskResults], lock: RunLock) -> None:
    """The last of the jobs that share an analysis publishes it; no other job is running there meanwhile."""
    run = RunDir(config.run_dir)
    if not writer.missing and not lock.alone():
        log.info("All masks are written; another job of this analysis finishes the store when it ends")
    elif not writer.path.exists():
        log.info(f"Masks: {run.masks}, finished by another job of this analysis")
    elif writer.missing:
        left = sum(map(len, writer.missing))
        log.info(f"Masks of {left} of {len(writer.plan.index)} batches are left to other jobs")
    else:
        _publish(config, counts, writer)


def _publish(config: Config, counts: Counts, writer: StoreWriter[MaskResults]) -> None:
    """Move the masks into place, together with the counts unless these were there before."""
    run = RunDir(config.run_dir)
    remove_partial(writer.path, "*", within=True)  # killed attempts, not only of this job
    writer.seal()
    for line in counts.warnings:  # before a refusal, of which they may be the reason
        log.info(line)
    require_some(MaskStore.open(writer.path), counts, selection_rule(config.analysis))
    whole = RunDir(run.analysis / "whole")
    shutil.rmtree(whole.path, ignore_errors=True)
    whole.path.mkdir()
    save_config(config, whole.resolved("analyze"))
    is_new = Path(counts.path) != run.counts
    if is_new:
        remove_partial(Path(counts.path), "*", within=True)
        Path(counts.path).rename(whole.counts)
    writer.path.rename(whole.masks)
    publish_results("analyze" if is_new else "select", whole.path, run.path)
    shutil.rmtree(run.analysis, ignore_errors=True)
    for line in report(MaskStore.open(run.masks), config.analysis.statistics):
        log.info(line)
    log.info(f"Masks: {run.masks}")
