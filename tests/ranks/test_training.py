"""N ranks on DeepSpeed equal one plain process, and not one bit moves outside a batch's mask."""

from dataclasses import dataclass, fields, replace
from functools import cache
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from dist_moe.config.objective import ObjectiveConfig
from dist_moe.config.schema import TrainConfig
from dist_moe.data.tokens import Encoded
from dist_moe.engines.deepspeed import DeepSpeedEngine
from dist_moe.engines.fsdp import FsdpEngine
from dist_moe.engines.local import LocalEngine
from dist_moe.model.model import adopt
from dist_moe.objective.cross_entropy import Answers, CrossEntropy, Refusals
from dist_moe.objective.dpo import DPO
from dist_moe.objective.kl_to_base import KLToBase
from dist_moe.objective.router_consistency import RouterConsistency
from dist_moe.objective.router_drift import RouterDrift
from dist_moe.parallel.comm import SoloComm
from dist_moe.parallel.mesh import Mesh
from dist_moe.parallel.placement import Placement
from dist_moe.stats.masks import mask_hash
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.promise import Promise
from dist_moe.training.rounds import Rounds
from dist_moe.training.split import Split
from dist_moe.training.step import MaskedStep
from tests.ranks.harness import run_ranks
from tests.reference import ADAMW, MAX_NORM, Reference
from tests.tiny import VOCAB, E, L, random_masks, tiny_model

CPU = SoloComm(torch.device("cpu"))
RANDOM_STEPS = 4
STATE = ("master", "exp_avg", "exp_avg_sq")
DENSE = "dense"
TURNS = ("experts:2", "routers:1")


@dataclass(frozen=True)
class Case:
    family: str = "qwen3_moe"
    mode: str = "route"
    fill: str = "shrink"
    masks: str = "random"
    micro_batch_size: int | None = None
    checkpointing: bool = False
    rows: int = 8
    placement: str = "contiguous"
    ep_size: int | None = None
    engine: str = "deepspeed"
    scope: str = "all"
    zero: int = 0
    dtype: torch.dtype = torch.float32
    kl: float = 0.0
    kl_rows: str = "safe"
    cross_entropy: float = 1.0
    drift: float = 0.0
    drift_rows: str = "all"
    consistency: float = 0.0
    refusals: float = 0.0
    answers: float = 0.0
    dpo: float = 0.0
    packed: bool = False
    trains: str = "experts"
    rounds: tuple[str, ...] = ()
    compile: bool = False
    long: bool = False
    """Whether each of its features is in another case, too, so that it is of the long tail."""

    def __str__(self) -> str:
        """What differs from the first case."""
        given = ((field.name, getattr(self, field.name), field.default) for field in fields(self)[:-1])
        return " ".join(f"{name} {value}" for name, value, default in given if value != default)


