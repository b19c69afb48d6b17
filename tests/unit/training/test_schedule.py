"""What comes when, and what metrics.jsonl proves of it, against a plain loop over epochs."""

import json
from dataclasses import asdict, dataclass
from types import MappingProxyType, SimpleNamespace

import pytest

from dist_moe.artefacts import read_sealed, write_sealed
from dist_moe.errors import UserError
from dist_moe.training.adjustments import AdjustedBatch, Adjustment
from dist_moe.training.ledger import check_ledger
from dist_moe.training.rounds import Rounds
from dist_moe.training.schedule import EpochSchedule
from dist_moe.training.state import Done, RevisionInForce, TrainState
from tests.wiring import order

B, EPOCHS, SEED = 5, 3, 11
SCHEDULE = EpochSchedule(B, EPOCHS, SEED)
ROWS = [16, 16, 12, 16, 9]


REVISIONS = [RevisionInForce(0, "digest 0"), RevisionInForce(1, "digest 1")]


ROUNDS = Rounds.of("experts_and_routers", ("experts:2", "routers:1"))
TURNS = ("experts", "experts", "routers")


class Masks:
    """The second revision from step 8 on."""

    first = SimpleNamespace(batch_ids=[f"batch {b}" for b in range(B)])

    def at(self, step):
        return REVISIONS[step >= 8]


@dataclass(frozen=True)
class Sealed:
    state: TrainState


def adjustment(step, changes):
    """Batch -> weight and repeats from this step on."""
    batches = [
        AdjustedBatch(
            batch=b,
            batch_id=f"batch {b}",
            category="c",
            value=None,
            is_weak=b in changes,
            weight=changes.get(b, (1.0, 0))[0],
            weight_before=1.0,
            repeats=changes.get(b, (1.0, 0))[1],
            experts_in=[],
            experts_out=[],
        )
        for b in range(B)
    ]
    return Adjustment(
        step=step, measure="loss_safe", below=None, above=1.0, action="both", revision=None, batches=tuple(batches)
    )


def walk(adjustments=MappingProxyType({})):
    """All states of a run, the first one included, and its metrics; adjustments by the step that they follow."""
    state = TrainState.first(SCHEDULE.begin(), B, REVISIONS[0], SEED)
    states, lines = [state], []
    while SCHEDULE.next(state) is not None:
        if state.step in adjustments:
            state = adjustments[state.step].applied(state)
        planned = SCHEDULE.next(state)
        done = Done(tokens=100 + planned.step, loss_tokens=50, rows=ROWS[planned.batch])
        state = state.after(planned.step, planned.position, Masks().at(planned.step), done)
        states.append(state)
        lines.append(
            {
                "step": planned.step,
                "epoch": planned.epoch,
                "batch": planned.batch,
                "batch_id": f"batch {planned.batch}",
                "mask_revision": state.masks.number,
                "trains": TURNS[(planned.step - 1) % 3],
                "weight": state.batch_weights[planned.batch],
                "num_tokens": done.tokens,
                "num_loss_tokens": done.loss_tokens,
                "num_rows": done.rows,
            }
        )
    return states, lines


def test_every_batch_once_an_epoch_in_the_seeds_order():
    states, lines = walk()
    expected = [(e, int(b)) for e in range(EPOCHS) for b in order(B, SEED, e)]
    assert [(line["epoch"], line["batch"]) for line in lines] == expected
    assert [state.step for state in states] == list(range(B * EPOCHS + 1))
    assert states[-1].done.rows == EPOCHS * sum(ROWS)
    assert states[-1].done.tokens == sum(100 + step for step in range(1, B * EPOCHS + 1))


def test_any_state_that_was_written_and_read_goes_on_alike(tmp_path):
    states, _ = walk()
    for state, following in zip(states, [*states[1:], None], strict=True):
        file = tmp_path / "state.json"
        write_sealed(file, "a state", 1, asdict(Sealed(state)))
        read = read_sealed(file, "a state", 1, Sealed, "")[0].state
        assert read == state
        planned = SCHEDULE.next(read)
        assert (planned and planned.position) == (following and following.position)


def test_the_ledger_proves_what_was_done(tmp_path):
    states, lines = walk()
    check(tmp_path, lines, states)


def swapped(lines):
    lines[2]["batch_id"], lines[3]["batch_id"] = lines[3]["batch_id"], lines[2]["batch_id"]


