"""Other masks in the middle of a run, and batches of other weights: against plain transformers, and bit for bit.

One change of masks, so an expert that leaves the union does not come back, and one that comes had not been there. Such
a run has the same bits as one that keeps the state of all experts from the first step to the last, whoever owns it.
"""

from dataclasses import replace

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from dist_moe.config.schema import TrainConfig
from dist_moe.engines.deepspeed import DeepSpeedEngine
from dist_moe.engines.fsdp import FsdpEngine
from dist_moe.engines.local import LocalEngine
from dist_moe.model.model import adopt
from dist_moe.parallel.comm import SoloComm
from dist_moe.parallel.mesh import Mesh
from dist_moe.parallel.placement import Placement
from dist_moe.training.checkpoint_index import Layout, last_checkpoint
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.promise import Promise
from dist_moe.training.restore import load_checkpoint
from dist_moe.training.save import save_experts
from dist_moe.training.saving import CheckpointSaver
from dist_moe.training.split import Split
from dist_moe.training.state import Position, RevisionInForce, TrainState
from dist_moe.training.step import MaskedStep
from dist_moe.weights.trained import TrainedExperts
from tests.ranks.harness import run_ranks
from tests.ranks.test_training import batch_rows, padded, replicas_differ, snapshot
from tests.reference import ADAMW, MAX_NORM, Reference
from tests.tiny import random_masks, tiny_model

pytestmark = pytest.mark.timeout(1200)  # longer than the ranks' own limits
CPU = SoloComm(torch.device("cpu"))
FAMILY, ROWS, STEPS, CHANGE = "qwen3_moe", 8, 8, 4
MASKS = torch.cat([random_masks(CHANGE), random_masks(STEPS - CHANGE, seed=5)])
UNIONS = MASKS[:CHANGE].any(0), MASKS[CHANGE:].any(0)
WEIGHTS = [1.0, 0.5, 3.0, 1.0, 0.25, 1.0, 2.0, 0.0]
FIRST = TrainState.first(Position(0, 0, tuple(range(STEPS))), STEPS, RevisionInForce(0, "d"), seed=3)
LAYOUTS = {
    "one rank": (1, 1, "local"),
    "two ranks": (2, 2, "deepspeed"),
    "two replicas": (2, 1, "fsdp"),
    "two replicas of two": (4, 2, "fsdp"),
}
"""Number of ranks, of those that share a replica's experts, engine."""
KILLED = (CHANGE - 1, CHANGE, CHANGE + 1)


