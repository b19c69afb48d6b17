"""Nothing that is set for a batch stays set: not after it, not after an exception, not in a batch inside another."""

import pytest
import torch

from dist_moe.config.schema import TrainConfig
from dist_moe.data.tokens import Encoded, collate
from dist_moe.engines.local import LocalEngine
from dist_moe.evaluation.score import Scorable, Subject, score_rows
from dist_moe.measure.gradients import expert_gradients
from dist_moe.measure.passes import count_generated, count_given
from dist_moe.model.generate import Sampling
from dist_moe.model.model import MoEModel, adopt
from dist_moe.moe.bank import ExpertLayer
from dist_moe.moe.route_mask import RoutePlan, routable
from dist_moe.parallel.comm import SoloComm
from dist_moe.parallel.mesh import Mesh
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.price import route_price
from dist_moe.training.promise import Promise
from dist_moe.training.step import MaskedStep, route_plan
from tests.tiny import L, random_masks, tiny_model, token_ids

CPU = SoloComm(torch.device("cpu"))
MASK = random_masks(1)[0]
IDS = token_ids(5)
LABELS = [False, True, True, False]
ROWS = [Encoded(tuple(ids[:4]), tuple(ids[4 : 12 - i]), LABELS[i]) for i, ids in enumerate(IDS.tolist())]
WHOLE = torch.ones_like(IDS, dtype=torch.bool)


class FailureError(Exception):
    pass


def state(model: MoEModel) -> list:
    """All that can be set for a batch, and what the model computes with it."""
    layers = [(layer.live_T, layer.anchor, layer.grads) for layer in model.layers]
    mask, tap = model.route_mask, model.tap
    applied = [each is not None for each in mask.applied]  # now, as the pass below changes it
    masks = [mask.plan, mask.masked_T, applied, mask._routing, tap._tally, tap._first_key_T]
    modes = torch._C._len_torch_function_stack()
    logits = model.module(input_ids=IDS, use_cache=False).logits
    required = [logits.requires_grad, *(p.requires_grad for p in model.module.parameters())]
    return [layers, masks, modes, required, logits.tolist()]


def stepping(model: MoEModel) -> MaskedStep:
    optimizer = SelectiveAdamW(model.layers, MASK, Mesh.one_replica(CPU), lr=1e-2)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    engine = LocalEngine(model.module, optimizer, schedule)
    settings = TrainConfig(mode="route", scope="unsafe")
    promise = Promise.of(MASK.numpy(), LABELS)
    return MaskedStep(model, optimizer, engine, CPU, settings, lambda batch_id: promise)


def step(model: MoEModel) -> None:
    stepping(model)("the batch", MASK, [collate(ROWS[:2], 0), collate(ROWS[2:], 0)])


def price(model: MoEModel) -> None:
    route_price(model, [collate(ROWS, 0)], route_plan(TrainConfig(scope="unsafe"), MASK), CPU)


def generate(model: MoEModel) -> None:
    count_generated(model, ROWS, Sampling(max_new_tokens=3, temperature=0, seed=0, eos_ids=()), 0, gates=True)


def evaluate(model: MoEModel) -> None:
    score_rows(
        {"after": Subject(model)},
        [Scorable(row, (row,)) for row in ROWS],
        max_new_tokens=3,
        micro_batch_tokens=1000,
        pad_id=0,
        eos_ids=(),
        comm=CPU,
        progress=lambda _: None,
    )


USES = {
    "a step": step,
    "a loss": price,
    "counting": lambda model: count_given(model, ROWS, "all", 0, gates=True),
    "generation": generate,
    "gradients": lambda model: expert_gradients(model, ROWS[0]),
    "evaluation": evaluate,
}


