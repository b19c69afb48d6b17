"""Older analyses to today's files: what `dist-moe import` runs."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
from pyarrow.lib import ArrowException

from dist_moe.errors import UserError, refused_by_library
from dist_moe.files import atomic_directory, atomic_file, require_absent
from dist_moe.rules.threshold_top_k import ThresholdTopK
from dist_moe.selection.structure import FACTS, read_structure, write_masks_of
from dist_moe.stats.settings import StatisticsConfig
from dist_moe.store import Counts, MaskStore, write_store
from dist_moe.store.pickles.convert import plan_and_counts
from dist_moe.store.pickles.older import Older, older_of, read_older
from dist_moe.workflows.select import write_masks

log = logging.getLogger(__name__)

TABLES = (".parquet", ".csv")


def import_pickle(
    path: Path, out: Path | None, *, table: str | None, threshold: float | None, top_k: int | None
) -> int:
    """Log what an older analysis is and how it was made, and write it as a table, or as counts and masks.

    Args:
        path: a pickle, of which nothing is run, or a directory that `dist-moe store export` has written.
        out: NAME.parquet or NAME.csv for a table, NAME for a run directory with counts and masks (of a directory: with
            the masks as they were); None writes nothing.
        table: "experts" (each batch's list) or "risk" (all experts); None: the first that there is.
        threshold: of the selection rule, as is top_k; of pickles only.
        top_k: see threshold.

    Raises:
        UserError: the file is refused or unknown, has not what was asked for, or `out` exists.
    """
    if out is not None:
        require_absent(out)
    if out is not None and out.suffix not in (*TABLES, ""):
        raise UserError(f"{out}: expected a name that ends in .parquet or .csv, or a new directory's, without a dot")
    structure, facts = read_structure(path) if (path / FACTS).is_file() else (None, None)
    older = read_older(path) if structure is None else older_of(path, structure.as_dict)
    for finding in older.findings:
        log.info(f"{path.name}: {finding}")
    if out is None:
        return 0
    if out.suffix == "" and structure is not None and facts is not None:
        with atomic_directory(out) as run:
            write_masks_of(run / "masks.zarr", structure, facts)
        log.info(f"{out}: the masks of {len(older.batches)} batches, as they were, without statistics")
        return 0
    if out.suffix == "":
        _select_anew(older, out, threshold, top_k)
        return 0
    chosen = _table(older, table)
    what, advice = f"{path}: its table cannot be written as {out.suffix}", "take another form, or --table experts"
    with atomic_file(out) as partial, refused_by_library(what, advice, (ValueError, TypeError, ArrowException)):
        if out.suffix == ".csv":
            chosen.to_csv(partial, index=False)
        else:
            chosen.to_parquet(partial, index=False)
    log.info(f"{out}: {len(chosen)} lines")
    return 0


def _select_anew(older: Older, out: Path, threshold: float | None, top_k: int | None) -> None:
    """Write a run directory with the counts of an older pickle, and masks that the rule selects from them."""
    if threshold is None or top_k is None:
        raise UserError("masks need the rule that selects them: give --threshold and --top-k")
    rule, settings = ThresholdTopK(threshold=threshold, top_k=top_k), StatisticsConfig(permutations=0)
    with atomic_directory(out) as run:
        write_store(run / "counts.zarr", *plan_and_counts(older))
        counts = Counts.open(run / "counts.zarr")
        (run / "masks.zarr").mkdir()
        write_masks(run / "masks.zarr", counts, rule, settings, progress=False)
    store = MaskStore.open(out / "masks.zarr")
    selected = [set(store.unsafe_experts(batch)) for batch in range(len(store.masks))]
    same = sum(now == set(before) for now, before in zip(selected, older.batches, strict=False))
    log.info(f"{out}: {len(selected)} batches, masks selected anew from the counts; {same} are as in the file")


def _table(older: Older, name: str | None) -> pd.DataFrame:
    tables = {"experts": older.experts if older.batches else None, "risk": older.table}
    there = [key for key, table in tables.items() if table is not None]
    if not there:
        raise UserError(f"{older.path} has no table: write counts and masks (--out NAME)")
    chosen = tables[name or there[0]]
    if chosen is None:
        raise UserError(f"{older.path} has no table {name}: expected --table {' or '.join(there)}")
    return chosen
