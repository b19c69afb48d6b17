"""`train.adjust`: weak batches are found in mid-run, trained more, and identified anew, against a plain reference."""

import json
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from dist_moe.cli.main import main
from dist_moe.report.adjustments import KEPT
from dist_moe.stats.masks import ExpertMasks
from dist_moe.training.adjustments import effects, read_adjustments
from dist_moe.workflows import reidentify
from dist_moe.workflows.reidentify import selected as selected_by_rule
from tests.checkpoint import prompt_rows, save_checkpoint, write_jsonl
from tests.cli.killed_adjust import LAYOUTS, MOMENTS, TURNS
from tests.cli.killing import statuses_of
from tests.cli.test_kills import result
from tests.wiring import (
    Store,
    Training,
    counts_of,
    encoded,
    first_experts,
    greedy,
    order,
    plain,
    response_loss,
    risk_diff,
)

LIMIT_S = 500
SEED, EVERY, LIMIT, THRESHOLD, TOP_K = 5, 3, 3.67, 0.02, 7
STATISTICS = {"permutations": 20, "resamples": 10, "null_draws": 5}
TRAIN = {
    "mode": "update",
    "epochs": 2,
    "lr": 2e-2,
    "betas": [0.9, 0.99],
    "eps": 1e-5,
    "weight_decay": 0.1,
    "max_norm": 0.5,
    "audit": 1,
    "adjust": {
        "every": EVERY,
        "measure": "loss_unsafe",
        "above": LIMIT,
        "action": "both",
        "factor": 2.0,
        "maximum": 3.0,
        "repeats": 1,
        "budget": 1,
    },
}


@dataclass(frozen=True)
class Setup:
    root: Path
    model: Path
    config: Path
    rows: dict

    @property
    def run_dir(self):
        return self.root / "run"

    def start(self, run_dir, *more):
        masks = ("--train.masks", str(self.run_dir / "masks.zarr"))
        return main(["train", "--config", str(self.config), "--run-dir", str(run_dir), *masks, *more])

    def of_batch(self, names):
        """Its rows as tokens, and which are unsafe."""
        unsafe = [self.rows[name]["label"] == "unsafe" for name in names]
        return [encoded(self.rows[name], "sorry w1 w2") for name in names], unsafe


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    root = tmp_path_factory.mktemp("adjust")
    rows = {f"r{i}": row | {"id": f"r{i}"} for i, row in enumerate(prompt_rows(24, per_category=12))}
    model, data = save_checkpoint(root / "model"), write_jsonl(root / "prompts.jsonl", list(rows.values()))
    config = {
        "run_dir": str(root / "run"),
        "model": {"path": str(model)},
        "data": {"paths": [str(data)], "refusal": "sorry w1 w2"},
        "batches": {"batch_size": 12},
        "analysis": {"tokens": "all", "threshold": THRESHOLD, "top_k": TOP_K, "statistics": STATISTICS},
        "train": TRAIN,
        "evaluation": {"max_new_tokens": 4, "judge": {"phrases": {"also": ["sorry"]}}},
        "checkpoint": {"every": 1, "keep": 100},
        "seed": SEED,
    }
    YAML().dump(config, root / "run.yaml")
    assert main(["analyze", "--config", str(root / "run.yaml")]) == 0
    return Setup(root, model, root / "run.yaml", rows)


@pytest.fixture(scope="module")
def adjusted(setup):
    """A finished run, with all its checkpoints."""
    run_dir = setup.root / "adjusted"
    assert setup.start(run_dir) == 0
    return run_dir