class Run:
    def __init__(self, comm, ep_size, engine, union):
        self.comm, self.mesh = comm, Mesh.of(comm, ep_size)
        self.placement = Placement.balanced(MASKS.numpy(), self.mesh.ep.size)
        self.model = adopt(tiny_model(FAMILY), self.mesh.ep, self.placement)
        self.optimizer = SelectiveAdamW(self.model.layers, union, self.mesh, **ADAMW, max_norm=MAX_NORM)
        self.curve = LambdaLR(self.optimizer, lambda step: 1.0)
        self.split = Split.of(ROWS, comm.size, 2)
        self.engine = {"local": self._local, "deepspeed": self._deepspeed, "fsdp": self._fsdp}[engine]()
        labels = [row.unsafe for row in batch_rows(0, ROWS)]
        promises = [Promise.of(mask.numpy(), labels) for mask in MASKS]
        self.step = MaskedStep(
            self.model,
            self.optimizer,
            self.engine,
            comm,
            TrainConfig(fill="shrink"),
            lambda number: promises[int(number)],
        )
        self.losses, self.norms = [], []

    def _local(self):
        return LocalEngine(self.model.module, self.optimizer, self.curve)

    def _deepspeed(self):
        sizes = {"micro_batch_size": 2, "num_micro_batches": self.split.num_micro_batches}
        return DeepSpeedEngine(self.model.module, self.optimizer, self.curve, user_config={}, **sizes)

    def _fsdp(self):
        return FsdpEngine(self.model.module, self.optimizer, self.curve, self.comm)

    def take(self, start, stop, *, reconciles, saves_in=None):
        for i in range(start, stop):
            if saves_in is not None and i in KILLED:
                self.saver(saves_in / str(i)).save(replace(FIRST, step=i))
            if i == CHANGE and reconciles:
                self.optimizer.reconcile(UNIONS[1])
            micro_batches = self.split.local(batch_rows(i, ROWS), self.comm.rank, pad_id=0)
            take = self.step.audited if i == CHANGE + 1 else self.step
            result = take(str(i), MASKS[i], micro_batches, WEIGHTS[i])
            self.losses.append(result.loss)
            self.norms.append(result.grad_norm)

    def saver(self, root):
        layout = Layout.of(self.engine.name, self.mesh, self.placement)
        arguments = {"comm": self.comm, "facts": {}, "layout": layout, "keep": 2, "asynchronous": False}
        return CheckpointSaver(root=root, optimizer=self.optimizer, schedule=self.curve, **arguments)

    def answer(self):
        bits = {key: value.numpy() for key, value in snapshot(self.model.layers, self.optimizer).items()}
        return {
            "losses": self.losses,
            "norms": self.norms,
            "bits": bits,
            "changed": self.optimizer.changed,
            "owned": list(self.optimizer.expert_state),
            "replicas_differ": replicas_differ(self.mesh, self.model.layers),
        }


def union_after(step):
    return UNIONS[step > CHANGE]


def whole(comm, layout, root):
    run = Run(comm, *LAYOUTS[layout][1:], UNIONS[0])
    before = list(run.optimizer.expert_state)
    run.take(0, STEPS, reconciles=True, saves_in=root / layout)
    save_experts(root / layout / "experts", run.model.layers, run.optimizer, comm, {})
    return {"owned_before": before, **run.answer()}


def all_state_kept(comm, layout, root):
    run = Run(comm, *LAYOUTS[layout][1:], UNIONS[0] | UNIONS[1])
    run.take(0, STEPS, reconciles=False)
    return run.answer()


def resumed(comm, layout, root, step, before=None):
    run = Run(comm, *LAYOUTS[layout][1:], union_after(step))
    found = last_checkpoint(root / (before or layout) / str(step), {})
    assert found is not None
    load_checkpoint(found, run.optimizer, run.curve)
    run.take(step, STEPS, reconciles=True)
    return run.answer()


def run_all(comm, runs):
    return [function(comm, *arguments) for function, *arguments in runs]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("revisions")


@pytest.fixture(scope="module")
def results(root):
    """What each rank answered, by (function, layout, more)."""
    found = {}
    for num_ranks in (4, 2, 1):
        layouts = [name for name, (num, *_) in LAYOUTS.items() if num == num_ranks]
        runs = [(f, layout, root) for layout in layouts for f in (whole, all_state_kept)]
        runs += [(resumed, layout, root, step) for layout in layouts for step in KILLED]
        if num_ranks == 1:
            runs += [(resumed, "one rank", root, step, "two replicas of two") for step in KILLED]
        answers = [run_all(CPU, runs)] if num_ranks == 1 else run_ranks(num_ranks, run_all, runs)
        found |= {(f, layout, *more): of for (f, layout, _, *more), *of in zip(runs, *answers, strict=True)}
    return found


def together(answers):
    """All ranks' bits."""
    return {key: bits for answer in answers for key, bits in answer["bits"].items()}


def same_bits(some, others, keys):
    some, others = together(some), together(others)
    return keys and all((some[key] == others[key]).all() for key in keys)


each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def test_some_experts_stay_some_leave_and_some_come():
    assert all((x & y).any() for x in (UNIONS[0], ~UNIONS[0]) for y in (UNIONS[1], ~UNIONS[1]))


