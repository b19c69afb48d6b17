"""Compiled parts in training steps: compiled once for all lengths, as near to float64, outside the mask bit for bit."""

import copy
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from dist_moe.config.schema import Config, DataConfig, ModelConfig, TrainConfig
from dist_moe.conformance.compiling import refuse_compiling
from dist_moe.conformance.sizes import E, build
from dist_moe.data.tokens import Encoded, collate
from dist_moe.engines.local import LocalEngine
from dist_moe.errors import UserError
from dist_moe.model.model import adopt
from dist_moe.moe.compiled import CompiledParts, dense_parts
from dist_moe.parallel.comm import SoloComm
from dist_moe.parallel.mesh import Mesh
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.promise import Promise
from dist_moe.training.step import MaskedStep
from tests.checkpoint import save_checkpoint

pytestmark = pytest.mark.timeout(900)  # g++ compiles dozens of files, which on a busy machine has taken minutes
CPU = SoloComm(torch.device("cpu"))
LENGTHS = [(2 + i % 4, 8 + 3 * i) for i in range(20)]
"""Rows, and tokens of the longest."""


def batch_of(seed, rows, length):
    generator = torch.Generator().manual_seed(seed)
    lengths = [max(4, length - 2 * i) for i in range(rows)]
    ids = [torch.randint(3, 120, (n,), generator=generator).tolist() for n in lengths]
    return collate([Encoded(tuple(i[:2]), tuple(i[2:]), bool(n % 2)) for n, i in enumerate(ids)], pad_id=0)


class Run:
    """Steps of a model; each trains the experts of one mask."""

    def __init__(self, family="olmoe", *, checkpointing=False, **settings):
        self.model = adopt(build(family), CPU)
        if checkpointing:
            self.model.checkpoint_activations()
        shape = (self.model.shape.num_layers, E)
        self.mask = torch.rand(shape, generator=torch.Generator().manual_seed(7)).argsort(1) < 2
        optimizer = SelectiveAdamW(self.model.layers, self.mask, Mesh.one_replica(CPU), lr=1e-2)
        engine = LocalEngine(self.model.module, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0))
        train = TrainConfig(compile=True) if not settings else TrainConfig(**settings)
        self.step = MaskedStep(self.model, optimizer, engine, CPU, train, lambda _: self.promise)

    def __call__(self, seed, rows, length):
        batch = batch_of(seed, rows, length)
        self.promise = Promise.of(self.mask.numpy(), batch.is_unsafe[:, 0].tolist())
        return self.step("the batch", self.mask, [batch]).loss

    @property
    def weights(self):
        dense = {name: tensor.clone() for name, tensor in self.model.module.state_dict().items()}
        return dense | {layer.index: layer.flat_SN.clone() for layer in self.model.layers}


@pytest.fixture(scope="module")
def compiled():
    """A run of all lengths, with the number of graphs after each step."""
    torch._dynamo.reset()
    counters.clear()
    run, graphs = Run(), []
    before = run.weights
    for seed, (rows, length) in enumerate(LENGTHS):
        run(seed, rows, length)
        graphs.append(counters["stats"]["unique_graphs"])
    return run, graphs, before


def test_rows_of_any_length_are_compiled_once(compiled):
    _, graphs, _ = compiled
    assert graphs[0] > 0
    assert set(graphs) == {graphs[0]}


def test_attention_and_norms_are_compiled_and_no_experts(compiled):
    names = {name.rpartition(".")[2] for name, _ in dense_parts(compiled[0].model.module)}
    assert names == {"self_attn", "input_layernorm", "post_attention_layernorm"}


def test_no_bit_outside_the_mask_moves(compiled):
    run, _, before = compiled
    after = run.weights
    for layer in run.model.layers:
        moved = (after.pop(layer.index) != before[layer.index]).any(1)
        assert moved.tolist() == run.mask[layer.index].tolist()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


@pytest.mark.long
def test_other_first_rows_and_another_compilation_give_the_same_bits(compiled):
    with inductor.patch(force_disable_caches=True):
        results = []
        for first in ((2, 5), (6, 90)):
            torch._dynamo.reset()
            run = Run()
            with torch.no_grad(), run.step.compiled.in_force():
                run.model.module(**batch_of(99, *first).inputs)
            losses = [run(seed, rows, length) for seed, (rows, length) in enumerate(LENGTHS[:4])]
            results.append((losses, run.weights))
    (losses, weights), (again, others) = results
    assert losses == again
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())


def test_recomputed_activations_give_the_same_bits():
    losses = [[Run(checkpointing=c, compile=True)(3, 4, 20) for _ in range(2)] for c in (False, True)]
    assert len({*losses[0], *losses[1]}) == 1


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.long)])
def test_it_is_as_near_to_float64_as_without(dtype):
    """The reference is plain transformers with eager experts."""
    plain, ids = build("olmoe"), torch.randint(3, 120, (3, 25), generator=torch.Generator().manual_seed(1))
    ours = adopt(copy.deepcopy(plain).to(dtype), CPU)

    def logits(module):
        with torch.no_grad():
            return module(input_ids=ids, use_cache=False).logits.double()

    right, eager = logits(plain.to(dtype).double()), logits(ours.module)
    with CompiledParts(ours.module).in_force():
        found = logits(ours.module)
    assert not torch.equal(found, eager)  # it is another computation
    assert (found - right).norm() < 1.2 * (eager - right).norm()
    assert torch.equal(logits(ours.module), eager)  # and only while it is in force


def test_losses_are_those_without():
    with_it, without = ([run(s, *LENGTHS[s]) for s in range(3)] for run in (Run(compile=True), Run(compile=False)))
    assert with_it == pytest.approx(without, rel=1e-5)


def config_of(path, **train):
    return Config(
        run_dir=path / "run", model=ModelConfig(path=path), data=DataConfig(paths=(path,)), train=TrainConfig(**train)
    )


def test_what_cannot_be_compiled_is_refused_by_name(tmp_path):
    path = tmp_path / "model"
    save_checkpoint(path, "olmoe")
    config = config_of(path)
    with pytest.raises(
        UserError, match=r"^train.compile: ZeRO-3 .* take the engine fsdp, or set train.compile to false$"
    ):
        refuse_compiling(config, CPU.device, sharded=True)
    liger = replace(config, model=replace(config.model, kernels="liger"))
    with pytest.raises(UserError, match=r"^train.compile: model.kernels is liger, for the same parts: choose one"):
        refuse_compiling(liger, CPU.device, sharded=False)
    dense = config_of(path, trains="experts_and_dense")
    with pytest.raises(
        UserError, match=r"^train.compile is for dense weights that stay as they are, .*set train.compile"
    ):
        refuse_compiling(dense, CPU.device, sharded=False)
    torch._dynamo.reset()
    nowhere, refused = (
        {"force_disable_caches": True, "cpp.cxx": ("/nowhere/g++",)},
        r"on this machine, .*'olmoe': .*: set",
    )
    with inductor.patch(nowhere), pytest.raises(UserError, match=refused):
        refuse_compiling(config, CPU.device, sharded=False)
    torch._dynamo.reset()
    refuse_compiling(config, CPU.device, sharded=False)