def cut_off(finished, run_dir, step):
    """A copy of a run that was killed at its end, and whose checkpoints after a step are lost."""
    shutil.copytree(finished, run_dir)
    shutil.rmtree(run_dir / "experts")
    for path in (run_dir / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    return run_dir


def told(run_dir):
    """What a run leaves of its adjustments."""
    stores = sorted((run_dir / "revisions").glob("r*/*.zarr/zarr.json"))
    digests = {str(file.relative_to(run_dir)): file.read_bytes() for file in stores}
    return (run_dir / "adjustments.jsonl").read_text(), digests, result(run_dir)


def test_a_run_equals_evaluating_counting_selecting_and_training_by_hand(setup, adjusted):
    store = Store(setup.run_dir / "masks.zarr")
    lines = [json.loads(line) for line in (adjusted / "metrics.jsonl").read_text().splitlines()]
    batches = [setup.of_batch(names) for names in store.rows]
    training, masks, weights = Training(setup.model, TRAIN), store.masks.copy(), [1.0] * len(batches)
    turns = order(len(batches), SEED, 0) + order(len(batches), SEED, 1)
    adjustments, left, number = list(read_adjustments(adjusted / "adjustments.jsonl")), 1, 0
    for step, line in enumerate(lines, 1):
        batch = turns.pop(0)
        rows, unsafe = batches[batch]
        loss, norm, *_ = training.step(masks[batch], rows, unsafe, TRAIN["lr"], weights[batch])
        assert (line["batch"], line["weight"], line["mask_revision"]) == (batch, weights[batch], number)
        assert (line["loss"], line["grad_norm"]) == pytest.approx((loss, norm), abs=1e-5)
        if step % EVERY and turns:
            continue
        adjustment = adjustments.pop(0)
        values = evaluate(training.model, batches)
        assert (adjustment.step, len(adjustment.batches)) == (step, len(batches))
        for each, value in zip(adjustment.batches, values, strict=True):
            assert each.value.value == pytest.approx(value, abs=1e-5)
            assert each.value.low < each.value.value < each.value.high
            assert each.is_weak == (each.value.low > LIMIT)
        weak = [each.batch for each in adjustment.weak]
        if not turns:
            assert adjustment.action is None
            assert adjustment.revision is None
            continue
        more = sorted(weak, key=lambda b: -values[b])[:left]
        left -= len(more)
        turns = sorted(more) + turns
        for b in weak:
            weights[b] = min(2 * weights[b], 3.0)
            rows, unsafe = batches[b]
            training.masked = False
            masks[b] = selected(training.model, rows, unsafe)
        number += bool(weak)
        if weak:
            after = Store(adjusted / "revisions" / f"r{number}" / "masks.zarr")
            assert (after.masks == masks).all()
            union = masks.any(0)
            training.moved = {key: own for key, own in training.moved.items() if union[key]}
    assert number >= 1
    assert not turns
    assert not adjustments
    for key, weight in load_file(adjusted / "experts" / "experts-00000.safetensors").items():
        layer, expert, name = key.split(".", 2)
        expected = dict(training.experts[int(layer)].named_parameters())[name][int(expert)]
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def evaluate(model, batches):
    """Loss per token of each batch's unsafe rows."""
    found = []
    for rows, unsafe in batches:
        of_unsafe = [row for row, is_unsafe in zip(rows, unsafe, strict=True) if is_unsafe]
        found.append(sum(response_loss(model, *row) for row in of_unsafe) / sum(len(r) for _, r in of_unsafe))
    return found


def selected(model, rows, unsafe):
    """A batch's experts with the model as it is."""
    counts = dict(enumerate(counts_of(model, rows, "all")))
    tokens = {i: len(p) + len(r) for i, (p, r) in enumerate(rows)}
    return first_experts(risk_diff(counts, tokens, {i for i, u in enumerate(unsafe) if u}), THRESHOLD, TOP_K)


def test_batches_that_are_not_weak_keep_their_masks_and_statistics(setup, adjusted):
    first = next(each for each in read_adjustments(adjusted / "adjustments.jsonl") if each.revision)
    weak = {each.batch for each in first.weak}
    stores = [setup.run_dir, adjusted / "revisions" / "r1"]
    old, new = (Store(path / "masks.zarr") for path in stores)
    assert 0 < len(weak) < len(old.masks)
    changed = {b for b in range(len(old.masks)) if (old.masks[b] != new.masks[b]).any()}
    assert changed
    assert changed <= weak
    assert {b for b in range(len(old.counts)) if (old.counts[b] != new.counts[b]).any()} <= weak
    for each in first.batches:
        gained, lost = new.masks[each.batch] & ~old.masks[each.batch], old.masks[each.batch] & ~new.masks[each.batch]
        assert sorted(map(tuple, np.argwhere(gained).tolist())) == each.experts_in
        assert sorted(map(tuple, np.argwhere(lost).tolist())) == each.experts_out
    assert (
        main(["store", "check", *(str(path / name) for path in stores for name in ("masks.zarr", "counts.zarr"))]) == 0
    )


def test_a_batch_for_which_the_rule_selects_no_expert_keeps_its_mask_and_that_is_said(
    setup, tmp_path, monkeypatch, capsys
):
    def none(*args, **settings):
        found = selected_by_rule(*args, **settings)
        return replace(found, masks=ExpertMasks(np.zeros_like(found.masks.masks_BLE)))

    monkeypatch.setattr(reidentify, "selected", none)
    assert setup.start(tmp_path / "run", "--train.epochs", "1") == 0
    first, _ = read_adjustments(tmp_path / "run" / "adjustments.jsonl")
    assert first.weak
    for each in first.batches:
        assert each.num_selected == (0 if each.is_weak else None)
        assert each.experts_in == each.experts_out == []
    old, new = (Store(path / "masks.zarr") for path in (setup.run_dir, tmp_path / "run" / "revisions" / "r1"))
    assert (old.masks == new.masks).all()
    assert capsys.readouterr().out.count(KEPT) == len(first.weak)


@pytest.mark.parametrize("step", [2, 3, 4, 6])
def test_killed_and_gone_on_has_the_same_bits(setup, adjusted, tmp_path, step):
    run_dir = cut_off(adjusted, tmp_path / "run", step)
    assert setup.start(run_dir) == 0
    assert told(run_dir) == told(adjusted)


@pytest.fixture(scope="module")
def in_turns(setup):
    """A finished run that trains experts and routers in turns: after steps 3 and 6 they have just been the routers'."""
    run_dir = setup.root / "in-turns"
    assert setup.start(run_dir, *TURNS) == 0
    return run_dir


def test_a_batch_is_found_weak_and_counted_anew_with_the_routers_as_they_are(setup, in_turns):
    """The first evaluation against plain transformers with what was trained by then, from that step's checkpoint."""
    first = read_adjustments(in_turns / "adjustments.jsonl")[0]
    assert first.weak
    assert (first.step, first.revision.number) == (EVERY, 1)
    step = in_turns / "checkpoints" / f"step-{EVERY:08}"
    model = plain(setup.model)
    dense = load_file(step / "dense.safetensors")
    routers = {name.removesuffix(".master"): tensor for name, tensor in dense.items() if name.endswith(".master")}
    assert len(routers) == 3
    with torch.no_grad():
        for name, weight in routers.items():
            assert not torch.equal(model.get_parameter(name).flatten(), weight)
            model.get_parameter(name).copy_(weight.view_as(model.get_parameter(name)))
        for key, master in load_file(step / "experts-00000.safetensors").items():
            layer, expert, part = key.split(".")
            if part == "master":
                experts, start = model.model.layers[int(layer)].mlp.experts, 0
                for weight in experts.parameters():
                    weight[int(expert)] = master[start : start + weight[0].numel()].view_as(weight[0])
                    start += weight[0].numel()
    store, after = Store(setup.run_dir / "masks.zarr"), Store(in_turns / "revisions" / "r1" / "masks.zarr")
    batches = [setup.of_batch(names) for names in store.rows]
    values = evaluate(model, batches)
    for each, value in zip(first.batches, values, strict=True):
        assert each.value.value == pytest.approx(value, abs=1e-5)
        expected = selected(model, *batches[each.batch]) if each.is_weak else store.masks[each.batch]
        assert (after.masks[each.batch] == expected).all()


@pytest.mark.parametrize("step", [3, 4, 5])
def test_in_turns_killed_and_gone_on_has_the_same_bits(setup, in_turns, tmp_path, step):
    run_dir = cut_off(in_turns, tmp_path / "run", step)
    assert setup.start(run_dir, *TURNS) == 0
    assert told(run_dir) == told(in_turns)


def test_it_is_exported_and_verified_with_the_masks_of_all_revisions(setup, adjusted, tmp_path):
    out = tmp_path / "out"
    assert main(["export", str(adjusted), "--out", str(out)]) == 0
    revisions = sorted((adjusted / "revisions").iterdir())
    masks = [setup.run_dir / "masks.zarr", *(path / "masks.zarr" for path in revisions)]
    words = [word for path in masks for word in ("--masks", str(path))]
    assert main(["verify", str(setup.model), str(out), *words]) == 0
    facts = json.loads((adjusted / "experts" / "index.json").read_text())["facts"]
    assert len(facts["mask_revisions"]) == len(revisions)
    assert facts["num_steps"] == 9
    assert f"| Masks after step {EVERY} |" in (out / "README.md").read_text()


def test_what_becomes_of_a_weak_batch_is_told(adjusted, setup, tmp_path, capsys):
    found = list(effects(read_adjustments(adjusted / "adjustments.jsonl")))
    assert [(each.step, each.after_step, each.revision) for each in found] == [(EVERY, 2 * EVERY, 1)] * len(found)
    assert setup.start(cut_off(adjusted, tmp_path / "run", EVERY)) == 0
    said = capsys.readouterr().out
    for each in found:
        was, now = (f"{x.value:.2f} ({x.low:.2f} to {x.high:.2f})" for x in (each.before, each.after))
        assert f"batch {each.batch} ({each.category}): {was} -> {now} after revision 1" in said


def swapped(run_dir):
    """Other masks that follow the first ones too."""
    other = run_dir / "revisions" / "r1"
    shutil.rmtree(other)
    shutil.copytree(run_dir.parent / "other" / "revisions" / "r1", other)


def forged(run_dir):
    ledger = run_dir / "adjustments.jsonl"
    ledger.write_text(ledger.read_text().replace(f'"step": {EVERY}', f'"step": {EVERY - 1}', 1))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (swapped, "r1/masks.zarr is not what "),
        (lambda run_dir: shutil.rmtree(run_dir / "revisions"), "no mask store at "),
        (lambda run_dir: (run_dir / "adjustments.jsonl").unlink(), "adjustments.jsonl: 0 lines, expected 1"),
        (lambda run_dir: (run_dir / "adjustments.jsonl").write_text("{}\n"), "adjustments.jsonl:1: step is missing"),
        (forged, f"adjustments.jsonl:1: of step {EVERY - 1}, expected {EVERY}"),
    ],
)
def test_masks_that_the_run_has_not_written_are_refused(setup, adjusted, tmp_path, capsys, harm, says):
    run_dir = cut_off(adjusted, tmp_path / "run", EVERY + 1)
    if harm is swapped:
        assert setup.start(tmp_path / "other", "--train.lr", "1e-2", "--train.adjust.above", "0.1") == 0
    harm(run_dir)
    assert setup.start(run_dir) == 2
    assert says in capsys.readouterr().err