CASES = [
    Case(),
    Case(mode="update"),
    Case(family="olmoe", micro_batch_size=1),
    Case(family="mixtral", mode="update", micro_batch_size=2, checkpointing=True),
    Case(masks="adversarial", checkpointing=True),
    Case(masks="adversarial", mode="update"),
    Case(masks="adversarial", rows=1),
    Case(family="mixtral", placement="balanced", long=True),
    Case(masks="adversarial", mode="update", placement="balanced", checkpointing=True, long=True),
    Case(engine="fsdp"),
    Case(engine="fsdp", masks="adversarial", mode="update", micro_batch_size=2),
    Case(engine="fsdp", family="olmoe", masks="adversarial", checkpointing=True, placement="balanced"),
    Case(engine="fsdp", family="mixtral", masks="adversarial", rows=1, mode="update", long=True),
    Case(family="olmoe", scope="unsafe", micro_batch_size=2, checkpointing=True),
    Case(family="deepseek_v3", micro_batch_size=2, placement="balanced", long=True),
    Case(family="deepseek_v3", engine="fsdp", masks="adversarial", mode="update", checkpointing=True),
    Case(family="gpt_oss", engine="fsdp", micro_batch_size=2),
    Case(family="gpt_oss", masks="adversarial", mode="update", placement="balanced", long=True),
    Case(family="gpt_oss", masks="adversarial", placement="3 + 5", micro_batch_size=2, checkpointing=True),
    Case(family="mixtral", placement="3 + 5", mode="update", engine="fsdp", long=True),
    # ZeRO-3 over the dense weights
    Case(zero=3),
    Case(zero=3, masks="adversarial", mode="update", checkpointing=True),
    Case(
        zero=3,
        family="olmoe",
        masks="adversarial",
        micro_batch_size=2,
        checkpointing=True,
        placement="balanced",
        long=True,
    ),
    Case(zero=3, family="gpt_oss", masks="adversarial", mode="update", rows=1, long=True),
    Case(zero=3, family="deepseek_v3", micro_batch_size=2),
    Case(zero=3, family="gpt_oss", fill="natural", scope="unsafe", micro_batch_size=2, checkpointing=True),
    # each token's own choice
    Case(fill="natural", scope="unsafe", placement="balanced"),
    Case(fill="natural", family="deepseek_v3", masks="adversarial", micro_batch_size=2, checkpointing=True, long=True),
    Case(fill="natural", family="olmoe", masks="adversarial", kl=20.0, scope="unsafe", ep_size=2),
    Case(fill="natural", family="gpt_oss", engine="fsdp", masks="adversarial", long=True),
    # several replicas of the experts
    Case(ep_size=1),
    Case(ep_size=1, engine="fsdp", family="olmoe", masks="adversarial", mode="update", micro_batch_size=2, long=True),
    Case(ep_size=2, masks="adversarial", placement="balanced", packed=True),
    Case(ep_size=2, masks="adversarial", mode="update", rows=1, checkpointing=True),
    Case(ep_size=2, family="olmoe", mode="update", placement="balanced", micro_batch_size=1, long=True),
    Case(ep_size=2, family="mixtral", engine="fsdp", masks="adversarial", placement="balanced", checkpointing=True),
    Case(ep_size=2, family="deepseek_v3", engine="fsdp", placement="balanced", micro_batch_size=1, long=True),
    Case(ep_size=2, family="gpt_oss", placement="3 + 5", mode="update", micro_batch_size=1, long=True),
    Case(ep_size=1, family="mixtral", masks="adversarial", mode="update", long=True),
    # bfloat16 weights, float32 gradients and state
    Case(dtype=torch.bfloat16, engine="fsdp", ep_size=1, mode="update", micro_batch_size=2),
    Case(dtype=torch.bfloat16, ep_size=2, family="gpt_oss", mode="update", placement="balanced", long=True),
    Case(ep_size=2, family="mixtral", zero=3, masks="adversarial", mode="update", checkpointing=True),
    # a divergence from the base model beside the cross-entropy
    Case(kl=20.0, mode="update", micro_batch_size=2, checkpointing=True),
    Case(kl=0.5, masks="adversarial", placement="balanced", micro_batch_size=1, long=True),
    Case(kl=0.5, masks="adversarial", rows=1, kl_rows="unsafe"),  # no row of the kind
    Case(kl=0.5, engine="fsdp", family="olmoe", scope="unsafe", kl_rows="all", checkpointing=True),
    Case(kl=20.0, cross_entropy=0.0, engine="fsdp", masks="adversarial", kl_rows="all", micro_batch_size=2, long=True),
    Case(kl=0.5, zero=3, family="deepseek_v3", kl_rows="unsafe", masks="adversarial", micro_batch_size=2),
    Case(kl=20.0, ep_size=2, family="mixtral", mode="update", micro_batch_size=1, placement="balanced", long=True),
    # terms on router logits, alone and beside others
    Case(drift=20.0, consistency=20.0, micro_batch_size=2, checkpointing=True),
    Case(
        drift=20.0,
        consistency=20.0,
        cross_entropy=0.0,
        engine="fsdp",
        masks="adversarial",
        micro_batch_size=1,
        long=True,
    ),
    Case(consistency=20.0, masks="adversarial", rows=1, drift=5.0, drift_rows="unsafe"),  # no row of the kind
    Case(
        drift=5.0, consistency=20.0, cross_entropy=0.0, zero=3, family="deepseek_v3", mode="update", micro_batch_size=2
    ),
    Case(consistency=20.0, drift=5.0, drift_rows="unsafe", kl=1.0, engine="fsdp", family="olmoe", scope="unsafe"),
    Case(
        consistency=20.0, ep_size=2, family="gpt_oss", mode="update", micro_batch_size=1, checkpointing=True, long=True
    ),
    # pairs of answers; a row in three has none
    Case(dpo=5.0, cross_entropy=0.0, micro_batch_size=2, checkpointing=True),
    Case(
        dpo=5.0,
        kl=1.0,
        kl_rows="safe",
        drift=5.0,
        consistency=5.0,
        engine="fsdp",
        scope="unsafe",
        family="olmoe",
        packed=True,
    ),
    Case(dpo=5.0, masks="adversarial", placement="balanced", rows=1, zero=3, mode="update", long=True),
    # a weight of its own for each label
    Case(cross_entropy=0.0, refusals=2.0, answers=0.5, kl=3.0, micro_batch_size=2),
    # routers, beside the experts or alone, in turns, and all dense weights
    Case(trains="experts_and_routers", micro_batch_size=2, checkpointing=True, placement="balanced"),
    Case(trains="experts_and_routers", rounds=TURNS, masks="adversarial", mode="update", ep_size=2, engine="fsdp"),
    Case(trains="experts_and_routers", rounds=TURNS, zero=3, family="deepseek_v3", kl=5.0, drift=5.0, consistency=5.0),
    Case(trains="routers", family="gpt_oss", engine="fsdp", masks="adversarial", rows=1),
    Case(trains="experts_and_routers", family="gpt_oss", zero=3, mode="update", micro_batch_size=2, drift=5.0),
    Case(trains="experts_and_dense", family="mixtral", mode="update", micro_batch_size=2, checkpointing=True, kl=1.0),
    # parts of a layer without experts, compiled
    Case(compile=True, family="olmoe", kl=0.5, micro_batch_size=2, long=True),
    Case(compile=True, engine="fsdp", mode="update", checkpointing=True, long=True),
]