def fail_in_router(model: MoEModel, patch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """In the second layer's router, while its block routes."""
    model.module.model.layers[1].mlp.gate.register_forward_pre_hook(raising(error))


def fail_in_experts(model: MoEModel, patch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    model.layers[2].module.register_forward_pre_hook(raising(error))


def fail_after_the_last_layer(model: MoEModel, patch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    model.module.get_output_embeddings().register_forward_hook(raising(error))


def fail_in_backward(model: MoEModel, patch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    patch.setattr(torch.Tensor, "backward", raising(error))


def fail_in_optimizer(model: MoEModel, patch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    patch.setattr(SelectiveAdamW, "step", raising(error))


def raising(error: type[BaseException]):
    def fail(*_, **__):
        raise error

    return fail


IN_FORWARD = (fail_in_router, fail_in_experts, fail_after_the_last_layer)
CASES = [
    *((use, place) for use in USES for place in IN_FORWARD),
    *(("a step", place) for place in (fail_in_backward, fail_in_optimizer)),
    ("gradients", fail_in_backward),
]


@pytest.mark.parametrize("error", [FailureError, KeyboardInterrupt])
@pytest.mark.parametrize(("use", "place"), CASES, ids=[f"{use}, {place.__name__}" for use, place in CASES])
def test_nothing_stays_set_after_an_exception(use, place, error):
    untouched = state(adopt(tiny_model("mixtral"), CPU))
    model = adopt(tiny_model("mixtral"), CPU)
    hooks = {id(module): dict(module._forward_pre_hooks) for module in model.module.modules()}
    after = {id(module): dict(module._forward_hooks) for module in model.module.modules()}
    with pytest.MonkeyPatch.context() as patch:
        place(model, patch, error)
        with pytest.raises(error):
            USES[use](model)
    for module in model.module.modules():  # those that fail
        module._forward_pre_hooks.clear()
        module._forward_pre_hooks.update(hooks[id(module)])
        module._forward_hooks.clear()
        module._forward_hooks.update(after[id(module)])
    assert state(model) == untouched


@pytest.mark.parametrize("use", USES)
def test_nothing_stays_set_after_a_use(use):
    model = adopt(tiny_model("mixtral"), CPU)
    before = state(model)
    USES[use](model)
    found = state(model)
    assert found[:-1] == before[:-1]
    assert (found[-1] == before[-1]) is (use != "a step")


def test_a_step_that_failed_can_be_taken_again():
    """As if it had not been tried: the monitor, too, has forgotten it."""
    expected, model = (adopt(tiny_model("mixtral"), CPU) for _ in range(2))
    again = stepping(model)
    batch = collate(ROWS, 0)
    with pytest.MonkeyPatch.context() as patch:
        fail_in_backward(model, patch, FailureError)
        with pytest.raises(FailureError):
            again("the batch", MASK, [batch])
    assert again("the batch", MASK, [batch]) == stepping(expected)("the batch", MASK, [batch])
    assert state(model) == state(expected)


def everything(model: MoEModel, layer: ExpertLayer) -> tuple:
    return layer.live_T, layer.anchor, layer.grads, model.route_mask.plan, model.route_mask.masked_T


def test_inside_a_batch_another_has_nothing_of_it_and_gives_all_back():
    model = adopt(tiny_model("mixtral"), CPU)
    with torch.no_grad():
        free = model.module(input_ids=IDS, use_cache=False).logits
    with model.batch(WHOLE, route=RoutePlan(routable(MASK)), first_layer=1):
        layer = model.layers[2]
        layer.grads = {0: layer.layout.views(torch.zeros(layer.layout.size))}
        model.next_pass(WHOLE, ~WHOLE)
        outer = everything(model, layer)
        assert all(part is not None for part in outer)
        with model.batch():
            assert everything(model, layer) == (None, None, {}, None, None)
            assert torch.equal(model.module(input_ids=IDS, use_cache=False).logits, free)
        assert all(now is then for now, then in zip(everything(model, layer), outer, strict=True))
    assert everything(model, layer) == (None, None, {}, None, None)
    assert len(model.layers) == L
