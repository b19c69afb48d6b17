"""Losses against log-softmax written out, and against logits of all positions in every family."""

import pytest
import torch

from dist_moe.conformance.sizes import FAMILY_CONFIGS, build
from dist_moe.model.model import adopt
from dist_moe.moe.bank import train_from
from dist_moe.objective import Inputs
from dist_moe.objective.cross_entropy import CrossEntropy
from dist_moe.parallel.comm import SoloComm
from dist_moe.training.loss import LabelledLogits, token_losses
from tests.tiers import by_family
from tests.tiny import tiny_model, token_ids

CPU = SoloComm(torch.device("cpu"))
IDS = torch.randint(3, 120, (2, 12), generator=torch.Generator().manual_seed(1))
LABELS = IDS.clone()
LABELS[0, :5] = LABELS[1, :9] = LABELS[1, 10] = -100


def inputs(logits, targets, base=None):
    return Inputs(logits_mV=logits, target_m=targets, base_logits_mV=base)


def by_definition(logits, labels):
    """Row by row, position by position."""
    losses = []
    for row in range(labels.shape[0]):
        for position in range(1, labels.shape[1]):
            if labels[row, position] != -100:
                scores = logits[row, position - 1].double()
                losses.append(torch.logsumexp(scores, 0) - scores[labels[row, position]])
    return torch.stack(losses)


def test_losses_of_labelled_positions():
    logits = torch.randn(2, 12, 120, generator=torch.Generator().manual_seed(0))
    losses = token_losses(logits, LABELS)
    torch.testing.assert_close(losses.double(), by_definition(logits, LABELS), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", by_family(sorted(FAMILY_CONFIGS)))
def test_logits_at_labels_only_give_the_loss_of_all_logits(family):
    module = adopt(build(family, torch.float32), CPU).module
    labelled = LabelledLogits(module)
    with torch.no_grad():
        everywhere = module(input_ids=IDS, use_cache=False).logits
        with labelled.at(LABELS):
            logits = module(input_ids=IDS, use_cache=False).logits
        again = module(input_ids=IDS, use_cache=False).logits
    assert logits.shape == (1, 9, everywhere.shape[-1])
    expected = by_definition(everywhere, LABELS)
    found = CrossEntropy().losses(inputs(*labelled.of(logits, LABELS)))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(again, everywhere)  # silent outside `at`


def test_a_batch_without_labels_has_a_graph():
    model, ids = adopt(tiny_model("qwen3_moe"), CPU), token_ids(1)
    train_from(model.layers, 0)
    labelled, labels = LabelledLogits(model.module), torch.full_like(ids, -100)
    with labelled.at(labels):
        logits = model.module(input_ids=ids, use_cache=False).logits
    total = CrossEntropy().losses(inputs(*labelled.of(logits, labels))).sum()
    total.backward()  # ranks without labels take part in their peers' exchanges
    assert total == 0


def test_logits_that_passed_the_hook_by_are_refused():
    model, ids = adopt(tiny_model("qwen3_moe"), CPU), token_ids(1)
    with pytest.raises(AssertionError, match="output layer"):
        LabelledLogits(model.module).of(model.module(input_ids=ids, use_cache=False).logits, ids)
