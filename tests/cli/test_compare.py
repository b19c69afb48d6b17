"""`dist-moe compare` as a person types it: several variants and seeds, gone on with, against the runs by themselves."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

import dist_moe
import dist_moe.workflows.compare as workflow
from dist_moe.artefacts import checked
from dist_moe.cli.main import main
from dist_moe.evaluation.base_answers import BaseAnswers
from dist_moe.report.status import status_lines
from dist_moe.store import MaskStore
from dist_moe.training.trainer import Trainer
from dist_moe.workflows import rank_log
from dist_moe.workflows.status import status
from dist_moe.workflows.variants import run_variant
from tests.checkpoint import prompt_rows, save_checkpoint, write_config, write_jsonl
from tests.pages import Page
from tools.soak.compare import differing_bits

VARIANTS = ("threshold_top_k,train.mode=update", "union,train.mode=update,train.lr=1e-2")
NAMES = ("threshold_top_k,mode=update", "union,mode=update,lr=1e-2")
SETTINGS = "analysis: {threshold: 0.01, top_k: 6, statistics: {permutations: 0}}\n"


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    model = save_checkpoint(root / "model")
    rows = prompt_rows(24, per_category=12)
    data = write_jsonl(root / "prompts.jsonl", rows[:16] + rows[24:32] + rows[36:44])
    write_jsonl(root / "held-out.jsonl", rows[16:24] + rows[32:36] + rows[44:])
    write_config(root / "run.yaml", model, data, root / "runs", SETTINGS)
    return root


def compare(root, *words, variants=VARIANTS):
    command = ["compare", "--config", root / "run.yaml", "--held-out", root / "held-out.jsonl", "--num-seeds", "2"]
    return main([str(word) for word in (*command, "--variants", *variants, *words)])


def read(path):
    return json.loads(path.read_text())


def rows_of(run):
    return [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def compared(given):
    assert compare(given) == 0
    return given / "runs"


def test_each_variant_of_each_seed_is_a_run_of_its_own(compared):
    metrics = {}
    for seed in (0, 1):
        place = compared / f"seed-{seed}"
        own, union = (MaskStore.open(place / f"{name}.zarr") for name in ("threshold_top_k", "union"))
        assert (union.masks[:] == own.masks[:].any(axis=0)).all()
        assert own.union().any()
        for name in NAMES:
            lines = [json.loads(line) for line in (place / name / "metrics.jsonl").read_text().splitlines()]
            metrics[name, seed] = [line["batch_id"] for line in lines]
            assert {line["lr"] for line in lines} == {1e-2 if "lr" in name else 1e-3}
            assert {line["mode"] for line in lines} == {"update"}
    assert metrics[NAMES[0], 0] == metrics[NAMES[1], 0]  # the same steps
    assert set(metrics[NAMES[0], 0]) != set(metrics[NAMES[0], 1])  # another seed deals other batches


def test_the_table_is_of_the_runs_own_answers(compared):
    found = read(compared / "comparison.json")
    assert found["reference"] == NAMES[0]
    assert found["seeds"] == [0, 1]
    for name in NAMES:
        runs = [rows_of(compared / f"seed-{seed}" / name) for seed in (0, 1)]
        divergence = [row["kl_sum"] / row["num_loss_tokens"] for rows in runs for row in rows if row["label"] == "safe"]
        loss = [row["after"]["loss_sum"] / row["num_loss_tokens"] for rows in runs for row in rows
                if row["label"] == "unsafe"]  # fmt: skip
        levels = found["levels"][name]
        assert levels["KL to the base (safe)"]["value"] == pytest.approx(np.mean(divergence))
        assert levels["KL to the base (safe)"]["value"] > 0
        assert levels["refusal loss (unsafe)"]["value"] == pytest.approx(np.mean(loss))
        assert levels["refusal loss (unsafe)"]["num_prompts"] == 8
    difference = found["differences"][NAMES[1]]["refusal loss (unsafe)"]["value"]
    both = [found["levels"][name]["refusal loss (unsafe)"]["value"] for name in NAMES]
    assert difference == pytest.approx(both[1] - both[0])


def test_a_second_time_it_trains_nothing_and_says_the_same(compared, given, capfd):
    before = read(compared / "comparison.json")
    (compared / "comparison.json").unlink()
    again = compared / "seed-1" / NAMES[1]
    (again / "evaluation.json").unlink()  # as if killed before
    times = {path: path.stat().st_mtime_ns for path in compared.rglob("metrics.jsonl")}
    assert compare(given) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert read(compared / "comparison.json") == before
    assert capfd.readouterr().out.count("Evaluation: ") == 1


def test_a_run_that_was_cut_off_before_a_checkpoint_is_trained_anew(compared, given, tmp_path, monkeypatch):
    take, words = Trainer._take, ("--run-dir", tmp_path / "runs", "--num-seeds", "1")

    def cut(trainer, scheduled):
        if scheduled.step == 2:
            raise RuntimeError("power failure")
        take(trainer, scheduled)

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_take", cut)
            with pytest.raises(RuntimeError, match="power failure"):
                compare(given, *words, variants=VARIANTS[:1])
    run = tmp_path / "runs" / "seed-0" / NAMES[0]
    assert run.is_dir()
    assert not (run / "experts").exists()
    assert compare(given, *words, variants=VARIANTS[:1]) == 0
    assert differing_bits(run, compared / "seed-0" / NAMES[0]) == 0
    rows, expected = (rows_of(each / "seed-0" / NAMES[0]) for each in (tmp_path / "runs", compared))
    assert rows == expected


def test_its_status_is_its_own(compared, given, tmp_path, monkeypatch):
    seen, run = [], tmp_path / "runs"

    def look(*given):
        seen.append(status(run))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return run_variant(*given)

    monkeypatch.setattr(workflow, "run_variant", look)
    monkeypatch.setattr(rank_log, "EVERY_S", 0.0)
    shutil.copytree(compared, run)
    assert compare(given, "--run-dir", run) == 130
    assert [(each.state, each.command, each.done, each.total) for each in seen] == [
        ("running", "compare", done, 4) for done in range(3)
    ]
    found = status(run)
    assert (found.state, found.done, found.error) == ("interrupted", 2, None)
    monkeypatch.setattr(workflow, "run_variant", run_variant)
    assert compare(given, "--run-dir", run) == 0
    assert next(status_lines(status(run))) == f"{run}: comparison finished: run 4 of 4 (100 %)"


def test_the_directory_of_a_run_is_refused(compared, given, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(compared / "seed-0" / NAMES[0], run)
    before = sorted(path.relative_to(run) for path in run.rglob("*"))
    assert compare(given, "--run-dir", run) == 2
    assert capfd.readouterr().err == (
        f"dist-moe: error: {run} is the directory of a run: it has metrics.jsonl. A comparison has one of its own: "
        f"--run-dir {tmp_path / 'run-compare'}\n"
    )
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == before


def test_each_run_is_evaluated_as_by_itself(compared, given, tmp_path):
    """Its before is the base model's answers, which the comparison has asked for once."""
    for name in NAMES:
        run = compared / "seed-1" / name
        words = ["evaluate", run, "--data", given / "held-out.jsonl", "--out", tmp_path / name]
        assert main([str(word) for word in words]) == 0
        for file in ("answers.jsonl", "evaluation.json"):
            assert (run / file).read_bytes() == (tmp_path / name / file).read_bytes()


