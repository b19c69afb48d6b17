"""Finds weak batches' experts anew, with the model as it is in mid-run, and writes the next revision of the masks.

revisions/r1/counts.zarr    the counts of the masks before, those of the weak batches counted anew
revisions/r1/masks.zarr     the masks before, those of the weak batches selected anew by the same rule
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dist_moe.config.schema import Config
from dist_moe.data.tokens import CountedTokens
from dist_moe.errors import UserError
from dist_moe.files import writing
from dist_moe.measure.collect import count_rows
from dist_moe.model.generate import Sampling
from dist_moe.model.model import MoEModel
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.parallel.shared_files import SharedDirectory
from dist_moe.rules import Rule
from dist_moe.selection.choose import mask_plan, selected, settings_of
from dist_moe.selection.stored import open_masks, stored_rule
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.masks import ExpertMasks
from dist_moe.stats.settings import StatisticsConfig
from dist_moe.stats.table import risk_table
from dist_moe.store import Counts, CountsPlan, MaskPlan, MaskResults, MaskStore, StoreWriter
from dist_moe.store.origin import require_follows
from dist_moe.workflows.analyze import population_by
from dist_moe.workflows.count import counted_tokens
from dist_moe.workflows.inputs import Inputs
from dist_moe.workflows.run_dir import RunDir

CAN_BE_COUNTED = frozenset({"gates", "prefill_counts", "prefill_tokens"})
"""Tables of a counts store that can be measured in mid-run."""


@dataclass(frozen=True, slots=True)
class Revised:
    """The next revision of the masks."""

    masks: MaskStore
    num_selected: Mapping[int, int]
    """Of each batch that was counted anew, how many experts the rule selected. Of 0, its mask is the one before."""


@dataclass(frozen=True, slots=True)
class Reidentifier:
    """Counts and selects as the run's first masks were."""

    inputs: Inputs
    tokens: CountedTokens | Sampling
    micro_batch_tokens: int
    rule: Rule
    settings: StatisticsConfig
    gates: bool
    work: RunDir

    @classmethod
    def of(cls, config: Config, inputs: Inputs, first: MaskStore, work: RunDir) -> Reidentifier:
        """Read on each rank for itself what it needs.

        Raises:
            UserError: the masks' counts are not there, or were made in a way that cannot be repeated in training.
        """
        counts, wish = first.counts, "train.adjust.action reidentify"
        if others := sorted({*counts.table_names} - CAN_BE_COUNTED):
            raise UserError(
                f"{wish}: {counts.path} has {others[0]}, which cannot be measured in training: use masks of a rule "
                "that does without, or set train.adjust.action to reweight"
            )
        if config.analysis.tokens != first.counted_tokens:
            raise UserError(
                f"{wish} counts as {first.path} was counted, which is analysis.tokens {first.counted_tokens}, but here "
                f"it is {config.analysis.tokens}: set it to that"
            )
        return cls(
            inputs=inputs,
            tokens=counted_tokens(config, inputs),
            micro_batch_tokens=config.analysis.micro_batch_tokens,
            rule=stored_rule(first),
            settings=settings_of(first),
            gates="gates" in counts.table_names,
            work=work,
        )

    def __call__(
        self, model: MoEModel, before: MaskStore, number: int, batches: Sequence[int], step: int, comm: Comm
    ) -> Revised:
        """Write revision `number` of the run's masks after `step`. Called by all ranks together.

        Args:
            model: as it is.
            before: the masks of the next step, revision `number` - 1.
            number: of the revision, from 1.
            batches: those whose experts are found anew.
            step: finished steps.
            comm: all ranks.

        Raises:
            UserError: on all ranks: it cannot be written, or a batch has no counted token of one label.
        """
        found = count_rows(
            model,
            [row for batch in batches for row in self.inputs.rows(batch)],
            tokens=self.tokens,
            micro_batch_tokens=self.micro_batch_tokens,
            pad_id=self.inputs.pad_id,
            comm=comm,
            gates=self.gates,
        )
        directory = SharedDirectory(self.work.revision(number).path, comm)
        partial = RunDir(directory.partial)
        with together(comm), writing(directory.final):
            if comm.rank == 0:
                _write_counts(partial.counts, before.counts, found, batches, step)
        with together(comm):
            counts = Counts.open_whole(partial.counts)
        population = population_by(counts, self.rule, comm)
        with together(comm):
            mine = {
                batch: selected(counts, range(batch, batch + 1), self.rule, self.settings, population, progress=False)
                for batch in batches[comm.rank :: comm.size]
            }
        chosen = {batch: each for of_rank in comm.gather(mine) for batch, each in of_rank.items()}
        with together(comm), writing(directory.final):
            if comm.rank == 0:
                plan = mask_plan(counts, self.rule, self.settings)
                _write_masks(partial.masks, plan, before, chosen)
        directory.publish()
        with together(comm) as same:
            after = open_masks(self.work.revision(number).masks)
            require_follows(before, after)
            same["the digest of the new masks"] = after.digest
        return Revised(after, {batch: int(each.masks.masks_BLE.sum()) for batch, each in chosen.items()})