@each_layout
def test_equals_plain_transformers_with_an_adamw_for_each_expert_of_the_union(results, layout):
    answers, reference = results[whole, layout], Reference(FAMILY, "route")
    for i, mask in enumerate(MASKS):
        if i == CHANGE:
            reference.reconcile(UNIONS[1])
        loss, norm = reference.step(mask, *padded(batch_rows(i, ROWS)), WEIGHTS[i])
        assert all(answer["losses"][i] == pytest.approx(loss, abs=1e-5) for answer in answers)
        assert all(answer["norms"][i] == pytest.approx(norm, abs=1e-5) for answer in answers)
    bits = together(answers)
    for key, expected in reference.weights().items():
        torch.testing.assert_close(torch.from_numpy(bits[key]), expected, rtol=0, atol=1e-5)


@each_layout
def test_equals_bit_for_bit_a_run_that_keeps_all_state(results, layout):
    some, others = results[whole, layout], results[all_state_kept, layout]
    assert [answer["losses"] for answer in some] == [answer["losses"] for answer in others]
    assert same_bits(some, others, together(some).keys())
    owned = [tuple(key) for answer in some for key in answer["owned"]]
    assert sorted(owned) == [tuple(key) for key in torch.nonzero(UNIONS[1]).tolist()]
    assert all(answer["replicas_differ"] == 0 for answer in some)


@each_layout
def test_owners_are_those_that_a_run_of_the_new_union_begins_with(results, layout):
    num_ranks, ep_size, _ = LAYOUTS[layout]
    numbers = [len(answer["owned"]) for answer in results[whole, layout]]
    placement = Placement.balanced(MASKS.numpy(), ep_size)
    assert numbers == placement.num_owned(UNIONS[1], num_ranks // ep_size)


def test_some_state_has_gone_to_another_replica(results):
    answers = results[whole, "two replicas"]
    was, now = ([set(map(tuple, answer[when])) for answer in answers] for when in ("owned_before", "owned"))
    assert was[0] & now[1]
    assert was[1] & now[0]


@each_layout
@pytest.mark.parametrize("step", KILLED)
def test_gone_on_from_a_checkpoint_at_the_change_has_the_same_bits(results, layout, step):
    second, undisturbed = results[resumed, layout, step], results[whole, layout]
    for some, others in zip(second, undisturbed, strict=True):
        assert some["losses"] == others["losses"][step:]
        assert some["owned"] == others["owned"]
        assert sorted(some["changed"]) == sorted(others["changed"])
    assert same_bits(second, undisturbed, together(undisturbed).keys())
    assert together(second).keys() == together(undisturbed).keys()


@pytest.mark.parametrize("step", KILLED)
def test_resumed_on_another_layout_is_the_same_within_rounding(results, step):
    bits = together(results[resumed, "one rank", step, "two replicas of two"])
    for key, expected in together(results[whole, "one rank"]).items():
        assert abs(bits[key] - expected).max() <= 1e-5, key


@each_layout
def test_all_experts_that_have_stepped_are_saved_those_that_left_too(results, root, layout):
    saved = TrainedExperts.open(root / layout / "experts")
    stepped = MASKS[: STEPS - 1].any(0)  # the last batch weighs nothing
    changed = {tuple(key) for answer in results[whole, layout] for key in answer["changed"]}
    assert saved.experts == sorted(changed)
    assert changed <= {tuple(key) for key in torch.nonzero(stepped).tolist()}
    assert changed & {tuple(key) for key in torch.nonzero(UNIONS[0] & ~UNIONS[1]).tolist()}
    bits = together(results[whole, layout])
    for (layer, expert), weights in saved.weights():
        for name, weight in weights.items():
            assert (weight.numpy() == bits[layer, expert, name]).all()
    base = {key: w for key, w in Reference(FAMILY, "route").weights().items() if key[:2] not in changed}
    assert all((bits[key] == weight.numpy()).all() for key, weight in base.items())