def changed_base(place, **changes):
    """What is kept of the base model, with other answers and sealed anew."""
    kept = checked(BaseAnswers, {key: read(place)[key] for key in ("asked", "outcomes")}, "", "")
    outcomes = [replace(each, answer=f"kept {number}") for number, each in enumerate(kept.outcomes)]
    BaseAnswers(asked=replace(kept.asked, **changes), outcomes=outcomes).write(place)


def test_the_base_model_is_asked_once_for_all_runs(compared, given, tmp_path):
    shutil.copytree(compared, tmp_path / "runs")
    changed_base(tmp_path / "runs" / "base.json")
    shutil.copy(tmp_path / "runs" / "base.json", tmp_path / "changed.json")
    (tmp_path / "runs" / "seed-1" / NAMES[1] / "evaluation.json").unlink()
    assert compare(given, "--run-dir", tmp_path / "runs") == 0
    rows = rows_of(tmp_path / "runs" / "seed-1" / NAMES[1])
    assert [row["before"]["answer"] for row in rows] == [f"kept {number}" for number in range(len(rows))]
    assert [row["after"] for row in rows] == [row["after"] for row in rows_of(compared / "seed-1" / NAMES[1])]
    assert (tmp_path / "runs" / "base.json").read_bytes() == (tmp_path / "changed.json").read_bytes()