def masks_of(case: Case) -> torch.Tensor:
    """bool [steps, L, E]. Adversarial for two ranks that hold four experts each."""
    if case.masks == "random":
        return random_masks(RANDOM_STEPS)
    masks = torch.zeros(8, L, E, dtype=torch.bool)
    masks[0, :, 4:] = True  # rank 0 holds no active expert
    masks[1, -1, 2] = True  # only the last layer, one expert in all
    masks[2, :, :4] = True  # all on rank 0
    masks[3, 0] = masks[3, 2] = True  # a gap in the middle
    masks[4, 1, 0] = True
    # masks[5]: a batch that trains nothing
    masks[6, 0, 7] = masks[6, 2, 0] = True  # different ranks in different layers
    masks[7] = True
    return masks


def placement_of(case: Case, ep_size: int) -> Placement:
    if case.placement == "balanced":
        return Placement.balanced(masks_of(case).numpy(), ep_size)
    if case.placement == "3 + 5" and ep_size > 1:
        owner_E = torch.tensor([1, 0, 1, 1, 0, 1, 0, 1])
        return Placement.from_owners(owner_E.expand(L, E).contiguous(), ep_size)
    return Placement.contiguous(L, E, ep_size)


def batch_rows(step: int, num_rows: int) -> list[Encoded]:
    """Rows of different lengths, so that ranks have different numbers of loss tokens."""
    generator = torch.Generator().manual_seed(step)
    rows = []
    for i in range(num_rows):
        ids = torch.randint(3, VOCAB, (9 + 2 * i,), generator=generator).tolist()
        rows.append(Encoded(tuple(ids[:4]), tuple(ids[4:]), unsafe=i % 3 == 1))
    return rows