def test_a_rate_is_that_of_the_rows_of_its_category(setup, tmp_path):
    """With a model that does not move, so that its answers are the base's."""
    base, rows = plain(setup.model), [row for row in setup.rows.values() if row["label"] == "unsafe"]
    answers = {row["prompt"]: greedy(base, encoded(row, "")[0], 4) for row in rows}
    phrase = Counter(answer for answer in answers.values() if answer).most_common(1)[0][0]
    data = write_jsonl(tmp_path / "valid.jsonl", rows[::2])
    words = ["--train.adjust.measure", "refusal_unsafe", "--train.adjust.below", "0.5", "--train.adjust.above", "None"]
    words += ["--train.adjust.action", "reweight", "--train.adjust.repeats", "0", "--train.adjust.budget", "0"]
    words += ["--train.adjust.data", str(data), "--train.lr", "1e-12", "--train.activation_checkpointing"]
    words += ["--evaluation.judge.phrases.also", phrase, "--train.weights", "weapons=2"]
    assert setup.start(tmp_path / "run", *words) == 0
    for adjustment in read_adjustments(tmp_path / "run" / "adjustments.jsonl"):
        for each in adjustment.batches:
            said = [answers[row["prompt"]].startswith(phrase) for row in rows[::2] if row["category"] == each.category]
            assert (each.value.value, each.value.num_prompts) == (sum(said) / len(said), len(said))
            assert each.is_weak == (each.value.high < 0.5)
    _, metrics = result(tmp_path / "run")
    weights = dict.fromkeys(range(4), 1.0) | dict.fromkeys((2, 3), 2.0)
    weak = {each.batch for each in adjustment.batches if each.is_weak}
    for line in metrics:
        grown = 2 ** ((line["step"] - 1) // EVERY) if line["batch"] in weak else 1
        assert line["weight"] == min(weights[line["batch"]] * grown, max(3.0, weights[line["batch"]]))


@pytest.fixture(scope="module")
def on_ranks(setup, tmp_path_factory):
    """Directory of all runs, and by (layout, moment) the statuses of both starts."""
    out = tmp_path_factory.mktemp("killed")
    words = ["--config", setup.config, "--train.masks", setup.run_dir / "masks.zarr"]
    return out, statuses_of("tests.cli.killed_adjust", out, EVERY, ",".join(LAYOUTS), *words, limit_s=LIMIT_S)


KILLED = [(layout, moment) for layout, (*_, moments) in LAYOUTS.items() for moment in moments]


@pytest.mark.long
@pytest.mark.timeout(LIMIT_S + 100)
@pytest.mark.parametrize(("layout", "moment"), KILLED)
def test_a_rank_killed_while_experts_are_found_anew_costs_no_bit(on_ranks, layout, moment):
    out, statuses = on_ranks
    num_ranks, victim = LAYOUTS[layout][1], MOMENTS[moment][3]
    first, second = statuses[layout, moment]
    assert first == [-9 if rank == victim else 1 for rank in range(num_ranks)]
    assert second == [0] * num_ranks
    assert f"Resuming after step {EVERY} of 8" in (out / f"{layout}-{moment}-2.log").read_text()
    assert told(out / f"{layout}-{moment}") == told(out / f"{layout}-undisturbed")


@pytest.mark.long
@pytest.mark.timeout(LIMIT_S + 100)
@pytest.mark.parametrize(("one", "many"), [("one", "two"), ("one-rate", "four-rate"), ("one-turns", "zero-turns")])
def test_ranks_adjust_as_one_does(on_ranks, one, many):
    out, statuses = on_ranks
    assert statuses[one, "undisturbed"][1] == [0]
    expected, found = (told(out / f"{layout}-undisturbed") for layout in (one, many))
    assert len(expected[1]) >= 2
    assert expected[1].keys() == found[1].keys()
    for name in {Path(file).parts[1] for file in expected[1]}:
        places = (out / f"{layout}-undisturbed" / "revisions" / name / "masks.zarr" for layout in (one, many))
        left, right = map(Store, places)
        assert (left.masks == right.masks).all()
        assert (left.counts == right.counts).all()
    ledgers = [read_adjustments(out / f"{layout}-undisturbed" / "adjustments.jsonl") for layout in (one, many)]
    for left, right in zip(*ledgers, strict=True):
        assert (left.step, left.revision is None) == (right.step, right.revision is None)
        for a, b in zip(left.batches, right.batches, strict=True):
            assert (a.is_weak, a.weight, a.repeats) == (b.is_weak, b.weight, b.repeats)
            assert (a.value.value, a.value.low, a.value.high) == pytest.approx(
                (b.value.value, b.value.low, b.value.high), abs=1e-5
            )
    assert expected[2][0].keys() == found[2][0].keys()
    differences = np.concatenate(
        [
            np.frombuffer(weight, np.float32) - np.frombuffer(found[2][0][key], np.float32)
            for key, weight in expected[2][0].items()
        ]
    )
    # Ranks round sums in another order. AdamW's moments then differ by at most 2e-8, but where a gradient is nearly 0
    # the step, their quotient, is any number: seen in 0.2 % of weights, by 1.4e-5 at most.
    assert abs(differences).max() <= 2e-5
    assert (abs(differences) > 1e-6).mean() <= 0.01
    assert np.linalg.norm(differences) <= 5e-7 * len(differences) ** 0.5
