"""`dist-moe report`: reads what there is of runs and comparisons, and writes one page about them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from dist_moe.config.load import load_config
from dist_moe.config.schema import Config
from dist_moe.data.rows import read_prompts
from dist_moe.errors import UserError
from dist_moe.evaluation.comparison import COMPARISON, Comparison
from dist_moe.evaluation.curve import ALPHAS, Curve, read_curve
from dist_moe.evaluation.learning_rates import LEARNING_RATES, LearningRates
from dist_moe.evaluation.record import INDEX, Evaluation, read_evaluation
from dist_moe.files import require_writable, write_text_atomic
from dist_moe.report.page.contents import ComparisonContents, PageContents, RunContents, Training
from dist_moe.report.page.page import GENERATOR, page
from dist_moe.selection.stored import open_masks
from dist_moe.store import Counts, MaskStore
from dist_moe.store.source import open_source
from dist_moe.training.adjustments import read_adjustments
from dist_moe.training.steps import read_steps
from dist_moe.weights.verify import Verification
from dist_moe.workflows.results import RESULTS, require_published
from dist_moe.workflows.run_dir import RunDir
from dist_moe.workflows.trained_run import TrainedRun

log = logging.getLogger(__name__)

PAGE = "report.html"


def report(paths: Sequence[Path], out: Path | None = None, export: Path | None = None) -> Path:
    """Write the page; returns its place.

    Args:
        paths: run directories, directories of a comparison, or of an evaluation of a model.
        out: the page; None: report.html in the first directory. An earlier page is replaced.
        export: what the first run was exported to: it is compared with its base, byte by byte.

    Raises:
        UserError: a directory has nothing to show, or something in it is damaged; `out` is another file.
    """
    place = out or paths[0] / PAGE
    for path in paths:
        _require_something(path)
    _require_ours(place)
    contents = _contents(list(dict.fromkeys(paths)), export)
    write_text_atomic(place, page(contents))
    log.info(f"Report: {place}, {place.stat().st_size / 1e6:.1f} MB; open it in a browser")
    return place


def _contents(paths: Sequence[Path], export: Path | None) -> PageContents:
    compared = [path for path in paths if (path / COMPARISON).is_file()]
    runs = [path for path in paths if path not in compared]
    if export is not None and not runs:
        raise UserError(f"--export is of a run, but {paths[0]} is a comparison: give the run that was exported")
    return PageContents(
        runs=tuple(read_run(path, None if number else export) for number, path in enumerate(runs)),
        comparisons=tuple(_comparison(path) for path in compared),
    )


def _comparison(path: Path) -> ComparisonContents:
    """A comparison, and how its learning rates were chosen, if they were."""
    found, file = Comparison.read(path / COMPARISON), path / LEARNING_RATES
    rates = LearningRates.read(file).of(found.lrs) if file.is_file() else None
    return ComparisonContents(path=path, comparison=found, rates=rates)


def _require_something(path: Path) -> None:
    if not path.is_dir():
        raise UserError(f"no run directory {path}: expected one that a command of dist-moe has written")
    run = RunDir(path)
    shown = (run.counts, run.masks, run.metrics, run.experts, path / INDEX, path / COMPARISON, run.training)
    if not any(place.exists() for place in shown):
        more = "; `dist-moe compare` has not ended there" if any(path.glob("seed-*")) else ""
        raise UserError(
            f"{path} has nothing to report: expected the results of `dist-moe count`, `analyze`, `train`, `evaluate` "
            f"or `compare`{more}"
        )


def _require_ours(place: Path) -> None:
    """Never replace a file that is no page of ours."""
    require_writable(place)
    if place.exists():
        with place.open("rb") as stream:
            if GENERATOR.encode() not in stream.read(2000):
                raise UserError(f"{place} exists, and is no report of dist-moe: choose another --out")


def read_run(path: Path, export: Path | None = None) -> RunContents:
    """Everything that there is of a run; `export` is compared with its base.

    Raises:
        UserError: results are being replaced, or something is damaged.
    """
    for command in RESULTS:
        require_published(path, command)
    run, notes = RunDir(path), list[str]()
    work = run if run.experts.exists() or not run.training.exists() else RunDir(run.training)
    trained = TrainedRun.open(path, every_byte=False) if run.experts.exists() else None
    config = trained.config if trained is not None else _config(run, work)
    adjustments = read_adjustments(work.adjustments)
    own = [work.revision(each.revision.number).masks for each in adjustments if each.revision is not None]
    masks = _masks(run, config, trained, own, notes)
    evaluation = _evaluation(run, trained, notes)
    return RunContents(
        path=path,
        config=config,
        masks=masks.first,
        later_masks=masks.later,
        counts=_counts(run, masks.first, notes),
        training=None
        if trained is None
        else Training(facts=trained.facts, experts=trained.experts.experts, digest=trained.experts.digest),
        steps=read_steps(work.metrics) if work.metrics.is_file() else (),
        adjustments=adjustments,
        evaluation=evaluation,
        curve=_curve(run, trained, notes),
        prompts={} if evaluation is None else _texts(evaluation, config),
        verification=None if export is None else _verification(trained, masks, path, export),
        notes=tuple(notes),
    )


def _config(run: RunDir, work: RunDir) -> Config | None:
    """Of the last command that has left one."""
    files = (work.resolved("train"), run.resolved("analyze"), run.resolved("count"))
    return next((load_config(file) for file in files if file.is_file()), None)


@dataclass(frozen=True, slots=True)
class _Masks:
    """Of a run: those it began with, and later ones."""

    first: MaskStore | None
    later: tuple[MaskStore, ...] = ()

    @property
    def places(self) -> list[str]:
        return [str(each.path) for each in (self.first, *self.later) if each is not None]


def _masks(
    run: RunDir, config: Config | None, trained: TrainedRun | None, written: Sequence[Path], notes: list[str]
) -> _Masks:
    """Those of the training, if they are still the same; else those of the analysis. `written`: by the run itself."""
    own = config.train.masks if config is not None else None
    later = [item.partition(":")[2] for item in config.train.revisions] if config is not None else []
    places = [own or run.masks, *later, *written]
    if trained is None:
        found = [open_masks(place) for place in places if open_source(place).exists()]
    else:
        digests = [trained.facts.masks_digest, *(each.masks_digest for each in trained.facts.mask_revisions)]
        found = [*_same(places, digests, notes)]
    return _Masks(found[0], tuple(found[1:])) if found else _Masks(None)


def _same(places: Sequence[str | Path], digests: Sequence[str], notes: list[str]) -> Iterator[MaskStore]:
    """The stores with these digests; nothing from the first one on that is gone or another."""
    for place, digest in zip_longest(places, digests):
        store = open_masks(place) if place is not None and open_source(place).exists() else None
        if store is None or store.digest != digest:
            notes.append(
                f"The masks that it was trained with, {str(digest)[:16]}, are no longer at {place}: put them back to "
                "have them on this page."
            )
            return
        yield store


def _counts(run: RunDir, masks: MaskStore | None, notes: list[str]) -> Counts | None:
    """What the masks were selected from."""
    if masks is None:
        return Counts.open_whole(run.counts) if run.counts.exists() else None
    if not masks.has_counts:
        notes.append(f"The counts that the masks were selected from are not at {masks.counts_place}.")
        return None
    return masks.counts


def _evaluation(run: RunDir, trained: TrainedRun | None, notes: list[str]) -> Evaluation | None:
    """Of the experts that are there now."""
    if not (run.path / INDEX).exists():
        return None
    found = read_evaluation(run.path)
    if trained is not None and found.facts.experts_digest != trained.experts.digest:
        notes.append(f"{INDEX} is of other trained experts than these, and is not shown: evaluate again.")
        return None
    return found


def _curve(run: RunDir, trained: TrainedRun | None, notes: list[str]) -> Curve | None:
    """Evaluations of shares of the change of the experts that are there now."""
    places = sorted((run.path / ALPHAS).glob(f"[0-9]*/{INDEX}"))
    if not places or trained is None:
        return None
    found = read_curve(run.path, [float(place.parent.name) for place in places])
    if any(each.facts.experts_digest != trained.experts.digest for each in found.evaluations.values()):
        notes.append(f"{ALPHAS}/ is of other trained experts than these, and is not shown: evaluate again.")
        return None
    return found


def _texts(evaluation: Evaluation, config: Config | None) -> dict[str, str]:
    """The prompts by the ids of their rows; none if the files are no longer those that were evaluated."""
    refusal = evaluation.facts.settings.get("data.refusal", config.data.refusal if config is not None else None)
    if refusal is None:
        return {}
    try:
        rows = read_prompts([Path(file) for file in evaluation.facts.files], refusal)
    except UserError:  # gone, or no rows any more
        return {}
    if rows.data_hash != evaluation.facts.data_hash:
        return {}
    return {row.id: "\n\n".join(message.content for message in row.messages) for row in rows.prompts}


def _verification(trained: TrainedRun | None, masks: _Masks, path: Path, export: Path) -> Verification:
    if trained is None or not masks.places:
        raise UserError(f"{path}: --export needs a finished training and its masks, to say which experts may differ")
    from dist_moe.workflows.verify import verify  # may read models: a page without it is there in half the time

    return verify(trained.config.model.path, export, masks.places)
