import pytest
import torch

from dist_moe.config.schema import TrainConfig
from dist_moe.workflows.route_cost import slots_in_use

MASKS = [torch.tensor([[True, False, False], [True, True, False]]), torch.tensor([[True, True, True], [False] * 3])]
"""Of two slots a token in each layer: one and two survive, then two and two, as a layer without an expert is free."""


@pytest.mark.parametrize(
    ("fill", "scope", "says"),
    [
        ("shrink", "all", "87.5 % of the routing slots survive (mean over batches)"),
        ("shrink", "unsafe", "87.5 % of the routing slots of unsafe rows survive (mean over batches)"),
        ("natural", "all", "of the experts that a token chooses, only the batch's stay in use (fill natural)"),
        ("best", "unsafe", "all routing slots of unsafe rows stay in use (fill best)"),
        ("bias", "all", "all routing slots stay in use (fill bias)"),
    ],
)
def test_what_routing_may_use_is_said_as_it_is(fill, scope, says):
    assert slots_in_use(TrainConfig(fill=fill, scope=scope), MASKS, 2) == says