@pytest.mark.parametrize("changes", [{"model_hash": "0" * 64}, {"tokens_hash": "0" * 64}, {"max_new_tokens": 5}])
def test_answers_of_another_base_or_to_something_else_are_made_anew(compared, given, tmp_path, changes):
    shutil.copytree(compared, tmp_path / "runs")
    changed_base(tmp_path / "runs" / "base.json", **changes)
    (tmp_path / "runs" / "seed-1" / NAMES[1] / "evaluation.json").unlink()
    assert compare(given, "--run-dir", tmp_path / "runs") == 0
    for file in ("base.json", f"seed-1/{NAMES[1]}/answers.jsonl"):
        assert (tmp_path / "runs" / file).read_bytes() == (compared / file).read_bytes()


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-40], lambda text: text.replace('"ended": false', '"ended": true')]
)
def test_damaged_answers_of_the_base_are_refused(compared, given, tmp_path, capfd, damage):
    shutil.copytree(compared, tmp_path / "runs")
    place, run = tmp_path / "runs" / "base.json", tmp_path / "runs" / "seed-1" / NAMES[1]
    assert damage(place.read_text()) != place.read_text()
    place.write_text(damage(place.read_text()))
    (run / "evaluation.json").unlink()
    assert compare(given, "--run-dir", tmp_path / "runs") == 2
    said = capfd.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert f"{place}" in said[0]
    assert said[0].endswith("remove it, and give the same command again: the base model is then asked anew")
    place.unlink()
    assert compare(given, "--run-dir", tmp_path / "runs") == 0
    assert place.read_bytes() == (compared / "base.json").read_bytes()


def test_other_settings_of_evaluation_train_nothing_and_evaluate_all_runs_anew(compared, given, tmp_path, capfd):
    shutil.copytree(compared, tmp_path / "runs")
    other = ("--run-dir", tmp_path / "runs", "--evaluation.max_new_tokens", "3")
    assert compare(given, *other) == 0
    assert capfd.readouterr().out.count("Evaluation: ") == 4
    for name in NAMES:
        run = tmp_path / "runs" / "seed-1" / name
        assert read(run / "evaluation.json")["facts"]["settings"]["evaluation.max_new_tokens"] == 3
        assert max(row["after"]["num_tokens"] for row in rows_of(run)) <= 3
        assert (run / "metrics.jsonl").stat().st_mtime_ns == (
            compared / "seed-1" / name / "metrics.jsonl"
        ).stat().st_mtime_ns
    assert compare(given, *other) == 0
    assert "Evaluation: " not in capfd.readouterr().out


def test_from_python_it_is_a_value(compared, given):
    found = dist_moe.compare(given / "run.yaml", [given / "held-out.jsonl"], VARIANTS, num_seeds=2)
    assert json.loads(json.dumps(asdict(found))).items() <= read(compared / "comparison.json").items()


