"""What is proven of the run, from which bytes it was made, and with which settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from dist_moe.config.load import settings_of
from dist_moe.config.schema import Config, DataConfig, ModelConfig
from dist_moe.report.page.blocks import Cell, Section, bullets, code, details, facts, joined, table
from dist_moe.report.page.contents import RunContents
from dist_moe.report.page.numbers import shown_hash
from dist_moe.stats.masks import mask_hash
from dist_moe.version import __version__


def exactness(run: RunContents, key: str) -> Section:
    """Checks, hashes and settings."""
    parts = [bullets(list(_checks(run))), facts(dict(_origins(run)))]
    if run.config is not None:
        lines = [[code(key), str(value)] for key, value in _settings(run.config)]
        caption = "Settings that differ from the defaults; of whole paths and addresses only the last part"
        parts.append(details("Settings", table(caption, ["setting", "value"], lines)))
    return Section("exactness", "Exactness and provenance", joined(parts))


def _checks(run: RunContents) -> Iterator[Cell]:
    """What was compared, with its result."""
    if run.steps and run.masks is not None:
        stores = (run.masks, *run.later_masks)
        hashes = [{batch.id: batch.mask_hash for batch in store.batches} for store in stores]
        no_expert = mask_hash(np.zeros(run.masks.shape_BLE[1:], np.bool_))
        right = sum(
            step.mask_revision < len(hashes)
            and step.mask_hash
            == (no_expert if step.trains == "routers" else hashes[step.mask_revision].get(step.batch_id))
            for step in run.steps
        )
        told = (
            f"{right} of {len(run.steps)} steps updated their batch's mask: the hash of the experts that the monitor "
            "saw is that of the mask in the store"
        )
        if any(step.trains == "routers" for step in run.steps):
            told += "; steps that train routers only updated no expert"
        yield _check(right == len(run.steps), told)
    if run.steps:
        audited = sum(step.audited for step in run.steps)
        yield (
            f"{audited} of {len(run.steps)} steps were audited: every weight and optimizer value outside what the "
            "step trains had the same checksum before and after. A step that changes one ends the run"
            if audited
            else "No step was audited (train.audit): what it leaves alone was not compared with what was there before"
        )
    if run.training is not None:
        union, experts = {*map(tuple, run.training.facts.union)}, {*map(tuple, run.training.experts)}
        inside = len(experts & union)
        told = f"{inside} of {len(experts)} trained experts are in the union of the masks"
        yield _check(inside == len(experts), told)
    yield _verified(run)


def _check(holds: bool, words: str) -> Cell:
    return Markup("<strong>{}</strong> {}").format("Holds:" if holds else "DOES NOT HOLD:", words)


def _verified(run: RunContents) -> Cell:
    seen = run.verification
    if seen is None:
        return Markup("No export was compared with its base here: {} does it, or this page with {}").format(
            code("dist-moe verify BASE EXPORT --masks STORE"), code("--export EXPORT")
        )
    told = (
        f"of {seen.num_tensors} tensors ({seen.num_bytes / 1e6:,.1f} MB) of the export {seen.model.name}, compared "
        f"byte by byte with the base, {len(seen.changed_tensors)} differ, in {len(seen.changed_experts)} experts; "
        f"{len(seen.violations)} differences are outside the union"
    )
    return _check(seen.holds, told)


def _origins(run: RunContents) -> Iterator[tuple[str, Cell]]:
    """Hashes and versions, as the artefacts have them."""
    counts, masks, training = run.counts, run.masks, run.training
    store = masks or counts
    if store is not None:
        for name in ("model_hash", "tokenizer_hash", "data_hash", "tokens_hash"):
            if name in store.provenance:
                yield name.replace("_hash", " hash").capitalize(), code(shown_hash(str(store.provenance[name])))
    if counts is not None:
        yield "Counts", Markup("{}, dist_moe {}").format(code(shown_hash(counts.digest)), counts.dist_moe_version)
    for number, each in enumerate((masks, *run.later_masks) if masks is not None else ()):
        assert each is not None
        name = f"Masks, revision {number}" if run.later_masks else "Masks"
        yield name, Markup("{}, dist_moe {}").format(code(shown_hash(each.digest)), each.dist_moe_version)
    if training is not None:
        made = Markup("{}, dist_moe {}").format(code(shown_hash(training.digest)), training.facts.dist_moe_version)
        yield "Trained experts", made
    if run.evaluation is not None:
        found = run.evaluation.facts
        files = ", ".join(Path(file).name for file in found.files)
        yield "Evaluated rows", Markup("{} ({})").format(code(shown_hash(found.data_hash)), files)
    yield "This page", f"dist_moe {__version__}; the same files give the same page"


def _settings(config: Config) -> Iterator[tuple[str, object]]:
    """Those that are not as they are by default."""
    defaults = settings_of(Config(run_dir=Path(), model=ModelConfig(path=Path()), data=DataConfig(paths=())))
    for key, value in settings_of(config).items():
        if value != defaults.get(key):
            yield key, _last_part(value)


def _last_part(value: Any) -> Any:
    """Whole paths and addresses say more of a machine than readers should know."""
    if isinstance(value, list | tuple):
        return ", ".join(str(_last_part(each)) for each in value)
    is_place = isinstance(value, str) and (value.startswith(("/", "~")) or "://" in value)
    return value.rstrip("/").rpartition("/")[2] if is_place else value
