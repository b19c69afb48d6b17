"""Training writes plan.json: what the plan says of its memory, and what was measured."""

import json
import re

import pytest

from dist_moe.cli.main import main
from dist_moe.errors import UserError
from dist_moe.workflows import train_plan

EXACT = ("weights", "gradients", "state", "originals")


def compared(run):
    text = json.loads((run / "plan.json").read_text())
    return text, text["ranks"]


def test_weights_gradients_and_state_are_as_planned_and_activations_no_more(trained, tmp_path, capsys):
    run = tmp_path / "run"
    words = [
        "--train.masks",
        str(trained.masks),
        "--run-dir",
        str(run),
        "--train.epochs",
        "1",
        "--train.plan",
        "always",
    ]
    assert main(["train", "--config", str(trained.config), *words]) == 0
    text, ranks = compared(run)
    assert (text["device"], text["measured"], len(ranks)) == ("cpu", "first step", 1)
    planned, measured = ranks[0]["predicted"], ranks[0]["measured"]
    assert {part: planned[part] for part in EXACT} == {part: measured[part] for part in EXACT}
    assert 0 < measured["activations"] <= planned["activations"]
    told = re.findall(
        r"rank with most, by the plan: ([\d.]+) GB; measured in the first step: ([\d.]+) GB", capsys.readouterr().out
    )
    ends = [planned["total"] / 1e9, measured["total"] / 1e9]
    assert [float(each) for each in told[0]] == pytest.approx(ends, rel=0.5)
    assert min(ends) > 0


def test_a_small_model_is_not_measured_unless_asked(trained):
    assert not (trained.run_dir / "plan.json").exists()


@pytest.mark.long
def test_a_model_that_cannot_be_planned_is_trained(trained, tmp_path, capsys, monkeypatch):
    def refused(*_):
        raise UserError("model type 'x' cannot be planned")

    monkeypatch.setattr(train_plan, "outline_of_path", refused)
    run = tmp_path / "run"
    words = ["--train.masks", trained.masks, "--run-dir", run, "--train.epochs", 1, "--train.plan", "always"]
    assert main(["train", "--config", *map(str, [trained.config, *words])]) == 0
    assert "No plan to compare with: model type 'x' cannot be planned" in capsys.readouterr().err
    assert (run / "experts").is_dir()
    assert not (run / "plan.json").exists()