def test_the_seed_is_a_setting_and_no_abbreviation_of_an_option(compared, given, tmp_path):
    shutil.copytree(compared, tmp_path / "runs")
    assert compare(given, "--run-dir", tmp_path / "runs", "--seed", "1", "--num-seeds", "1", "--overwrite") == 0
    assert read(tmp_path / "runs" / "comparison.json")["seeds"] == [1]


def test_other_settings_in_the_same_directory_are_refused_by_name(compared, given, capfd):
    assert compare(given, "--train.epochs", "3") == 2
    said = capfd.readouterr().err.strip()
    assert said == (
        f"dist-moe: error: train.epochs is 3, but {compared / 'seed-0' / NAMES[0]} was made with 2: "
        "choose another run_dir"
    )
    assert compare(given, "--analysis.threshold", "0.02") == 2
    masks = compared / "seed-0" / "threshold_top_k.zarr"
    said = capfd.readouterr().err.strip()
    assert said == f"dist-moe: error: threshold is 0.02, but {masks} was made with 0.01: choose another run_dir"
    assert compare(given, "--data.template_date", "2020-02-02") == 2
    said = capfd.readouterr().err.strip()
    assert said == (
        f"dist-moe: error: data.template_date is '2020-02-02', but {compared / 'seed-0' / NAMES[0]} was made with "
        "'2025-01-01': choose another run_dir"
    )


CHOICE = ("--lrs", "1e-2,1e-3", "--validation", "0.25", "--batches.batch_size", "8")
RATES = ("full", "router_only", "lowest,train.mode=update,train.lr=2e-3")


@pytest.fixture(scope="module")
def chosen(given):
    """Two baselines and a control, and learning rates for those that name none."""
    words = ("--run-dir", given / "rated", "--num-seeds", "1", *CHOICE)
    assert compare(given, *words, variants=RATES) == 0
    return given / "rated"


def test_learning_rates_are_chosen_on_training_rows_by_the_lowest_loss(given, chosen):
    place, found = chosen / "learning-rates", read(chosen / "learning-rates.json")
    lines = [json.loads(line) for line in (given / "prompts.jsonl").read_text().splitlines()]
    parts = [
        [json.loads(line) for line in (place / f"{name}.jsonl").read_text().splitlines()]
        for name in ("fitted", "validation")
    ]
    prompts = [{row["messages"][-1]["content"] for row in part} for part in parts]
    assert not prompts[0] & prompts[1]
    assert prompts[0] | prompts[1] == {row["prompt"] for row in lines}
    assert (found["num_fitted"], found["num_validation"]) == tuple(map(len, parts))
    assert sorted(found["choices"]) == ["full", "router_only"]
    for variant, choice in found["choices"].items():
        losses = {}
        for tried in choice["tried"]:
            rows = rows_of(place / "seed-0" / f"{variant},lr={tried['lr']!r}")
            assert {row["file"].rsplit("/")[-1] for row in rows} == {"validation.jsonl"}
            of_label = [[row for row in rows if row["label"] == label and row["kind"] == "held out"]
                        for label in ("unsafe", "safe")]  # fmt: skip
            sums = [[(row["after"]["loss_sum"], row["num_loss_tokens"]) for row in part] for part in of_label]
            loss = np.mean([np.sum(part, axis=0)[0] / np.sum(part, axis=0)[1] for part in sums])
            assert tried["loss"] == pytest.approx(loss)
            losses[tried["lr"]] = tried["loss"]
        assert list(losses) == [1e-3, 1e-2]
        assert choice["lr"] == min(losses, key=losses.get)
        lines = (chosen / "seed-0" / f"{variant},lr={choice['lr']!r}" / "metrics.jsonl").read_text().splitlines()
        assert {json.loads(line)["lr"] for line in lines} == {choice["lr"]}
    assert read(chosen / "comparison.json")["lrs"]["lowest,mode=update,lr=2e-3"] == 2e-3


