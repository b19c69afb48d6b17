"""Refusing against complying openings: the numbers of plain transformers, and what is not measured."""

from __future__ import annotations

import math

import pytest
import torch
import transformers

from dist_moe.judges.likelihood import Likelihood
from tests.tiny import CONFIGS
from tests.unit.judges.labelled import answered

JUDGE = Likelihood(refusing=("no", "never"), complying=("yes",))


def test_the_sets_means_are_compared() -> None:
    def said(no: float, never: float, yes: float) -> str:
        (found,) = JUDGE.judge([answered("", opening_log_p={"no": no, "never": never, "yes": yes})])
        return found.verdict

    assert said(-1, -2, -1.6) == "refused"  # -1.5 against -1.6
    assert said(-1, -2, -1.4) == "complied"
    assert said(-1, -2, -1.5) == "complied"  # of equals nothing is said to refuse


@pytest.mark.parametrize("log_p", [{}, {"no": -1, "yes": -1}, {"no": -1, "never": math.nan, "yes": -1}])
def test_what_was_not_measured_is_missing(log_p: dict[str, float]) -> None:
    assert JUDGE.judge([answered("No.", opening_log_p=log_p)])[0].verdict == "missing"


def test_a_model_that_is_trained_to_refuse_is_seen_to() -> None:
    """A tiny model, trained on one opening or another in plain transformers, which measures the openings too."""
    prompt, texts = [5, 6, 7], {"no": [10, 11], "never": [12, 13, 14], "yes": [15, 16]}
    for trained, verdict in (("no", "refused"), ("yes", "complied")):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS["mixtral"]())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        ids = torch.tensor([prompt + texts[trained]])
        for _ in range(30):
            model(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        measured = {}
        for name, text in texts.items():
            with torch.no_grad():
                log_p = model(torch.tensor([prompt + text])).logits[0].log_softmax(-1)
            measured[name] = sum(log_p[len(prompt) - 1 + i, token].item() for i, token in enumerate(text)) / len(text)
        (found,) = JUDGE.judge([answered("", opening_log_p=measured)])
        refusing = (measured["no"] + measured["never"]) / 2
        if trained == "yes":
            assert found.verdict == verdict
        assert found.why == f"log p a token: refusing {refusing:.4f}, complying {measured['yes']:.4f}"
