"""What grows with the number of batches: each case prepares its input, and gives what is timed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np

from dist_moe.config.schema import Config
from dist_moe.data.batches import plan_batches
from dist_moe.data.encode import encode
from dist_moe.data.rows import read_prompts
from dist_moe.data.tokens import tokens_hash
from dist_moe.evaluation.groups import groups_of
from dist_moe.evaluation.measures import Resampling
from dist_moe.parallel.placement import Placement
from dist_moe.report import views
from dist_moe.report.page.contents import PageContents, RunContents
from dist_moe.report.page.page import page
from dist_moe.report.plots import write_plots
from dist_moe.selection.choose import population_of, selected, sums_of
from dist_moe.selection.statistics import batch_results
from dist_moe.stats.evidence import Population
from dist_moe.stats.settings import StatisticsConfig
from dist_moe.stats.specificity import category_specificity, union_growth
from dist_moe.store import MaskStore
from dist_moe.training.ledger import check_ledger
from dist_moe.training.promise import stored_promises
from dist_moe.training.revisions import MaskRevisions
from dist_moe.training.rounds import Rounds
from dist_moe.training.schedule import EpochSchedule
from dist_moe.training.state import Done, TrainState
from dist_moe.training.steps import read_steps
from tools.growth import made, start

Work = Callable[[], object]
TESTED = 10
"""Statistics are computed for one in so many batches: each batch takes the same time."""


class Given:
    """Inputs of one number of batches; each is made when it is first asked for."""

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)

    @cached_property
    def masks_path(self) -> Path:
        return made.stores(self.folder / "one", self.num_batches)

    @property
    def masks(self) -> MaskStore:
        """Opened anew, so that nothing of it has been read."""
        return MaskStore.open_whole(self.masks_path)

    @cached_property
    def masks_BLE(self) -> np.ndarray:
        return self.masks.masks[:]

    @cached_property
    def others_path(self) -> Path:
        return made.other_stores(self.folder / "other", self.masks_path)

    @cached_property
    def schedule(self) -> EpochSchedule:
        return EpochSchedule(self.num_batches, 1, 0)

    @cached_property
    def states(self) -> tuple[TrainState, TrainState, list[int]]:
        """Before the first step and after the last one, and the batches in their order."""
        masks = MaskRevisions((self.masks,))
        state = first = TrainState.first(self.schedule.begin(), self.num_batches, masks[0], 0)
        order = []
        while (planned := self.schedule.next(state)) is not None:
            order.append(planned.batch)
            state = state.after(planned.step, planned.position, masks[0], Done(500, 100, made.BATCH_SIZE))
        return first, state, order

    @cached_property
    def rows_path(self) -> Path:
        return made.rows_file(self.folder / "rows.jsonl", self.num_batches)

    @cached_property
    def counted_run(self) -> Config:
        (self.folder / "start").mkdir()
        return start.counted_run(self.folder / "start", self.rows_path)

    @cached_property
    def metrics(self) -> Path:
        return made.metrics(self.folder / "metrics.jsonl", self.num_batches, self.states[2])

    def close(self) -> None:
        self._folder.cleanup()


def reading(given: Given) -> Work:
    path = given.rows_path
    return lambda: read_prompts([path], "No.")


def tokens(given: Given) -> Work:
    rows, tokenizer = read_prompts([given.rows_path], "No.").prompts, made.tokenizer()
    return lambda: tokens_hash(encode(rows, tokenizer, 512).rows)


def first_step(given: Given) -> Work:
    return start.first_step(given.counted_run, keeps=True)


def first_step_of_made_rows(given: Given) -> Work:
    return start.first_step(given.counted_run, keeps=False)


def pairs(given: Given) -> Work:
    rows = made.prompts(given.num_batches)
    return lambda: plan_batches(rows, made.BATCH_SIZE, 0.5, 0)


def large_pairs(given: Given) -> Work:
    rows = made.prompts(given.num_batches, rows_per_pair=max(1, given.num_batches // 8))
    return lambda: plan_batches(rows, made.BATCH_SIZE, 0.5, 0)


def select(given: Given) -> Work:
    counts = given.masks.counts

    def work() -> None:
        population = population_of(sums_of(counts, batches, made.RULE) for batches in counts.steps())
        for batches in counts.steps():
            selected(counts, batches, made.RULE, made.UNTESTED, population, progress=False)

    return work


def statistics(given: Given) -> Work:
    index = given.masks.counts.index.of(range(max(1, given.num_batches // TESTED)))
    counts = made.routing(index.num_prompts, 1)
    nothing = Population(np.zeros((1, 1), np.int64), np.zeros((1, 1)), np.zeros(made.NUM_LAYERS))
    settings = StatisticsConfig()
    return lambda: batch_results(counts, index, made.RULE, settings, 0, nothing, show_progress=False)


def specificity(given: Given) -> Work:
    masks_BLE, categories = given.masks_BLE, given.masks.categories
    return lambda: category_specificity(masks_BLE, categories, 1000, np.random.default_rng(0))


def union(given: Given) -> Work:
    masks_BLE = given.masks_BLE
    return lambda: union_growth(masks_BLE)


def view(name: str, *words: object) -> Callable[[Given], Work]:
    def case(given: Given) -> Work:
        given.masks  # noqa: B018 (made now)
        return lambda: getattr(views, name)(given.masks, *words)

    return case


def diff(given: Given) -> Work:
    other = given.others_path
    return lambda: views.diff(given.masks, MaskStore.open_whole(other))


def plots(given: Given) -> Work:
    given.masks  # noqa: B018 (made now)
    return lambda: write_plots(given.masks, given.folder / "plots")


def ledger(given: Given) -> Work:
    masks, (first, last, _) = MaskRevisions((given.masks,)), given.states
    return lambda: check_ledger(given.metrics, given.schedule, masks, Rounds(), first, last)


def steps(given: Given) -> Work:
    metrics = given.metrics
    return lambda: read_steps(metrics)


def promises(given: Given) -> Work:
    promise, ids = stored_promises(given.masks), made.plan(given.num_batches).index.ids
    return lambda: [promise(batch_id) for batch_id in ids]


def placement(given: Given) -> Work:
    masks_BLE = given.masks_BLE
    return lambda: Placement.balanced(masks_BLE, 8)


def evaluation(given: Given) -> Work:
    rows = made.evaluated(given.num_batches)
    return lambda: groups_of(rows, ["phrases"], Resampling(2000, 0))


def report(given: Given) -> Work:
    steps = read_steps(given.metrics)

    def work() -> None:
        masks = given.masks
        run = RunContents(
            path=given.folder, config=None, masks=masks, later_masks=(), counts=masks.counts, training=None,
            steps=steps, adjustments=(), evaluation=None, curve=None, prompts={}, verification=None, notes=(),
        )  # fmt: skip
        page(PageContents(runs=(run,), comparisons=()))

    return work


CASES: dict[str, Callable[[Given], Work]] = {
    "reading a file of rows": reading,
    "rows as tokens, and their hash": tokens,
    "start of train, first": first_step_of_made_rows,
    "start of train, rows kept": first_step,
    "batches of rows in pairs": pairs,
    "batches of rows in large pairs": large_pairs,
    "select, without statistics": select,
    "statistics of every tenth batch": statistics,
    "category specificity": specificity,
    "growth of the union": union,
    "inspect summary": view("summary"),
    "inspect layers": view("layers"),
    "inspect expert": view("expert", 0, 0),
    "inspect aggregated": view("aggregated"),
    "inspect category": view("category", "category 0"),
    "inspect categories": view("categories"),
    "inspect growth": view("growth"),
    "inspect diff": diff,
    "inspect diff threshold=0.2": view("diff_rule", {"threshold": "0.2"}),
    "inspect plots": plots,
    "placement on 8 ranks": placement,
    "what the monitor reads of the masks": promises,
    "check of metrics.jsonl": ledger,
    "reading metrics.jsonl": steps,
    "tables of an evaluation": evaluation,
    "report page": report,
}