def test_baselines_train_what_their_names_say(chosen):
    found = read(chosen / "comparison.json")
    model = AutoModelForCausalLM.from_pretrained(chosen.parent / "model")
    routers = sum(weight.numel() for name, weight in model.named_parameters() if "mlp.gate.weight" in name)
    sizes = {name.partition(",")[0]: sizes for name, sizes in found["num_parameters"].items()}
    assert sizes["full"] == [model.num_parameters()]
    assert sizes["router_only"] == [routers]
    assert 0 < sizes["lowest"][0] < sizes["full"][0]
    for name in found["num_parameters"]:
        lines = [json.loads(line) for line in (chosen / "seed-0" / name / "metrics.jsonl").read_text().splitlines()]
        expected = {"full": "experts_and_dense", "router_only": "routers"}.get(name.partition(",")[0], "experts")
        assert {line["trains"] for line in lines} == {expected}


def test_learning_rates_are_chosen_once(given, chosen, capfd):
    before, rates = read(chosen / "comparison.json"), (chosen / "learning-rates.json").read_text()
    times = {path: path.stat().st_mtime_ns for path in chosen.rglob("metrics.jsonl")}
    words = ("--run-dir", chosen, "--num-seeds", "1", *CHOICE)
    assert compare(given, *words, variants=RATES) == 0
    assert {path: path.stat().st_mtime_ns for path in chosen.rglob("metrics.jsonl")} == times
    assert (read(chosen / "comparison.json"), (chosen / "learning-rates.json").read_text()) == (before, rates)
    said = capfd.readouterr().out
    assert "Evaluation: " not in said
    assert (
        "Learning rates by the lowest mean of refusal loss (unsafe) and answer loss (safe), on 8 training rows" in said
    )
    assert "is at the end of the rates tried" in said


def test_the_page_shows_how_learning_rates_were_chosen(given, chosen, compared):
    found = read(chosen / "learning-rates.json")
    assert main(["report", str(chosen)]) == 0
    shown = Page((chosen / "report.html").read_text(encoding="utf-8"))
    lines = shown.table("Learning rates that were tried").lines[1:]
    expected = [
        [name, f"{tried['lr']:g}" + ", chosen" * (tried["lr"] == choice["lr"]), f"{tried['loss']:.4f}"]
        for name, choice in found["choices"].items()
        for tried in choice["tried"]
    ]
    assert [line[:3] for line in lines] == expected
    assert len(expected) == 4
    assert f"on {found['num_validation']} training rows that these runs were not trained on" in shown.text
    assert shown.text.count("is at the end of the rates tried") == 2
    shutil.copy(chosen / "learning-rates.json", compared / "learning-rates.json")  # of variants that are not here
    try:
        assert main(["report", str(compared)]) == 0
    finally:
        (compared / "learning-rates.json").unlink()
    assert "How learning rates were chosen" not in (compared / "report.html").read_text(encoding="utf-8")
    (compared / "report.html").unlink()


@pytest.mark.parametrize(
    ("variants", "says"),
    [
        (["no_rule"], "no selection rule 'no_rule'"),
        (["lowest,lr=1"], "variant 'lowest,lr=1': expected RULE,train.SETTING=VALUE, got 'lr=1'"),
        (["lowest,train.mode"], "variant 'lowest,train.mode': expected RULE,train.SETTING=VALUE, got 'train.mode'"),
        (["lowest,train.mode=wrong"], "train.mode: expected"),
        (["lowest,train.masks=x"], "train.masks is each variant's own"),
        (["full,train.rounds=experts:2"], "train.trains is experts_and_dense: set it to experts_and_routers"),
    ],
)
def test_a_wrong_variant_is_refused_before_anything_is_written(given, tmp_path, capfd, variants, says):
    assert compare(given, "--run-dir", tmp_path / "runs", variants=variants) == 2
    assert says in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_rows_that_were_trained_are_no_comparison(given, tmp_path, capfd):
    words = ("--run-dir", tmp_path / "runs", "--held-out", given / "prompts.jsonl", "--num-seeds", "1")
    assert compare(given, *words, variants=VARIANTS[:1]) == 2
    assert "no row is held out" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()
