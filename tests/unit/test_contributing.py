"""The exercises of CONTRIBUTING.md do what it says: each class as it stands there, registered beside the others."""

import importlib
import re
import sys

import numpy as np
import pytest
import torch

from dist_moe.objective import TERMS, Inputs
from dist_moe.registry import parameters
from dist_moe.rules.rule import RULES
from tests.documented import ROOT
from tests.unit.stats.prompts import batch_of, slow_risk_diff


def block(name: str) -> str:
    """The code of CONTRIBUTING.md, indented or fenced, that defines this class."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    fenced = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    indented = [re.sub(r"(?m)^    ", "", found) for found in re.findall(r"(?m)(?:^    .*\n|^\n(?=\n?    ))+", text)]
    (code,) = [each for each in [*fenced, *indented] if f"\nclass {name}(" in each or f"\nclass {name}:" in each]
    return code


@pytest.fixture
def exercise(monkeypatch, tmp_path):
    """A function that gives the registered class of this name in the page."""

    def made(name, registry, registered):
        monkeypatch.setattr(registry, "_classes", dict(registry))
        code, module = block(name), f"exercise_{registered}"
        (tmp_path / f"{module}.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(sys.modules, module, None)  # so that it is gone afterwards
        del sys.modules[module]
        importlib.import_module(module)
        return registry.find(registered)

    return made


def test_the_rule_chooses_what_a_loop_over_experts_does(exercise):
    rule = exercise("NearLargest", RULES, "near_largest")
    assert [(each.name, each.default, each.help) for each in parameters(rule)] == [
        ("nearness", 0.5, "Least share of the largest risk_diff that a chosen expert has.")
    ]
    for seed in range(5):
        batch = batch_of(seed)
        diff_LE = slow_risk_diff(batch.counts, batch.unsafe_P, range(16), "micro")
        largest = max(diff for layer in diff_LE for diff in layer)
        expected = [[diff > 0 and diff >= 0.3 * largest - 1e-12 for diff in layer] for layer in diff_LE]
        assert 0 < np.sum(expected) < diff_LE.size
        assert (rule(nearness=0.3).select(batch) == np.array(expected)).all()
    assert rule(nearness=0.3).in_words == "risk_diff above 0 and at least 0.3 of the batch's largest"


def test_the_term_is_the_entropy_that_torch_computes(exercise):
    term = exercise("Entropy", TERMS, "entropy")
    assert {each.name for each in parameters(term)} == {"weight", "rows"}
    ours, theirs = (torch.randn(5, 50, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    found = term(weight=0.1).losses(Inputs(logits_mV=ours, target_m=torch.arange(5), base_logits_mV=None))
    expected = torch.distributions.Categorical(logits=theirs).entropy()
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_tracker_is_the_one_that_there_is():
    assert block("Csv") in (ROOT / "dist_moe" / "trackers" / "csv.py").read_text(encoding="utf-8")
