"""A share of what training has changed: in NumPy's float64, and to the nearest value of 16 bits."""

import numpy as np
import pytest
import torch

from dist_moe.config.schema import ModelConfig
from dist_moe.model.model import load_model
from dist_moe.moe.layout import hub_layout
from dist_moe.parallel.comm import SoloComm
from dist_moe.training.save import load_experts
from dist_moe.weights.directory import read_tensors
from dist_moe.weights.export import export_checkpoint
from dist_moe.weights.scale import scaled
from dist_moe.weights.trained import TrainedExperts
from dist_moe.weights.verify import verify_checkpoint
from tests.unit.weights.conftest import TRAINED, make_trained

CPU = SoloComm(torch.device("cpu"))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def values(seed, dtype, size=4000):
    return (torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 0.1).to(dtype)


def bits(values):
    return values.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_are_the_base_and_the_trained_values_bit_for_bit(dtype):
    base, trained = values(0, dtype), values(1, dtype)
    base[:2], trained[:2] = torch.tensor([-0.0, 0.0]), torch.tensor([0.0, -0.0])
    base[2], trained[2] = 1.0, 1e-6  # in float64 too, 1 + (1e-30 - 1) would lose the end
    assert bits(scaled(base, trained, 0, dtype)) == bits(base)
    assert bits(scaled(base, trained, 1, dtype)) == bits(trained)


def test_the_trained_end_is_not_lost_where_the_base_is_much_larger():
    base, trained = torch.tensor([1.0]), torch.tensor([1e-30])
    assert float(base.double() + (trained.double() - base.double())) != float(trained.double())
    assert bits(scaled(base, trained, 1.0, torch.float32)) == bits(trained)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.99])
def test_between_the_ends_it_is_numpys_float64(alpha):
    base, trained = values(0, torch.float32), values(1, torch.float32)
    wide, new = base.numpy().astype(np.float64), trained.numpy().astype(np.float64)
    assert bits(scaled(base, trained, alpha, torch.float32)) == ((new - wide) * alpha + wide).astype("f4").tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_training_left_alone_keeps_its_bits(dtype):
    base = values(0, dtype)
    base[0] = -0.0
    assert bits(scaled(base, base.clone(), 0.3, dtype)) == bits(base)


def nearest(exact, dtype):
    """Of all finite values of a type of 16 bits, the nearest one to each; none is in the middle of two."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    grid = np.unique(every[every.isfinite()].double().numpy())
    place = np.searchsorted(grid, exact)
    below, above = grid[place - 1], grid[place]
    assert (exact - below != above - exact).all()
    return np.where(exact - below < above - exact, below, above)


@pytest.mark.parametrize(("dtype", "step"), [(torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)])
def test_sixteen_bits_are_rounded_once(dtype, step):
    """Just beside the middle of two values, float32 gives the middle, and that is rounded to the even one."""
    base = torch.zeros(4, dtype=torch.float64)
    # twice the number that is to be rounded: the share is one half
    trained = 2 * torch.tensor([1 + step, 1 + step, 1 + 3 * step, 1 + 3 * step], dtype=torch.float64)
    trained += torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64) * 2.0**-40
    found = scaled(base, trained, 0.5, dtype)
    assert (found.double().numpy() == nearest((trained / 2).numpy(), dtype)).all()
    assert not torch.equal(found, (trained / 2).to(dtype)), "torch rounds once itself"


def test_a_trained_value_of_more_bits_is_not_rounded_before_it_is_scaled():
    base, trained = values(0, torch.bfloat16), values(1, torch.float32)
    wide = base.double().numpy()
    exact = (trained.double().numpy() - wide) * 0.3 + wide
    found = scaled(base, trained, 0.3, torch.bfloat16)
    assert (found.double().numpy() == nearest(exact, torch.bfloat16)).all()
    assert not torch.equal(found, scaled(base, trained.to(torch.bfloat16), 0.3, torch.bfloat16))


@pytest.mark.parametrize("fused", [False, True])
def test_an_export_has_the_share_of_the_trained_experts_and_nothing_else(tmp_path, fused):
    trained, out = make_trained(tmp_path, fused=fused), tmp_path / "out"
    export_checkpoint(trained.base, trained.changes(0.25), out, "card")
    base, new = (load_model(ModelConfig(path=path), CPU) for path in (trained.base, out))
    for layer, after in zip(base.layers, new.layers, strict=True):
        for name, weight in layer.bank.items():
            expected = weight.numpy().copy()
            for (number, expert), rows in trained.rows.items():
                if number == layer.index:
                    wide = expected[expert].astype(np.float64)
                    expected[expert] = (rows[name].numpy().astype(np.float64) - wide) * 0.25 + wide
            assert (after.bank[name].numpy() == expected).all()
    union_LE = np.zeros((base.shape.num_layers, base.shape.num_experts), bool)
    union_LE[tuple(np.array(list(TRAINED)).T)] = True
    seen = verify_checkpoint(hub_layout(trained.base), out, union_LE)
    assert seen.holds
    assert seen.changed_experts == {*TRAINED}


def test_a_share_of_nothing_is_the_base_byte_for_byte(trained, tmp_path):
    export_checkpoint(trained.base, trained.changes(0.0), tmp_path / "out", "card")
    old, new = read_tensors(trained.base), read_tensors(tmp_path / "out")
    assert {name: each.bytes().tobytes() for name, each in new.items()} == {
        name: each.bytes().tobytes() for name, each in old.items()
    }


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_in_memory_it_is_what_an_export_has(tmp_path, stored):
    """Also where the model computes in a wider type than that of the checkpoint."""
    trained, out = make_trained(tmp_path, fused=False, dtype=stored), tmp_path / "out"
    export_checkpoint(trained.base, trained.changes(0.3), out, "card")
    model, right = (load_model(ModelConfig(path=path, dtype="float32"), CPU) for path in (trained.base, out))
    chosen_LE = torch.zeros(model.shape.num_layers, model.shape.num_experts, dtype=torch.bool)
    chosen_LE[tuple(torch.tensor(list(TRAINED)).T)] = True
    model.keep_originals(chosen_LE)
    load_experts(TrainedExperts.open(trained.experts), model.layers)
    before = [weight.clone() for layer in model.layers for weight in layer.bank.values()]
    with model.originals.scaled(0.3, stored):
        for layer, exported in zip(model.layers, right.layers, strict=True):
            assert all(torch.equal(layer.bank[name], weight) for name, weight in exported.bank.items())
    assert all(map(torch.equal, (weight for layer in model.layers for weight in layer.bank.values()), before))
