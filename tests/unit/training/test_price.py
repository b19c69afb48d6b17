"""What mode `route` changes before training: counted token by token from plain transformers and by hand."""

import math

import pytest
import torch

from dist_moe.config.objective import ObjectiveConfig
from dist_moe.config.schema import TrainConfig
from dist_moe.data.tokens import Encoded, collate
from dist_moe.model.model import adopt
from dist_moe.objective.cross_entropy import CrossEntropy, Refusals
from dist_moe.objective.kl_to_base import KLToBase
from dist_moe.parallel.comm import SoloComm
from dist_moe.report.route import price_lines
from dist_moe.training.price import LabelPrice, route_price
from dist_moe.training.step import route_plan
from tests.tiny import random_masks, tiny_model, token_ids

CPU = SoloComm(torch.device("cpu"))
MASK = random_masks(1)[0]
LABELS = [False, True, True, False]
ROWS = [
    Encoded(tuple(ids[:3]), tuple(ids[3 : 9 - number]), label)
    for number, (ids, label) in enumerate(zip(token_ids(7).tolist(), LABELS, strict=True))
]
BATCHES = [collate(ROWS[:3], 0), collate(ROWS[3:], 0)]


def priced(mask_LE=MASK, **settings):
    return route_price(adopt(tiny_model("mixtral"), CPU), BATCHES, route_plan(TrainConfig(**settings), mask_LE), CPU)


@torch.no_grad()
def plain(row):
    """Sum of - log p of the answer, and each token's experts in the first layer, of plain transformers."""
    model, ids = tiny_model("mixtral"), [*row.prompt_ids, *row.response_ids]
    found = model(torch.tensor([ids]), output_router_logits=True, use_cache=False)
    log_p = found.logits[0, len(row.prompt_ids) - 1 : -1].double().log_softmax(-1)
    chosen = found.router_logits[0].topk(2).indices.tolist()
    return -log_p[range(len(row.response_ids)), row.response_ids].sum().item(), [*map(set, chosen)]


def test_losses_without_the_mask_are_those_of_plain_transformers_by_label():
    found = priced(fill="natural")
    for label, is_unsafe in (("safe", False), ("unsafe", True)):
        rows = [row for row in ROWS if row.unsafe == is_unsafe]
        loss = sum(plain(row)[0] for row in rows) / sum(len(row.response_ids) for row in rows)
        assert found[label].loss == pytest.approx(loss, abs=1e-5)
        assert found[label].masked_loss != found[label].loss


def test_slots_of_shrink_follow_from_the_mask_alone():
    """A layer without an expert is free; else a token has as many slots as the layer has experts, at most k."""
    mask_LE = torch.zeros_like(MASK)
    mask_LE[0, 5] = mask_LE[1, :3] = True
    for found in priced(mask_LE, fill="shrink").values():
        assert found.slots == pytest.approx((1 + 2 + 2) / (3 * 2))


@pytest.mark.parametrize("fill", ["best", "bias"])
def test_other_fills_use_all_slots_with_other_experts(fill):
    for found in priced(fill=fill).values():
        assert found.slots == 1
        assert 0 < found.chosen < 1


def test_natural_keeps_some_of_what_tokens_choose_in_the_first_layer_by_hand():
    """With a mask on the first layer alone: below it nothing differs, and what it drops is counted by hand."""
    mask_LE = torch.zeros_like(MASK)
    mask_LE[0, :3] = True
    found = priced(mask_LE, fill="natural")
    for label, is_unsafe in (("safe", False), ("unsafe", True)):
        tokens = [own for row in ROWS if row.unsafe == is_unsafe for own in plain(row)[1]]
        inside = [len(own & {0, 1, 2}) for own in tokens]
        dropped = sum(2 - number for number in inside if number)
        assert dropped > 0
        others = len(tokens) * 2 * (len(MASK) - 1)
        assert found[label].slots == pytest.approx((len(tokens) * 2 - dropped + others) / (len(tokens) * 2 + others))
        assert found[label].chosen <= found[label].slots


def test_rows_outside_the_scope_pay_nothing():
    found = priced(fill="shrink", scope="unsafe")
    assert (found["safe"].slots, found["safe"].chosen) == (1, 1)
    assert found["safe"].masked_loss == pytest.approx(found["safe"].loss, abs=1e-5)
    assert found["unsafe"].chosen < 1


def test_a_label_without_rows_is_left_out():
    plan = route_plan(TrainConfig(fill="natural"), MASK)
    found = route_price(adopt(tiny_model("mixtral"), CPU), [collate(ROWS[1:3], 0)], plan, CPU)
    assert [*found] == ["unsafe"]
    assert math.isfinite(found["unsafe"].masked_loss)


def test_lines_say_it_by_label_and_for_what_is_trained():
    price = {
        "safe": LabelPrice(slots=0.5, chosen=0.25, loss=1.0, masked_loss=2.0),
        "unsafe": LabelPrice(slots=0.75, chosen=0.5, loss=3.0, masked_loss=7.0),
    }
    recipe = ObjectiveConfig(cross_entropy=CrossEntropy(weight=0), refusals=Refusals(weight=1), kl_to_base=KLToBase())
    first, safe, unsafe, last = price_lines(TrainConfig(fill="natural", objective=recipe), 5, price)
    assert first == "Mode route, fill natural, scope all. What the mask changes in batch 5 before training:"
    assert safe.startswith("  safe rows (not trained): 50.0 % of the routing slots in use, with 25.0 % of the experts")
    assert unsafe == (
        "  unsafe rows (trained by refusals): 75.0 % of the routing slots in use, with 50.0 % of the experts that "
        "tokens choose without a mask; loss 3.0000 without it, 7.0000 under it"
    )
    assert "--train.mode update" in last
    recipe.kl_to_base = KLToBase(weight=3)
    _, safe, *_ = price_lines(TrainConfig(scope="unsafe", objective=recipe), 5, price)
    assert safe == "  safe rows (trained by kl_to_base): routed without a mask; loss 1.0000"
