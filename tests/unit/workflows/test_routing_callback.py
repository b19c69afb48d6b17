"""RoutingCallback: counts of a model in transformers' own Trainer are those of plain hooks, and nothing is changed."""

import json

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, TrainerCallback

import dist_moe
from dist_moe.cli.main import main
from dist_moe.errors import UserError
from dist_moe.store import Counts, MaskStore, require_same_origin
from tests.checkpoint import save_dense_checkpoint
from tests.cli.conftest import new_run
from tests.plain import routed
from tests.trainer_rows import Rows


class Keep(TrainerCallback):
    """Keeps the weights after each step, as this test's own copies."""

    def __init__(self):
        self.weights, self.modes = {}, []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights[state.global_step] = {name: value.clone() for name, value in model.state_dict().items()}
        self.modes.append(model.training)


def trainer(model_path, out, *callbacks):
    """Four steps of plain AdamW, an evaluation after every second."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    arguments = transformers.TrainingArguments(
        output_dir=str(out), max_steps=4, per_device_train_batch_size=2, learning_rate=3e-3, eval_strategy="steps",
        eval_steps=2, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, seed=5,
    )  # fmt: skip
    rows = Rows()
    return transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[*callbacks])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return new_run(tmp_path_factory.mktemp("callback"))


@pytest.fixture(scope="module")
def trained(run):
    """A training with the callback, the weights of each step, and where the counts are."""
    keep, out = Keep(), run.root / "routing"
    config = dist_moe.load_config(run.config, ["--analysis.tokens", "all"])
    counting = dist_moe.RoutingCallback(config, out, steps=[1], at_evaluation=True)
    last = trainer(run.model, run.root / "hf", counting, keep)
    last.train()
    return last.model, keep, out


def requests(run, place):
    assert main(["count", "--config", str(run.config), "--requests", str(place)]) == 0
    return {line["id"]: line["prompt_token_ids"] for line in map(json.loads, place.read_text().splitlines())}


def test_counts_are_those_of_plain_hooks_on_the_weights_of_that_step(run, trained, tmp_path):
    _, keep, out = trained
    assert sorted(each.name for each in out.iterdir()) == ["step-000001", "step-000002", "step-000004"]
    ids, found = requests(run, tmp_path / "requests.jsonl"), {}
    for step in (1, 4):
        model = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32).eval()
        model.load_state_dict(keep.weights[step])
        counts = Counts.open_whole(out / f"step-{step:06d}" / "counts.zarr")
        found[step] = counts.prompt_counts[:]
        for row, name in enumerate(counts.index.prompt_ids):
            assert np.array_equal(found[step][row], routed(model, ids[name]).sum(0)), (step, name)
        assert counts.prompt_tokens[:].tolist() == [len(ids[name]) for name in counts.index.prompt_ids]
        assert counts.provenance["step"] == step
    assert (found[1] != found[4]).any(), "three steps have changed no route: the test would not see stale weights"


def test_the_training_is_not_changed(run, trained, tmp_path):
    model, keep, _ = trained
    alone = trainer(run.model, tmp_path / "hf")
    alone.train()
    for name, value in alone.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert keep.modes == [True] * 4
    hooked = [each for each in model.modules() if each._forward_pre_hooks]
    assert not hooked


def test_masks_are_selected_from_it_and_are_of_no_base(run, trained):
    _, _, out = trained
    masks = dist_moe.select(out / "step-000004", threshold=0.01)
    assert masks.masks[:].any()
    with pytest.raises(UserError, match="is of a model in the middle of its training"):
        require_same_origin(MaskStore.open(masks.path), model_hash="0" * 64)


def test_what_cannot_be_counted_is_refused(run, trained, tmp_path):
    _, _, out = trained
    for words, said in (
        (["--analysis.tokens", "generated"], "analysis.tokens is generated"),
        (["--analysis.rule", "gradient"], "analysis.rule = gradient needs gradients"),
    ):
        with pytest.raises(UserError, match=said):
            dist_moe.RoutingCallback(dist_moe.load_config(run.config, words), tmp_path)
    with pytest.raises(UserError, match=r"step-000002 exists"):
        trainer(run.model, tmp_path / "hf", dist_moe.RoutingCallback(run.config, out, steps=[2])).train()
    dense = save_dense_checkpoint(tmp_path / "dense")
    counting = dist_moe.RoutingCallback(run.config, tmp_path / "new", steps=[1])
    with pytest.raises(UserError, match="has no mixture-of-experts layer"):
        trainer(dense, tmp_path / "hf", counting).train()
    assert not (tmp_path / "new").exists()
