"""A job of a run: its batch file, and the command that submits it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from dist_moe.slurm import Stage
from dist_moe.slurm.site import Resources, Site

NAME = "dist-moe-{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One stage of a run. With several parts it is an array."""

    stage: Stage
    words: tuple[str, ...]
    """What dist-moe is given, relative to the directory in which the run is submitted."""
    num_parts: int = 1

    @property
    def has_ranks(self) -> bool:
        """Whether its processes are started by a launcher; the report is written by one."""
        return self.stage != "report"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run is submitted. All paths are absolute."""

    run_dir: Path
    cwd: Path
    bin: Path
    """Directory of the program dist-moe."""

    @property
    def directory(self) -> Path:
        """Of batch files, logs, and the record of what was submitted."""
        return self.run_dir / "slurm"

    def file(self, stage: Stage) -> Path:
        """The batch file of a stage."""
        return self.directory / f"{stage}.sbatch"

    def log(self, stage: Stage, job: str, part: int | None = None) -> Path:
        """The log of a job, by its number and that of the part."""
        return self.directory / f"{stage}-{job}{'' if part is None else f'_{part}'}.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """What is to be submitted. Each job begins when the one before it has succeeded."""

    jobs: list[Job]
    skipped: dict[Stage, str]
    """Stages that are not needed, with the result that is there."""
    site: Site
    place: Place

    def batch_files(self) -> Iterator[tuple[Job, str]]:
        """Each job with the text of its batch file."""
        for job in self.jobs:
            yield job, batch_file(job, self.site, self.place)


def sbatch(job: Job, place: Place, after: Sequence[str]) -> list[str]:
    """The command that submits a job, to begin when those with the numbers `after` have all succeeded."""
    wait = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
    return ["sbatch", "--parsable", *wait, str(place.file(job.stage))]


def batch_file(job: Job, site: Site, place: Place) -> str:
    """Text of the batch file."""
    asked = site.of(job.stage)
    template = files("dist_moe.slurm").joinpath("job.sh.jinja").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(template).render(
        stage=job.stage,
        options=[*map(_in_comment, _options(job, site, asked, place)), *(asked.options or ())],
        bin=None if site.container.kind != "none" else shlex.quote(str(place.bin)),
        setup=site.setup,
        words=" ".join(map(shlex.quote, job.words)),
        num_parts=job.num_parts,
        ranks=job.has_ranks,
        processes=asked.processes,
        threads=asked.threads,
        cpus=_cores(asked),
        has_gpus=bool(asked.gpus_per_node),
        launcher=site.launcher,
        run_dir=shlex.quote(str(place.run_dir)),
        container="".join(f"{shlex.quote(word)} " for word in _container(site, asked, place)),
    )


def _options(job: Job, site: Site, asked: Resources, place: Place) -> Iterator[str]:
    """Of sbatch."""
    name = "%A_%a" if job.num_parts > 1 else "%j"
    yield f"--job-name={NAME.format(job.stage)}"
    yield f"--chdir={place.cwd}"
    yield f"--output={str(place.log(job.stage, '')).replace('%', '%%').removesuffix('.log')}{name}.log"
    yield from ("--open-mode=append", "--requeue")
    if job.num_parts > 1:
        yield f"--array=1-{job.num_parts}"
    if job.stage == "train":
        yield f"--signal=B:USR1@{site.signal_seconds}"
    given = {"partition": asked.partition, "account": site.account, "qos": site.qos, "time": asked.time}
    given |= {"nodes": asked.nodes or 1, "ntasks-per-node": 1, "cpus-per-task": _cores(asked)}
    given |= {"gpus-per-node": asked.gpus_per_node or None, "mem": asked.mem}
    yield from (f"--{option}={value}" for option, value in given.items() if value is not None)


def _cores(asked: Resources) -> int:
    """Of a node: Slurm sees one task there, the launcher."""
    return asked.processes * asked.threads


def _container(site: Site, asked: Resources, place: Place) -> Iterator[str]:
    """What comes between srun and the program."""
    box = site.container
    mounts = [str(place.cwd), str(place.run_dir), *box.mounts]
    if box.kind == "pyxis":
        pairs = ",".join(mount if ":" in mount else f"{mount}:{mount}" for mount in mounts)
        yield from (f"--container-image={box.image}", f"--container-mounts={pairs}")
        yield from (f"--container-workdir={place.cwd}", *box.options)
    elif box.kind == "apptainer":
        yield from ("apptainer", "exec", *(["--nv"] if asked.gpus_per_node else []), "--pwd", str(place.cwd))
        yield from (word for mount in mounts for word in ("--bind", mount))
        yield from (*box.options, str(box.image))


def _in_comment(option: str) -> str:
    """An option as Slurm reads it in a line that begins with #SBATCH."""
    return option if option == shlex.quote(option) or not set(option) & set(" \t\"'#\\") else _quoted(option)


def _quoted(option: str) -> str:
    return '"' + option.replace("\\", "\\\\").replace('"', '\\"') + '"'


def here() -> Path:
    """The current directory, as the shell names it if that is it: a cluster's nodes may see another real path."""
    named = os.environ.get("PWD", "")
    return Path(named) if named and os.path.isdir(named) and os.path.samefile(named, ".") else Path.cwd()
