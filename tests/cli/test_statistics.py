"""What `dist-moe analyze` says of its own selection, and keeps of it."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dist_moe.cli.main import main
from dist_moe.data.rows import read_prompts
from dist_moe.errors import UserError
from dist_moe.report import views
from dist_moe.store.read import MaskStore
from tests.checkpoint import write_jsonl
from tests.cli.conftest import new_run
from tests.cli.test_spans import IDS

B_L_E = {"macro_risk_diff", "interval_low", "interval_high", "p_value", "family_p_value", "q_value", "stability"}
FEW = ["--analysis.statistics.permutations", "300", "--analysis.statistics.resamples", "50"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return new_run(tmp_path_factory.mktemp("statistics"))


def analyze(run, capsys, *arguments):
    """What it printed, and the store."""
    assert main(["analyze", "--config", str(run.config), "--overwrite", *FEW, *arguments]) == 0
    return capsys.readouterr().out, MaskStore.open(run.masks)


def test_report_shows_how_sure_each_number_is(run, capsys):
    printed, store = analyze(run, capsys)
    values = {name: rows[:] for name, rows in store.statistics.items()}
    assert set(values) == B_L_E | {"shrunk_risk_diff", "smallest_p_value", "null_mean", "null_high"}
    tops = re.findall(r"Layer_Expert +risk_diff +interval +q_value +stability +a_safe_n +a_unsafe_n", printed)
    assert len(tops) == 3
    weak = 0
    for batch in store.batches:
        mean, high = values["null_mean"][batch.index], values["null_high"][batch.index]
        line = f"  Batch {batch.index} ({batch.category}): {batch.num_unsafe_experts} "
        line += f"(with permuted labels: mean {mean:.1f}, 95 % quantile {high:.0f})"
        not_above = batch.num_unsafe_experts <= high
        assert line + (" NOT ABOVE CHANCE" if not_above else "") + "\n" in printed
        weak += not_above
        layer, expert = store.unsafe_experts(batch.index)[0]
        place = batch.index, layer, expert
        low, high = values["interval_low"][place], values["interval_high"][place]
        shown = f"[{low:.4f}, {high:.4f}] +{values['q_value'][place]:.4f} +{values['stability'][place]:.2f} "
        assert re.search(re.escape(shown).replace(r"\ \+", " +"), printed)
    assert (f"WARNING: {weak} of 2 batches have no more" in printed) == (weak > 0)
    assert re.search(r"Experts in the union of n batches .*: 1: \d+ \(sd \d+\), 2: \d+ \(sd \d+\)", printed)


def test_the_same_seed_gives_the_same_store_and_another_does_not(run, capsys):
    first, store = analyze(run, capsys)
    digest = store.digest
    again, store = analyze(run, capsys)
    assert (again, store.digest) == (first, digest)


def test_masks_do_not_depend_on_the_statistics(run, capsys):
    masks_BLE = analyze(run, capsys)[1].masks[:]
    printed, store = analyze(run, capsys, "--analysis.statistics.permutations", "0")
    assert (store.masks[:] == masks_BLE).all()
    assert not store.statistics
    assert "q_value" not in printed
    assert "  Batch 0 (hacking): " in printed


def test_the_rule_and_its_parameters_are_stored(run, capsys):
    arguments = ["--analysis.rule", "significant", "--analysis.alpha", "0.9", "--analysis.correction", "family"]
    store = analyze(run, capsys, *arguments)[1]
    assert store.selection_rule == {"name": "significant", "alpha": 0.9, "correction": "family"}
    values = {name: rows[:] for name, rows in store.statistics.items()}
    expected_BLE = (values["family_p_value"] <= np.float32(0.9)) & (store.counts.risk_diff[:] > 0)
    assert (store.masks[:] == expected_BLE).all()


def test_esft_gate_counts_gates(run, capsys):
    printed, store = analyze(run, capsys, "--analysis.rule", "esft_gate", "--analysis.top_p", "0.6")
    assert store.selection_rule == {"name": "esft_gate", "top_p": 0.6}
    assert store.masks[:].any(axis=2).all()
    assert "permuted labels: mean" in printed


def test_gradient_measures_gradients_of_unsafe_rows(run, capsys):
    printed, store = analyze(run, capsys, "--analysis.rule", "gradient", "--analysis.top_k", "7")
    assert store.selection_rule == {"name": "gradient", "top_k": 7}
    assert "permuted labels: mean" not in printed
    gradients_PLE = store.counts.tables["gradients"][:]
    assert gradients_PLE.dtype == np.float32
    assert (gradients_PLE.any(axis=(1, 2)) == store.counts.prompts["unsafe"]).all()
    model = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32)
    rows = {row["id"]: row for row in unsafe_rows_by_id(run)}
    for number, name in enumerate(store.counts.prompts["id"]):
        if name in rows:
            expected_LE = mean_gradients(model, rows[name]["prompt"].split(), ["sorry", "w1", "w2"])
            assert np.allclose(gradients_PLE[number], expected_LE, rtol=1e-4, atol=1e-9)
    for batch in store.batches:
        mine_P = (store.counts.prompts["batch"] == batch.index) & store.counts.prompts["unsafe"]
        mean_LE = gradients_PLE[mine_P].astype(np.float64).mean(axis=0)
        order = sorted(np.ndindex(mean_LE.shape), key=lambda place: (-mean_LE[place], place))
        assert sorted(store.unsafe_experts(batch.index)) == sorted(order[:7])
    again = subprocess.run(
        [sys.executable, "tools/inspect_masks.py", run.masks, "diff", "top_k=7"], capture_output=True
    )
    assert again.returncode == 0


def unsafe_rows_by_id(run):
    prompts = read_prompts([run.data], "sorry w1 w2").prompts
    return [{"id": each.id, "prompt": each.messages[0].content} for each in prompts if each.unsafe]


def mean_gradients(model, prompt, response):
    """[L, E] by the definition, plain transformers and its autograd."""
    ids = [IDS[word] for word in ("<user>", *prompt, "<end>", "<assistant>", *response, "<end>")]
    first = len(ids) - len(response) - 1
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, first - 1 : -1]
    model.zero_grad(set_to_none=True)
    torch.nn.functional.cross_entropy(logits, torch.tensor(ids[first:])).backward()
    experts = [module for name, module in model.named_modules() if name.endswith(".experts")]
    return [
        torch.cat([weight.grad.flatten(1) for weight in module.parameters()], 1).abs().mean(1).numpy()
        for module in experts
    ]


def test_significant_without_tests_is_refused(run, capsys):
    arguments = ["--overwrite", "--analysis.rule", "significant", "--analysis.statistics.permutations", "0"]
    assert main(["analyze", "--config", str(run.config), *arguments]) == 2
    assert "analysis.statistics.permutations is 0" in capsys.readouterr().err


def test_pairs_are_tested_as_pairs(run, tmp_path, capsys):
    rows = [json.loads(line) for line in run.data.read_text().splitlines()]
    for number, row in enumerate(row for row in rows if row["label"] == "safe"):
        row["pair_id"] = number
    for number, row in enumerate(row for row in rows if row["label"] == "unsafe"):
        row["pair_id"] = number
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    printed, store = analyze(run, capsys, "--data.paths", str(data))
    assert store.statistics["smallest_p_value"][:].tolist() == [2.0**-8, 2.0**-8]
    assert "Smallest p-value that is possible in a batch: 0.0039\n" in printed


def test_reading_the_prompts_is_kept_apart_from_answering(run, capsys):
    """What `prefill` compares the answers with is what an analysis of the prompts alone finds."""
    read = analyze(run, capsys, "--analysis.tokens", "prompt")[1]
    counts, tokens = read.counts.prompt_counts[:], read.counts.prompts["tokens"].tolist()
    masks = read.masks[:]
    answered = analyze(run, capsys, "--analysis.tokens", "generated", "--analysis.max_new_tokens", "6")[1]
    assert (answered.counts.tables["prefill_counts"][:] == counts).all()
    assert answered.counts.tables["prefill_tokens"][:].tolist() == tokens
    assert (answered.counts.prompt_counts[:] != counts).any()
    by_batch = views.prefill(answered).tables["batches"]
    for batch, mask_LE in enumerate(answered.masks[:]):
        sizes = [int(both.sum()) for both in (mask_LE & masks[batch], mask_LE & ~masks[batch], ~mask_LE & masks[batch])]
        assert by_batch.loc[batch, ["in_both", "only_in_first", "only_in_second"]].tolist() == sizes
        assert sizes[0] < sum(sizes)
    with pytest.raises(UserError, match="no separate counts for prompts and answers"):
        views.prefill(analyze(run, capsys)[1])


def test_gates_are_kept_unless_they_are_turned_off(run, capsys):
    store = analyze(run, capsys)[1]
    assert ((store.counts.tables["gates"][:] > 0) == (store.counts.prompt_counts[:] > 0)).all()
    assert analyze(run, capsys, "--analysis.no-gates")[1].counts.tables == {}
    arguments = ["--overwrite", "--analysis.rule", "esft_gate", "--analysis.no-gates"]
    assert main(["analyze", "--config", str(run.config), *arguments]) == 2
    assert "analysis.rule = esft_gate needs analysis.gates: set it to true" in capsys.readouterr().err