def with_pairs(rows: list[Encoded], step: int) -> list[Encoded]:
    """Two rows in three get a rejected answer, of another length than their response."""
    generator = torch.Generator().manual_seed(1000 + step)
    made = []
    for i, row in enumerate(rows):
        ids = tuple(torch.randint(3, VOCAB, (3 + i % 4,), generator=generator).tolist())
        rejected = Encoded(row.prompt_ids, ids, row.unsafe) if i % 3 != 2 else None
        made.append(replace(row, rejected=rejected))
    return made


def worse_of(rows: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids and labels of the rejected answers, and the row that each is of."""
    ids, labels, _ = padded([row.rejected for row in rows if row.rejected])
    return ids, labels, torch.tensor([i for i, row in enumerate(rows) if row.rejected])


def padded(rows: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    width = max(len(r.prompt_ids) + len(r.response_ids) for r in rows)
    ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    for i, row in enumerate(rows):
        whole = torch.tensor(row.prompt_ids + row.response_ids)
        ids[i, : len(whole)] = whole
        labels[i, len(row.prompt_ids) : len(whole)] = whole[len(row.prompt_ids) :]
    return ids, labels, torch.tensor([row.unsafe for row in rows])


def _local(parameter: torch.Tensor) -> torch.Tensor:
    """What this rank keeps of a parameter, whoever has sharded it."""
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def snapshot(layers, optimizer):
    bits = {(layer.index, e, n): w.clone() for layer in layers for e in layer.local for n, w in layer.row(e).items()}
    for key, state in optimizer.expert_state.items():
        bits |= {(*key, name): getattr(state, name).clone() for name in ("master", "exp_avg", "exp_avg_sq", "step")}
    for name, state in optimizer.dense.state.items():
        bits[DENSE, name, "weight"] = optimizer.dense.weights[name].detach().clone()
        bits |= {(DENSE, name, part): getattr(state, part).clone() for part in (*STATE, "step")}
    return bits


def replicas_differ(mesh, layers):
    """How many weights have other bits on another replica."""
    rows = [w.reshape(-1) for layer in layers for w in layer.bank.values()]
    mine = torch.cat(rows)[None]
    everyones = mesh.replicas.gather_rows(mine, [1] * mesh.replicas.size)
    return int((everyones != mine).sum())


COLLECTIVES = ("all_reduce", "all_to_all_single", "all_gather_object", "barrier", "broadcast")


class CountingAdamW(SelectiveAdamW):
    """Keeps how many collectives each step took."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.collectives = []

    def step(self, closure=None):
        self.collectives.append(0)
        with pytest.MonkeyPatch.context() as patch:
            for name in COLLECTIVES:
                patch.setattr(dist, name, self._counted(getattr(dist, name)))
            super().step()

    def _counted(self, function):
        def call(*args, **settings):
            self.collectives[-1] += 1
            return function(*args, **settings)

        return call


def train_cases(comm, cases):
    """Run cases on this rank: per case the losses, norms, mask hashes, leaks outside the mask, and final weights."""
    return [train_case(comm, case) for case in cases]


def train_case(comm, case):
    masks = masks_of(case)
    mesh = Mesh.of(comm, case.ep_size)
    model = adopt(tiny_model(case.family, case.dtype), mesh.ep, placement_of(case, mesh.ep.size))
    if case.checkpointing:
        model.checkpoint_activations()
    rounds = Rounds.of(case.trains, case.rounds)
    if rounds.ever.dense:
        every = [name for name, _ in model.module.named_parameters()]
        model.train_dense(model.router_names if rounds.routers_only else every)
    if case.kl or case.drift or case.dpo:
        model.keep_originals(masks.any(0))
    union = torch.from_numpy(rounds.union(masks.any(0).numpy()))
    optimizer = CountingAdamW(model.layers, union, mesh, **ADAMW, max_norm=MAX_NORM, dense=model.dense)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    split = Split.of(case.rows, comm.size, model.at_once(case.micro_batch_size), packed=case.packed)
    if isinstance(comm, SoloComm):
        engine = LocalEngine(model.module, optimizer, schedule)
    elif case.engine == "fsdp":
        engine = FsdpEngine(model.module, optimizer, schedule, comm)
    else:
        engine = DeepSpeedEngine(
            model.module,
            optimizer,
            schedule,
            user_config={"zero_optimization": {"stage": case.zero, "stage3_param_persistence_threshold": 0}},
            micro_batch_size=split.micro_batch_size,
            num_micro_batches=split.num_micro_batches,
        )
        assert not engine.engine.tput_timer.config.enabled  # it would wait for the device, twice a micro-step

    def promise(batch_id):
        rows = batch_rows(int(batch_id), case.rows)
        return Promise.of(masks[int(batch_id)].numpy(), [row.unsafe for row in rows])

    objective = ObjectiveConfig(
        cross_entropy=CrossEntropy(weight=case.cross_entropy),
        kl_to_base=KLToBase(weight=case.kl, rows=case.kl_rows),
        router_drift=RouterDrift(weight=case.drift, rows=case.drift_rows),
        router_consistency=RouterConsistency(weight=case.consistency),
        refusals=Refusals(weight=case.refusals),
        answers=Answers(weight=case.answers),
        dpo=DPO(weight=case.dpo),
    )
    settings = TrainConfig(mode=case.mode, fill=case.fill, scope=case.scope, objective=objective, compile=case.compile)
    step = MaskedStep(model, optimizer, engine, comm, settings, promise)
    results, leaks, moved = [], [], 0
    for i, mask in enumerate(masks):
        trained = rounds.at(i + 1)
        before = snapshot(model.layers, optimizer)
        rows = with_pairs(batch_rows(i, case.rows), i) if case.dpo else batch_rows(i, case.rows)
        micro_batches = split.local(rows, comm.rank, pad_id=0, pairs=bool(case.dpo))
        take = step.audited if i % 3 == 1 else step  # not the last one, as FSDP's audit gives memory back
        results.append(take(str(i), mask, micro_batches, 1.0, trained))
        after = snapshot(model.layers, optimizer)
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        leaks += [
            key for key in changed if not (trained.dense if key[0] == DENSE else trained.experts and mask[key[:2]])
        ]
        moved += len(changed)
    weights = {(x.index, e, n): w.clone() for x in model.layers for e in x.local for n, w in x.row(e).items()}
    return {
        "losses": [r.loss for r in results],
        "terms": [{name: term.mean for name, term in r.terms.items()} for r in results],
        "norms": [r.grad_norm for r in results],
        "stepped": [r.num_stepped for r in results],
        "hashes": [r.mask_hash for r in results],
        "collectives": optimizer.collectives,
        "replicas_differ": replicas_differ(mesh, model.layers),
        "leaks": leaks,
        "moved": moved,
        "weights": {key: weight.float().numpy() for key, weight in weights.items()},
        "dense": {name: weight.detach().numpy().copy() for name, weight in model.dense.items()},
        "state_owner": sorted(optimizer.expert_state),
        "dense_bytes": sum(_local(parameter).nbytes for parameter in model.module.parameters()),
        "gathered_bytes": sum(p.nbytes for p in model.module.parameters() if hasattr(p, "ds_tensor")),
        "state_bytes": sum(state.num_bytes for state in optimizer.expert_state.values()),
    }


def ranks_of(case: Case) -> tuple[int, ...]:
    """On how many ranks a case runs."""
    if case.trains == "experts_and_dense":
        return (1,)
    if case.ep_size is not None:
        return (2, 4) if case.ep_size == 1 else (4,)
    return (1, 2, 4) if case.masks == "adversarial" and case.placement != "3 + 5" else (1, 2)


RUNS = [(num_ranks, number) for number, case in enumerate(CASES) for num_ranks in ranks_of(case)]


def is_long(num_ranks, number):
    """Four ranks do something else than two only where they are replicas, and no engine shards on one: what such a case
    has besides is in a case without, but for the family deepseek_v3."""
    case = CASES[number]
    on_one = num_ranks == 1 and (case.engine == "fsdp" or case.zero == 3) and case.family != "deepseek_v3"
    return case.long or on_one or (num_ranks == 4 and case.ep_size is None)


def of_runs(chosen, named=False):
    """Parametrizes a test by runs, of which some are of the long tail."""
    params = [
        pytest.param(n, i, id=f"{n} ranks {CASES[i]}" if named else None, marks=[pytest.mark.long] * is_long(n, i))
        for n, i in chosen
    ]
    return pytest.mark.parametrize(("num_ranks", "number"), params)


each_run = of_runs(RUNS, named=True)


@pytest.fixture(scope="module")
def ranks():
    """What each rank answered in a run; runs of one engine and number of ranks share their processes."""
    known = {}

    def answers(num_ranks, number):
        if (num_ranks, number) not in known:
            kind = CASES[number].engine, is_long(num_ranks, number)
            together = [i for n, i in RUNS if n == num_ranks and (CASES[i].engine, is_long(n, i)) == kind]
            cases = [CASES[i] for i in together]
            found = [train_cases(CPU, cases)] if num_ranks == 1 else run_ranks(num_ranks, train_cases, cases)
            for i, *case in zip(together, *found, strict=True):
                known[num_ranks, i] = case
        return known[num_ranks, number]

    return answers


class Expected(NamedTuple):
    """What plain training finds: (loss, norm, terms) of each step, and in the end the weights of experts and dense."""

    steps: list[tuple[float, float, dict[str, float]]]
    weights: dict[tuple[int, int, str], torch.Tensor]
    dense: dict[str, torch.Tensor]


OF_REFERENCE = (
    *("kl", "kl_rows", "cross_entropy", "drift", "drift_rows", "consistency", "refusals", "answers", "dpo"),
    *("fill", "trains"),
)


def expected_of(case: Case) -> Expected:
    """Made once for all runs that differ in what plain training does not know."""
    of_ours = (
        "micro_batch_size",
        "checkpointing",
        "placement",
        "ep_size",
        "engine",
        "zero",
        "dtype",
        "compile",
        "long",
    )
    return _expected_of(replace(case, **{name: getattr(CASES[0], name) for name in of_ours}))


@cache
def _expected_of(case: Case) -> Expected:
    weights = {name: getattr(case, name) for name in OF_REFERENCE}
    reference, steps = Reference(case.family, case.mode, case.scope, **weights), []
    for i, mask in enumerate(masks_of(case)):
        rows = batch_rows(i, case.rows)
        worse = worse_of(with_pairs(rows, i)) if case.dpo else None
        trained = Rounds.of(case.trains, case.rounds).at(i + 1)
        done = reference.step(mask, *padded(rows), worse=worse, experts=trained.experts, dense=trained.dense)
        steps.append((*done, reference.terms))
    return Expected(steps, reference.weights(), {name: w.detach() for name, w in reference.dense.items()})


CLOSE = {torch.float32: (1e-5, 1e-5, 1e-5), torch.bfloat16: (0.015, 0.01, 4e-4)}
"""Loss and norm; a weight; the mean over weights, which move by 0.0015 in the mean. bfloat16, too, is compared with a
float32 model: routing and small gradients differ here and there."""


@each_run
def test_equals_plain_transformers_and_torch_adamw(ranks, num_ranks, number):
    case, answers = CASES[number], ranks(num_ranks, number)
    close, close_weight, close_mean = CLOSE[case.dtype]
    steps, expected, dense = expected_of(case)
    rounds = Rounds.of(case.trains, case.rounds)
    for i, (mask, (loss, norm, terms)) in enumerate(zip(masks_of(case), steps, strict=True)):
        for answer in answers:
            assert answer["losses"][i] == pytest.approx(loss, abs=close)
            for name, mean in answer["terms"][i].items():
                assert mean == pytest.approx(terms[name], abs=close)
            assert answer["norms"][i] == pytest.approx(norm, abs=close)
            assert answer["hashes"][i] == mask_hash(mask.numpy() & rounds.at(i + 1).experts)
    held = [key for answer in answers for key in answer["weights"]]
    num_replicas = num_ranks // (case.ep_size or num_ranks)
    assert sorted(held) == sorted([*expected] * num_replicas)
    for answer in answers:
        weights = {key: torch.from_numpy(weight) for key, weight in answer["weights"].items()}
        for key, weight in weights.items():
            torch.testing.assert_close(weight, expected[key], rtol=0, atol=close_weight)
        assert torch.stack([(w - expected[key]).abs().mean() for key, w in weights.items()]).mean() <= close_mean
        assert answer["dense"].keys() == dense.keys()
        for name, weight in dense.items():
            found = torch.from_numpy(answer["dense"][name])
            torch.testing.assert_close(found, weight, rtol=0, atol=close_weight)
            assert torch.equal(found, torch.from_numpy(answers[0]["dense"][name]))  # the same bits on every rank


@each_run
def test_not_one_bit_moves_outside_the_mask(ranks, num_ranks, number):
    answers = ranks(num_ranks, number)
    assert all(not answer["leaks"] for answer in answers)
    assert sum(answer["moved"] for answer in answers) > 0
    assert all(answer["replicas_differ"] == 0 for answer in answers)


def test_optimizer_state_is_on_the_one_rank_that_holds_the_expert(ranks):
    union = masks_of(CASES[0]).any(0)
    owned = [set(answer["state_owner"]) for answer in ranks(2, 0)]
    assert owned[0] | owned[1] == {tuple(pair) for pair in torch.nonzero(union).tolist()}
    assert not owned[0] & owned[1]
    assert all(expert < E // 2 for _, expert in owned[0])


@of_runs([run for run in RUNS if CASES[run[1]].ep_size is not None])
def test_of_all_replicas_one_rank_owns_an_experts_state(ranks, num_ranks, number):
    owned = [tuple(key) for answer in ranks(num_ranks, number) for key in answer["state_owner"]]
    assert sorted(owned) == [tuple(pair) for pair in torch.nonzero(masks_of(CASES[number]).any(0)).tolist()]


@of_runs([run for run in RUNS if run[0] > 1])
def test_an_optimizer_step_takes_the_same_collectives_whatever_the_mask(ranks, num_ranks, number):
    """One, three more among replicas of experts, and one more if the step trains routers."""
    case = CASES[number]
    num_replicas = num_ranks // (case.ep_size or num_ranks)
    with_routers = [
        case.trains != "experts" and (not case.rounds or step % 3 == 2) for step in range(len(masks_of(case)))
    ]
    expected = [(4 if num_replicas > 1 else 1) + routers for routers in with_routers]
    for answer in ranks(num_ranks, number):
        assert answer["collectives"] == expected


@each_run
def test_state_is_8_bytes_a_parameter_of_the_experts_that_a_rank_owns_or_12_where_weights_are_rounded(
    ranks, num_ranks, number
):
    sizes, num_bytes = [], 8 if CASES[number].dtype == torch.float32 else 12
    for answer in ranks(num_ranks, number):
        num_parameters = sum(w.size for key, w in answer["weights"].items() if key[:2] in answer["state_owner"])
        assert answer["state_bytes"] == num_bytes * num_parameters
        sizes.append(len(answer["state_owner"]))
    assert CASES[number].placement != "balanced" or max(sizes) - min(sizes) <= 1


@of_runs([(n, i) for n, i in RUNS if n > 1 and (CASES[i].engine == "fsdp" or CASES[i].zero == 3)])
def test_each_rank_keeps_its_share_of_the_dense_weights(ranks, num_ranks, number):
    """But of routers that are trained: each rank has them whole, apart from the module."""
    case = CASES[number]
    module = adopt(tiny_model(case.family, case.dtype), CPU).module
    routers = () if case.trains == "experts" else (".gate.weight", ".router.weight", ".router.bias")
    whole = sum(each.nbytes for name, each in module.named_parameters() if not name.endswith(routers))
    for answer in ranks(num_ranks, number):
        assert answer["dense_bytes"] == pytest.approx(whole / num_ranks, rel=0.02)
        assert answer["gathered_bytes"] == 0
