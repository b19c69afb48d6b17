"""The site file: all that is said of a cluster, once, for every run there. The docstring of a field is its help."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dist_moe.artefacts import EXACT
from dist_moe.config.yaml_text import read_document
from dist_moe.errors import UserError, shown
from dist_moe.ranges import Count, NonNegativeInt
from dist_moe.slurm import STAGES, Stage

SEE = "`dist-moe slurm site` prints every key with its help"

SAID = {
    r"^[0-9]+[KMGT]$": "expected memory as Slurm takes it, such as 119G",
    r"^(?:[0-9]+-)?[0-9]+(?::[0-9]{2}){0,2}$": "expected a time as Slurm takes it: minutes, HH:MM:SS or D-HH:MM:SS",
    r"^[A-Za-z0-9_.,:/=+@-]+$": "expected a name without blanks",
    r"^[^\n\r\x00]*[^\s\x00][^\n\r\x00]*$": "expected text in one line, not blank",
}
"""What is said in the place of a pattern."""
_MEMORY, _TIME, _WORD, _LINE = SAID

Memory = Annotated[str, StringConstraints(pattern=_MEMORY)]
Time = Annotated[str, StringConstraints(pattern=_TIME)]
Word = Annotated[str, StringConstraints(pattern=_WORD)]
Line = Annotated[str, StringConstraints(pattern=_LINE)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a job asks for. In the section of one stage, null is what the site says for all."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    partition: Word | None = None
    """Partition of the jobs. null: the cluster's default."""
    time: Time | Count | None = None
    """Time limit of a job: minutes, HH:MM:SS or D-HH:MM:SS. null: the partition's."""
    nodes: Count | None = None
    """Number of nodes of a job. null: 1."""
    gpus_per_node: NonNegativeInt | None = None
    """GPUs of each node, with a rank for each. null: 0, ranks on CPUs."""
    ranks_per_node: Count | None = None
    """Ranks (processes) on each node where there are no GPUs. null: 1."""
    cpus_per_rank: Count | None = None
    """Cores of each rank, and its number of threads. null: 1."""
    mem: Memory | None = None
    """Memory of each node, such as 119G; `dist-moe plan` says how much. null: the partition's default."""
    options: tuple[Line, ...] | None = None
    """Further options of sbatch, each as one text, such as --constraint=a100."""

    @property
    def processes(self) -> int:
        """Ranks on each node."""
        return self.gpus_per_node or self.ranks_per_node or 1

    @property
    def threads(self) -> int:
        """Of a rank."""
        return self.cpus_per_rank or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """In which image the ranks run."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    kind: Literal["none", "apptainer", "pyxis"] = "none"
    """What starts it: the program apptainer, or srun's plugin pyxis."""
    image: Line | None = None
    """The image: a file, or a name that the program knows. dist_moe is installed in it."""
    mounts: tuple[Line, ...] = ()
    """Directories that it sees, each as PLACE or PLACE:PLACE_INSIDE: of models and data. The directory in which the run
    is submitted and the run directory are always mounted."""
    options: tuple[Line, ...] = ()
    """Further options, each as one text: of apptainer exec, or of srun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site(Resources):
    """A cluster."""

    account: Word | None = None
    """Account that pays for the jobs."""
    qos: Word | None = None
    """Quality of service of the jobs."""
    launcher: Literal["deepspeed", "torchrun"] = "deepspeed"
    """What starts the ranks of a node. With torchrun the exit status of a failed job does not say why it failed."""
    signal_seconds: Count = 300
    """So long before its time limit a training job is told to save and to be requeued: longer than a step, an
    evaluation in mid-run and a checkpoint take."""
    setup: tuple[Line, ...] = ()
    """Lines of bash at the start of each job, such as `module load cuda` or `export NCCL_SOCKET_IFNAME=ib0`. They run
    outside of the container. Without a container, PATH begins with the environment that has submitted the jobs."""
    container: Container = field(default_factory=Container)
    """The image in which the ranks run."""
    count: Resources = field(default_factory=Resources)
    """Of counting; with --parts, of each job of the array."""
    select: Resources = field(default_factory=Resources)
    """Of selecting the experts, which needs no GPU: one rank on one core, if nothing is said here."""
    train: Resources = field(default_factory=Resources)
    """Of training."""
    evaluate: Resources = field(default_factory=Resources)
    """Of the evaluation."""
    report: Resources = field(default_factory=Resources)
    """Of writing the report, which is one process without a GPU."""

    def of(self, stage: Stage) -> Resources:
        """What the job of a stage asks for: of its own section, else of the whole site, as far as that is for it."""
        own: Resources = getattr(self, stage)
        names = [each.name for each in fields(Resources)]
        if stage in ("select", "report"):
            names = ["partition", "time", "options"]
        return replace(own, **{name: getattr(self, name) for name in names if getattr(own, name) is None})


SECTIONS: dict[str, type[Resources] | type[Container]] = {"container": Container, **dict.fromkeys(STAGES, Resources)}


def read_site(path: Path | None, words: Iterable[str] = ()) -> Site:
    """Read a site file, and change it by words such as `train.nodes=2`.

    Args:
        path: a YAML file; None: a site of which nothing is known.
        words: KEY=VALUE; a value is YAML, so that `[--exclusive]` is a list.

    Raises:
        UserError: a key or a value is wrong, or the file cannot be read; one line that says where.
    """
    document, lines = ({}, {}) if path is None else read_document(path)
    if not isinstance(document, dict | None):
        raise UserError(f"{path}: expected settings of a site as `key: value`, got {shown(document)}: {SEE}")
    places = {key: f"{path}:{line}" for key, line in lines.items()}
    # a section whose settings are all commented out reads as None
    values = {key: value for key, value in (document or {}).items() if value is not None or key not in SECTIONS}
    for word in words:
        key, value = _changed(word)
        section, _, name = key.rpartition(".")
        inside = values.setdefault(section, {}) if section else values
        if isinstance(inside, dict):  # else the check below says what it is
            inside[name] = value
            places[key] = f"--resources {shown(word)[1:-1]}"
    site = _checked(values, str(path or "command line"), places)
    if site.container.kind != "none" and site.container.image is None:
        raise UserError(f"{path}: container.kind is {site.container.kind}, but there is no container.image: {SEE}")
    return site


def site_keys() -> list[str]:
    """All keys of a site file, dotted."""
    inside = [f"{section}.{each.name}" for section, kind in SECTIONS.items() for each in fields(kind)]
    return [*(each.name for each in fields(Site)), *inside]


def _changed(word: str) -> tuple[str, Any]:
    key, is_pair, text = word.partition("=")
    if not is_pair or key not in site_keys():
        near = get_close_matches(key, site_keys(), n=1)
        raise UserError(
            f"--resources {shown(word)}: expected KEY=VALUE with a key of the site file, such as train.nodes=2"
            f"{f'; did you mean {near[0]}?' if near else f': {SEE}'}"
        )
    try:
        return key, YAML(typ="safe", pure=True).load(StringIO(text))
    except YAMLError:
        raise UserError(f"--resources {shown(word)}: the value is not valid YAML: quote it") from None


def _json(values: dict[str, Any], where: str) -> str:
    try:
        return json.dumps(values)
    except (TypeError, ValueError):
        raise UserError(f"{where}: expected text, numbers and lists of them: {SEE}") from None


def _checked(values: dict[str, Any], where: str, places: dict[str, str]) -> Site:
    try:
        return TypeAdapter(Site).validate_json(_json(values, where), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        key = next((".".join(path[:n]) for n in range(len(path), 0, -1) if ".".join(path[:n]) in places), "")
        place = places.get(key, where)
        if first["type"] == "unexpected_keyword_argument":
            near = get_close_matches(key, site_keys(), n=1)
            hint = f"did you mean {near[0]}?" if near else SEE
            raise UserError(f"{place}: a site has no {shown(key)}: {hint}") from None
        raise UserError(f"{place}: {key} is {shown(first['input'])}: {_expected(first)}: {SEE}") from None


def _expected(error: Any) -> str:
    """What pydantic says, in our words where it names a pattern."""
    said = SAID.get(error.get("ctx", {}).get("pattern"))
    return said or error["msg"].replace("Input should be", "expected").replace("an object", "settings below it")
