"""`dist-moe select`: select masks from stored counts, in seconds, without model or torch."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from dist_moe.config.load import load_config
from dist_moe.config.schema import AnalysisConfig
from dist_moe.errors import UserError, shown
from dist_moe.files import atomic_directory, require_absent
from dist_moe.report.analysis import control_lines, empty_lines, sizes_line
from dist_moe.rules import Rule
from dist_moe.selection.choose import mask_plan, population_of, require_some, selected, sums_of
from dist_moe.selection.statistics import selection_rule
from dist_moe.selection.words import changed_rule
from dist_moe.stats.settings import StatisticsConfig
from dist_moe.store import Counts, MaskStore, StoreWriter

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def select(run: Path, words: Mapping[str, str], name: str) -> MaskStore:
    """Select experts from the counts of a run, and write them to the mask store RUN/NAME.zarr.

    Args:
        run: a run directory with counts.zarr.
        words: the rule as text: `name`, and parameters by name. Those not given are as in the run's configuration.
        name: of the mask store: letters, digits, "-" and "_".

    Raises:
        UserError: there are no counts, the rule is wrong or selects nothing, or the mask store exists.
    """
    if not NAME.fullmatch(name) or name == "counts":
        raise UserError(f"--out is {shown(name)}: expected a name of letters, digits, - and _, but not counts")
    place = run / f"{name}.zarr"
    require_absent(place)
    counts, analysis = Counts.open_whole(run / "counts.zarr"), _configuration(run)
    settings = analysis.statistics
    rule = changed_rule(selection_rule(analysis), words)
    for line in counts.warnings:
        log.info(line)
    with atomic_directory(place) as directory:
        write_masks(directory, counts, rule, settings, progress=log.isEnabledFor(logging.INFO))
        require_some(MaskStore.open(directory), counts, rule)
    masks = MaskStore.open(place)
    log.info(sizes_line(masks))
    for line in (*control_lines(masks), *empty_lines(masks)):
        log.info(line)
    log.info(f"Masks: {place}")
    return masks


def write_masks(directory: Path, counts: Counts, rule: Rule, settings: StatisticsConfig, *, progress: bool) -> None:
    """Write the masks that a rule selects into an empty directory.

    Raises:
        UserError: the rule needs something that is not there.
    """
    plan = mask_plan(counts, rule, settings)
    population = population_of(sums_of(counts, batches, rule) for batches in counts.steps())
    writer = StoreWriter(directory, plan, sync=False)
    for batches in writer.missing:
        writer.write(batches, selected(counts, batches, rule, settings, population, progress=progress))
    writer.seal()


def _configuration(run: Path) -> AnalysisConfig:
    """The analysis settings of the run; defaults if it was imported."""
    files = [run / f"{command}.yaml" for command in ("analyze", "count")]
    there = [file for file in files if file.is_file()]
    return load_config(there[0]).analysis if there else AnalysisConfig()
