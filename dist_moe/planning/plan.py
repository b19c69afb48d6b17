"""Plan: all that is said of a run before it is started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from dist_moe.planning.disk import Disk, disk
from dist_moe.planning.fit import GB, GPU_SIZES, Counting, Fit, Rejected, Trained, counting, fit, rejected
from dist_moe.planning.memory import Memory, Setup, training_memory
from dist_moe.planning.outline import Outline
from dist_moe.planning.traffic import Traffic, traffic

HOST_GB = 16
"""Of a node's memory, for all that is no weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is asked."""

    model: str
    """Its name, for people."""
    unpacked_from: str | None
    """The packed format in which it is published, which has to be unpacked; None: none."""
    num_nodes: int
    gpus_per_node: int
    gpu: int | None
    """Memory of each GPU in GB; None: not chosen yet."""
    config: str
    """The configuration file, for commands."""
    is_assumed: bool
    """Whether no masks say how many experts are trained."""
    num_batches: int | None
    """None: not known."""
    epochs: int
    kept_checkpoints: int
    tokens_in_pass: int
    """Of counting (`analysis.micro_batch_tokens`)."""
    tokens_per_second: float | None
    """Of the whole job."""
    rate_from: str | None
    """Where that number comes from."""
    sets_ep_size: bool
    """Whether parallel.ep_size has to be given, as there are more ranks than experts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes are of the rank with most, as the run is set; `fits` also has what would make it fit."""

    job: Job
    outline: Outline
    setup: Setup
    trained: Trained
    memory: Memory
    held: int
    """Experts whose weights that rank has."""
    owned: int
    """Experts whose optimizer state it keeps."""
    active: int
    """Experts that a batch trains on it."""
    traffic: Traffic
    fits: list[Fit]
    rejected: list[Rejected]
    """Of the chosen GPU."""
    counting: dict[int, Counting | None]
    """By GPU size; None: too small."""
    disk: Disk
    seconds: float | None
    """Of the whole training at the given rate; None: no rate, or an unknown number of batches."""

    @property
    def chosen(self) -> Fit | None:
        """The chosen GPU, or the smallest on which the run fits."""
        found = [each for each in self.fits if each.fits]
        return next((each for each in found if self.counting[each.gpu] is not None), found[0] if found else None)

    def commands(self) -> Iterator[str]:
        """For Slurm: what counts and trains. Nothing if the run fits nowhere."""
        chosen, job = self.chosen, self.job
        if chosen is None:
            return
        counts = self.counting[chosen.gpu]
        resources = [f"nodes={job.num_nodes}", f"gpus_per_node={job.gpus_per_node}"]
        words = [change.words for change in chosen.changes]
        if job.sets_ep_size and not any("ep_size" in each for each in words):
            words.append(f"--parallel.ep_size {self.setup.ep_size}")
        stages = "train"
        if counts is not None:
            stages = "count select train"
            resources.append(f"count.mem={self._gigabytes(counts.host)}G")
            words = [*filter(None, [counts.words]), *words]
        resources.append(f"train.mem={self._gigabytes(chosen.host)}G")
        given = f"--config {job.config} --site site.yaml --stages {stages} --resources {' '.join(resources)}"
        yield " ".join(["dist-moe slurm submit", given, *words])

    def _gigabytes(self, of_rank: int) -> int:
        """Of a node's memory, for so many bytes of each rank, and some for everything else."""
        return ceil((1.1 * of_rank * self.job.gpus_per_node) / GB) + HOST_GB


def make_plan(job: Job, outline: Outline, setup: Setup, trained: Trained) -> Plan:
    """All of it."""
    share = trained.share(outline, setup)
    sizes = GPU_SIZES if job.gpu is None else (job.gpu,)
    chosen = job.gpu or max(sizes)
    seconds = None
    if job.tokens_per_second and job.num_batches:
        seconds = job.num_batches * job.epochs * setup.batch_size * setup.row_tokens / job.tokens_per_second
    return Plan(
        job=job,
        outline=outline,
        setup=setup,
        trained=trained,
        memory=training_memory(outline, setup, share),
        held=share.held,
        owned=share.owned,
        active=share.num_active,
        traffic=traffic(outline, setup, share),
        fits=[fit(outline, setup, trained, gpu) for gpu in sizes],
        rejected=[*rejected(outline, setup, trained, chosen)],
        counting={gpu: counting(outline, setup, job.tokens_in_pass, gpu) for gpu in sizes},
        disk=disk(outline, trained.in_all),
        seconds=seconds,
    )