@pytest.mark.parametrize(
    "harm",
    [
        swapped,
        lambda lines: lines.pop(),
        lambda lines: lines.pop(4),
        lambda lines: lines.append(lines[-1]),
        lambda lines: lines[6].update(mask_revision=1),
        lambda lines: lines[8].update(mask_revision=0),
        lambda lines: lines[8].update(num_rows=8),
        lambda lines: lines[2].update(trains="experts"),
        lambda lines: lines[8].update(weight=2.0),
        lambda lines: lines[8].pop("num_tokens"),
    ],
)
def test_the_ledger_of_another_run_proves_nothing(tmp_path, harm):
    states, lines = walk()
    harm(lines)
    with pytest.raises(UserError, match="does not follow the run's order of batches, so it proves nothing"):
        check(tmp_path, lines, states)


def check(tmp_path, lines, states, adjustments=()):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    check_ledger(metrics, SCHEDULE, Masks(), ROUNDS, states[0], states[-1], adjustments)


def test_batches_that_are_repeated_come_so_often_in_each_epoch():
    repeats = (1, 3, 1, 2, 1)
    schedule = EpochSchedule(B, EPOCHS, SEED, repeats)
    state = TrainState.first(schedule.begin(), B, REVISIONS[0], SEED)
    epochs = [[] for _ in range(EPOCHS)]
    while (planned := schedule.next(state)) is not None:
        assert schedule.total(state) == schedule.num_steps == EPOCHS * sum(repeats)
        epochs[planned.epoch].append(planned.batch)
        state = state.after(planned.step, planned.position, REVISIONS[0], Done())
    turns = [b for b in range(B) for _ in range(repeats[b])]
    assert epochs == [[turns[i] for i in order(len(turns), SEED, epoch)] for epoch in range(EPOCHS)]


TOKENS = (7, 3, 11, 2, 5)


def steps_until(batches, budget):
    """How many steps it takes, by adding up."""
    done = 0
    for step, batch in enumerate(batches, 1):
        done += TOKENS[batch]
        if done >= budget:
            return step
    return len(batches)


@pytest.mark.parametrize("repeats", [(1, 1, 1, 1, 1), (1, 3, 1, 2, 1)])
@pytest.mark.parametrize("more", [(), (2, 2, 0)])
def test_a_budget_ends_a_run_with_the_first_step_that_reaches_it(repeats, more):
    """Also where an adjustment after the fourth step adds others."""
    turns = [b for b in range(B) for _ in range(repeats[b])]
    planned = [turns[i] for epoch in range(EPOCHS) for i in order(len(turns), SEED, epoch)]
    coming = [*planned[:4], *more, *planned[4:]]
    for budget in range(1, EPOCHS * sum(TOKENS[b] for b in turns) + 1):
        schedule = EpochSchedule(B, EPOCHS, SEED, repeats, budget, TOKENS)
        schedule.require_enough()
        assert schedule.num_steps == steps_until(planned, budget)
        state, seen, so_far = TrainState.first(schedule.begin(), B, REVISIONS[0], SEED), [], planned
        while (following := schedule.next(state)) is not None:
            if state.step == 4:
                state, so_far = state.adjusted([1.0] * B, more), coming
                following = schedule.next(state)
            assert schedule.total(state) == steps_until(so_far, budget)
            assert schedule.added(state) == len(so_far) - len(planned)
            seen.append(following.batch)
            state = state.after(following.step, following.position, REVISIONS[0], Done(tokens=TOKENS[following.batch]))
        assert seen == so_far[: steps_until(so_far, budget)]
        assert schedule.total(state) == len(seen)
    with pytest.raises(UserError, match=r"raise train.epochs, or lower train.max_tokens"):
        EpochSchedule(B, EPOCHS, SEED, repeats, budget + 1, TOKENS).require_enough()


ADJUSTED = {7: adjustment(7, {0: (2.0, 1), 3: (4.0, 2)}), 10: adjustment(10, {0: (2.0, 0), 3: (8.0, 1)})}


def test_an_adjustment_lets_batches_come_next_and_is_part_of_the_proof(tmp_path):
    states, lines = walk(ADJUSTED)
    planned = [int(b) for e in range(EPOCHS) for b in order(B, SEED, e)]
    expected = [*planned[:7], 0, 3, 3, 3, *planned[7:]]
    assert [line["batch"] for line in lines] == expected
    assert [line["weight"] for line in lines] == [
        1.0 if step < 7 or b not in (0, 3) else 2.0 if b == 0 else (4.0 if step < 10 else 8.0)
        for step, b in enumerate(expected)
    ]
    assert SCHEDULE.total(states[-1]) == B * EPOCHS + 4
    check(tmp_path, lines, states, ADJUSTED.values())
    for wrong in ((), [ADJUSTED[7]], [ADJUSTED[7], adjustment(10, {0: (2.0, 0), 3: (7.0, 1)})]):
        with pytest.raises(UserError, match="proves nothing"):
            check(tmp_path, lines, states, wrong)
