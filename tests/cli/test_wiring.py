"""From the configuration to the exported weights by the real commands, against a reference that shares no code.

Three runs, in which every setting of batches, analysis, train and parallel that changes a result is away from its
default. docs/testing.md lists the mutations that these tests see.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from dist_moe.cli.main import main
from tests.checkpoint import prompt_rows, save_checkpoint, write_jsonl
from tests.evaluations import value
from tests.wiring import (
    Store,
    Training,
    encoded,
    expert_counts,
    first_experts,
    greedy,
    learning_rate,
    order,
    plain,
    response_loss,
    risk_diff,
)

SEED, ANSWER = 5, 3
ANALYSIS = {
    "tokens": "all",
    "rule": "threshold_top_k",
    "threshold": 0.13,
    "top_k": 4,
    "gates": False,
    "micro_batch_tokens": 64,
    "statistics": {
        "permutations": 20,
        "resamples": 10,
        "null_draws": 5,
        "confidence": 0.9,
        "estimate": "macro",
        "statistic": "difference",
    },
}
TRAIN = {
    "mode": "route",
    "fill": "best",
    "scope": "unsafe",
    "route_bias": 1.5,
    "epochs": 2,
    "lr": 2e-3,
    "betas": [0.8, 0.95],
    "eps": 1e-5,
    "weight_decay": 0.3,
    "max_norm": 0.4,
    "schedule": "cosine",
    "warmup_steps": 2,
    "audit": 3,
}
RUNS = {
    "route": (ANALYSIS, TRAIN),
    "micro-batches": (
        ANALYSIS,
        TRAIN
        | {
            "fill": "bias",
            "scope": "all",
            "schedule": "linear",
            "micro_batch_size": 4,
            "activation_checkpointing": True,
        },
    ),
    "update": (
        ANALYSIS | {"tokens": "completion", "rule": "lowest", "top_k": 9},
        TRAIN | {"mode": "update", "max_norm": 0.1},
    ),
}


@dataclass
class Finished:
    """A run of all commands, its inputs, and what is known of them beforehand."""

    root: Path
    model: Path
    analysis: dict
    train: dict
    rows: dict
    refusal: str
    phrase: str

    @property
    def store(self):
        return Store(self.root / "run" / "masks.zarr")

    @property
    def metrics(self):
        return [json.loads(line) for line in (self.root / "run" / "metrics.jsonl").read_text().splitlines()]

    def encoded(self, name):
        return encoded(self.rows[name], self.refusal)

    def is_unsafe(self, name):
        return self.rows[name]["label"] == "unsafe"


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    model = save_checkpoint(root / "model")
    rows = {f"r{i}": row | {"id": f"r{i}"} for i, row in enumerate(prompt_rows(9, per_category=9))}
    data = write_jsonl(root / "prompts.jsonl", list(rows.values()))
    # what two rows are answered, so that some answers are refusals by data.refusal, some by a phrase, and some are none
    base = plain(model)
    answers = [greedy(base, encoded(row, "")[0], ANSWER) for row in rows.values()]
    phrase = answers[0].split()[0]
    refusal = next(answer for answer in answers if answer and not answer.startswith(phrase))
    analysis, train = RUNS[request.param]
    config = {
        "run_dir": str(root / "run"),
        "model": {"path": str(model)},
        "data": {"paths": [str(data)], "refusal": refusal},
        "batches": {"batch_size": 6, "safe_ratio": 0.4},
        "analysis": analysis,
        "train": train,
        "parallel": {"placement": "contiguous", "offload_optimizer": "cpu", "ep_size": 1},
        "evaluation": {"max_new_tokens": ANSWER, "judge": {"phrases": {"also": [phrase]}}, "micro_batch_tokens": 120},
        "seed": SEED,
    }
    YAML().dump(config, root / "run.yaml")
    for command in ("analyze", "train"):
        assert main([command, "--config", str(root / "run.yaml")]) == 0
    assert main(["export", str(root / "run"), "--out", str(root / "out")]) == 0
    assert main(["evaluate", str(root / "run")]) == 0
    return Finished(root, model, analysis, train, rows, refusal, phrase)


def test_wiring_of_batches_counts_and_masks(run):
    store = run.store
    tokens = {"all": lambda p, r: len(p) + len(r), "completion": lambda p, r: len(r)}[run.analysis["tokens"]]
    assert len(store.masks) == 4
    assert len({name for names in store.rows for name in names}) == 24
    for b, names in enumerate(store.rows):
        unsafe = {name for name in names if run.is_unsafe(name)}
        assert (len(names), len(unsafe)) == (6, 4)
        assert {run.rows[name]["category"] for name in unsafe} == {store.categories[b]}
        pairs = [run.encoded(name) for name in names]
        counts = expert_counts(run.model, pairs, run.analysis["tokens"])
        assert (store.counts[b] == counts).all()
        num_tokens = {name: tokens(*pair) for name, pair in zip(names, pairs, strict=True)}
        expected = risk_diff(dict(zip(names, counts, strict=True)), num_tokens, unsafe)
        np.testing.assert_allclose(store.risk_diff[b], expected, rtol=0, atol=1e-12)
        stored = store.risk_diff[b]  # rates that are equal but for rounding are ties in the store's own numbers only
        mask = first_experts(stored, run.analysis["threshold"], run.analysis["top_k"])
        if run.analysis["rule"] == "lowest":  # as many, from the other end
            mask = first_experts(-stored, -2, mask.sum())
        assert (store.masks[b] == mask).all()


def test_wiring_of_every_step_and_the_exported_weights(run):
    store, reference = run.store, Training(run.model, run.train)
    num_batches, epochs = len(store.masks), run.train["epochs"]
    schedule = [(epoch, b) for epoch in range(epochs) for b in order(num_batches, SEED, epoch)]
    assert len(run.metrics) == len(schedule)
    for i, (line, (epoch, b)) in enumerate(zip(run.metrics, schedule, strict=True)):
        lr = learning_rate(run.train, i, len(schedule))
        rows, unsafe = ([of(name) for name in store.rows[b]] for of in (run.encoded, run.is_unsafe))
        loss, norm, *numbers = reference.step(store.masks[b], rows, unsafe, lr)
        assert (line["step"], line["epoch"], line["batch"]) == (i + 1, epoch, b)
        assert (line["batch_id"], line["category"]) == (store.batch_ids[b], store.categories[b])
        assert (line["mode"], line["mask_hash"]) == (run.train["mode"], store.mask_hash(b))
        assert line["num_active"] == store.masks[b].sum()
        assert [line["num_stepped"], line["num_loss_tokens"], line["num_tokens"]] == numbers
        assert line["lr"] == pytest.approx(lr, rel=1e-9)
        assert line["loss"] == pytest.approx(loss, abs=1e-5)
        assert line["grad_norm"] == pytest.approx(norm, abs=1e-5)
        assert line["audited"] == (i + 1 in (1, 3, 6, 8))
    base, expected, exported = (m.state_dict() for m in (plain(run.model), reference.model, plain(run.root / "out")))
    assert exported.keys() == expected.keys()
    for name, tensor in exported.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)
        if ".experts." not in name:
            assert torch.equal(tensor, base[name])
            continue
        layer = int(name.split(".")[2])
        for expert in range(len(tensor)):
            assert torch.equal(tensor[expert], base[name][expert]) == ((layer, expert) not in reference.moved)


def test_wiring_of_the_settings_that_the_runs_share(run):
    """Each setting decides something in them, so that the comparisons above would see it go."""
    norms, store = [line["grad_norm"] for line in run.metrics], run.store
    assert max(norms) > run.train["max_norm"]  # clips
    if run.train["mode"] == "route":
        sizes = store.masks.sum((1, 2))
        assert sizes.min() < sizes.max() == run.analysis["top_k"]  # the threshold decides, and top_k
        assert {0, 1} <= set(store.masks.sum(2).flatten())  # layers that are left as they are, and of fewer than k
    assert len({tuple(order(len(store.masks), SEED, epoch)) for epoch in range(2)}) == 2


def test_wiring_of_losses_and_refusals(run):
    for when, path in (("before", run.model), ("after", run.root / "out")):
        model = plain(path)
        for b, names in enumerate(run.store.rows):
            for is_unsafe, loss_name, refused_name in (
                (True, "refusal loss (unsafe)", "refused (unsafe)"),
                (False, "answer loss (safe)", "refused (safe)"),
            ):
                pairs = [run.encoded(name) for name in names if run.is_unsafe(name) == is_unsafe]
                answers = [greedy(model, prompt, ANSWER) for prompt, _ in pairs]
                refused = [answer.startswith((run.refusal, run.phrase)) for answer in answers]
                loss = sum(response_loss(model, *pair) for pair in pairs) / sum(len(response) for _, response in pairs)
                of_batch = {"by": "batch", "name": str(b), "kind": "trained"}
                assert value(run.root / "run", loss_name, when, **of_batch) == pytest.approx(loss, abs=1e-5)
                found = value(run.root / "run", refused_name, when, **of_batch)
                assert found == pytest.approx(sum(refused) / len(refused))
    assert 0 < value(run.root / "run", "refused (unsafe)", "before", kind="trained") < 1
