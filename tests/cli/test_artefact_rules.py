"""Every selection rule through analyze, train, export, verify and the card, which says what the run's facts show."""

import dataclasses

import numpy as np
import pytest
from safetensors.torch import load_file

from dist_moe.cli.main import main
from dist_moe.rules import RULES, from_facts
from dist_moe.store import MaskStore
from dist_moe.weights.delta import read_facts
from tests.checkpoint import prompt_rows, save_checkpoint, write_config, write_jsonl

WORDS = {
    "threshold_top_k": "risk_diff above 0.01, at most 6, largest first",
    "shrunk": "risk_diff, drawn towards that of all prompts, above 0.01, at most 6, largest first",
    "significant": "risk_diff above 0 with a q-value of at most 0.9",
    "stable": "risk_diff above 0.01, at most 6, in at least 0.3 of half-samples of the prompts",
    "budget_per_layer": "the 2 of largest risk_diff in each layer, whatever its sign",
    "esft_token": "in each layer, the fewest experts with 0.3 of the unsafe prompts' routing; "
    "safe prompts play no part",
    "esft_gate": "in each layer, the fewest experts with 0.3 of the unsafe prompts' routing weight; "
    "safe prompts play no part",
    "steermoe": "the 6 of largest \\|risk_diff\\|, of either sign",
    "gradient": "the 6 on which the loss of the unsafe prompts' responses depends most; safe prompts play no part",
    "random": "control: drawn at random, as many as have a risk_diff above 0.01, at most 6",
    "random_matched": "control: drawn at random among experts of like load in the same layer, "
    "as many as have a risk_diff above 0.01, at most 6",
    "load": "control: most used by safe and unsafe prompts together, as many as have a risk_diff above 0.01, at most 6",
    "every_expert": "control: all experts, for every batch",
    "pooled": "control: risk_diff of all prompts together above 0.01, at most 6, for every batch",
    "union": "control: of any batch a risk_diff above 0.01, at most 6 a batch, all of them for every batch",
    "lowest": "control: lowest risk_diff, which are safe prompts' experts, as many as have a risk_diff above 0.01, "
    "at most 6",
}
SETTINGS = """analysis:
  rule: {rule}
  threshold: 0.01
  top_k: 6
  alpha: 0.9
  frequency: 0.3
  per_layer: 2
  top_p: 0.3
  statistics: {{permutations: 50, resamples: 10, null_draws: 2}}
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("rules")
    return save_checkpoint(root / "model"), write_jsonl(root / "prompts.jsonl", prompt_rows(8, per_category=4))


def table(card):
    lines = [line.strip("| ").split(" | ", 1) for line in card.splitlines() if line.startswith("| ")]
    return dict(line for line in lines if len(line) == 2)


@pytest.mark.parametrize("rule", RULES)
def test_a_rules_card_is_of_its_run(inputs, tmp_path, rule):
    model, data = inputs
    run, out = tmp_path / "run", tmp_path / "out"
    extra = SETTINGS.format(rule=rule) + "batches: {batch_size: 8}\n"
    config = write_config(tmp_path / "run.yaml", model, data, run, extra)
    for command in (
        ("analyze", "--config", config),
        ("train", "--config", config, "--train.epochs", "1"),
        ("export", run, "--out", out),
        ("export", run, "--delta", "--out", tmp_path / "delta"),
        ("apply", model, tmp_path / "delta", "--out", tmp_path / "applied"),
        ("verify", model, out, "--masks", run / "masks.zarr"),
    ):
        assert main([str(word) for word in command]) == 0, command
    card = (out / "README.md").read_text()
    assert (tmp_path / "applied" / "README.md").read_text() == card

    store = MaskStore.open(run / "masks.zarr")
    chosen = store.counts.risk_diff[:][store.masks[:]]
    signs = [int(part.sum()) for part in (chosen > 0, chosen < 0, chosen == 0)]
    said = table(card)
    assert said["It takes of a batch's experts"] == WORDS.get(rule, from_facts(store.selection_rule, rule).in_words)
    assert said["Selection rule"] == f"{rule}, counted tokens: {store.counted_tokens}"
    assert said["Choices of an expert for a batch"] == (
        f"{len(chosen)}: used more by unsafe prompts in {signs[0]}, by safe prompts in {signs[1]}, "
        f"by both alike in {signs[2]}"
    )
    assert said["Data"].startswith("8 safe and 8 unsafe prompts, hash `")
    assert ("**This is a control.**" in card) == ("experts trained as a control" in card) == RULES[rule].is_control
    assert ("with repaired experts" in card) == (not RULES[rule].is_control)
    assert "unsafe prompts use more were trained" not in card

    changed = [
        name
        for file in out.glob("*.safetensors")
        for name, tensor in load_file(file).items()
        if not (tensor == load_file(model / file.name)[name]).all()
    ]
    facts = read_facts(tmp_path / "delta")
    assert said["Experts changed"] == str(facts.num_trained_experts) == str(len({n.rsplit(".", 2)[0] for n in changed}))
    assert facts.selection_rule == store.selection_rule
    assert dataclasses.asdict(facts.chosen) == dict(zip(("above_0", "below_0", "of_0"), signs, strict=True))


def test_lowest_is_said_to_train_safe_prompts_experts(inputs, tmp_path):
    model, data = inputs
    run = tmp_path / "run"
    extra = SETTINGS.format(rule="lowest") + "batches: {batch_size: 8}\n"
    assert main(["analyze", "--config", str(write_config(tmp_path / "run.yaml", model, data, run, extra))]) == 0
    store = MaskStore.open(run / "masks.zarr")
    assert np.all(store.counts.risk_diff[:][store.masks[:]] < 0)