def _write_counts(path: Path, before: Counts, found: RoutingCounts, batches: Sequence[int], step: int) -> None:
    """The counts of the masks before, with other ones for the prompts of some batches."""
    index = before.index
    places = {batch: index.rows(batch) for batch in batches}
    rows = np.concatenate([np.arange(place.start, place.stop) for place in places.values()])
    part = np.repeat(np.arange(len(batches)), [place.stop - place.start for place in places.values()])
    risk_table(found, index.unsafe_P[rows], part, len(batches), [index.name(batch) for batch in batches])  # its error
    recounted = [*before.provenance.get("recounted", []), {"after_step": step, "batches": list(batches)}]
    plan = CountsPlan(
        index=index,
        num_experts=before.num_experts,
        experts_per_token=before.experts_per_token,
        counted_tokens=before.counted_tokens,
        layer_names=before.layer_names,
        provenance=dict(before.provenance) | {"recounted": recounted},
        tables={name: (table.dtype.name, len(table.shape)) for name, table in before.tables.items()},
        template_P=before.template_tokens,
    )
    writer = StoreWriter(path, plan, sync=False)
    for block in writer.missing:
        there = before.of_batches(block, tables=before.table_names)
        writer.write(block, _replaced(there, index.rows(block).start, found, rows))
    writer.seal()


def _replaced(counts: RoutingCounts, start: int, found: RoutingCounts, rows_P: np.ndarray) -> RoutingCounts:
    """Counts of prompts from `start` on, with those of the prompts `rows_P` that are among them from `found`."""
    here_P = rows_P - start
    among_P = (here_P >= 0) & (here_P < counts.num_prompts)
    here, there = here_P[among_P], found.of(among_P)

    def put(into: np.ndarray, values: np.ndarray) -> np.ndarray:
        changed = into.copy()
        changed[here] = values
        return changed

    return RoutingCounts(
        put(counts.counts_PLE, there.counts_PLE),
        put(counts.tokens_P, there.tokens_P),
        counts.experts_per_token,
        {name: put(table, there.tables[name]) for name, table in counts.tables.items()},
    )


def _write_masks(path: Path, plan: MaskPlan, before: MaskStore, chosen: dict[int, MaskResults]) -> None:
    """The masks before, with other ones for some batches; a batch for which the rule selects none keeps its own."""
    known = {name: kind for name, kind in plan.statistics.items() if name in before.statistic_names}
    plan = replace(plan, statistics=known, revision=before.revision, previous=before.previous).revised(before.digest)
    writer = StoreWriter(path, plan, sync=False)
    for block in writer.missing:
        writer.write(block, _block(before, block, chosen, known))
    writer.seal()


def _block(
    before: MaskStore, block: range, chosen: dict[int, MaskResults], statistics: dict[str, tuple[str, int]]
) -> MaskResults:
    rows = slice(block.start, block.stop)
    masks_BLE, signs_B3 = before.masks[rows].copy(), before.signs_B3[rows].copy()
    values = {name: before.statistics[name][rows].copy() for name in statistics}
    for batch, results in chosen.items():
        if batch in block and results.masks.masks_BLE.any():
            place = batch - block.start
            masks_BLE[place], signs_B3[place] = results.masks.masks_BLE[0], results.signs_B3[0]
            for name, array in values.items():
                array[place] = results.statistics[name][0]
    return MaskResults(masks=ExpertMasks(masks_BLE), signs_B3=signs_B3, statistics=values)


def moved(before: MaskStore, after: MaskStore, batch: int) -> Iterator[list[tuple[int, int]]]:
    """(layer, expert) of those that the batch's mask gains, and then of those that it loses."""
    old_LE, new_LE = before.masks[batch], after.masks[batch]
    for changed_LE in (new_LE & ~old_LE, old_LE & ~new_LE):
        yield [(layer, expert) for layer, expert in np.argwhere(changed_LE).tolist()]
