"""Run directories whose artefacts are damaged, foreign, forged or not there: experts, checkpoints, evaluation."""

import shutil
from pathlib import Path

import pytest
import torch

from dist_moe.cli.main import main
from tests.bad_inputs.forge import cut, directory, drop_one, edit, first, flip, reseal, retensor, write
from tests.bad_inputs.harness import Case, check, ids, nothing

EXPORT, EVALUATE, DELTA = "export run --out out", "evaluate run", "export run --delta --out out.delta"
INDEX, SHARD = "run/experts/index.json", "run/experts/experts-00000.safetensors"
STEP = "stopped/checkpoints/step-00000001"
SHOW = "checkpoint show stopped"
RESUME = "train --config run.yaml --run-dir stopped --train.masks run/masks.zarr"


def second_expert_of(tensors):
    return sorted({key.rsplit(".", 1)[0] for key in tensors})[1]


def add_one(tensors):
    tensors["0.7.other"] = torch.zeros(2)


def change(value, key="down_proj"):
    def apply(tensors):
        name = next(name for name in sorted(tensors) if name.endswith(key))
        tensors[name] = value(tensors[name])

    return apply


def other_layer(document):
    part = document["files"]["experts-00000.safetensors"]
    part["experts"][0] = [99, 0]


def yaml(old, new):
    path = Path("run/train.yaml")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def replaced_shard():
    other = "stopped/checkpoints/step-00000001/experts-00000.safetensors"
    shutil.copy(other, SHARD)


HARMS = {
    "no shard": (lambda: Path(SHARD).unlink(), ("experts-00000.safetensors is missing",)),
    "a shard cut short": (lambda: cut(SHARD), ("experts-00000.safetensors has changed since it was written",)),
    "an empty shard": (lambda: write(SHARD, b""), ("experts-00000.safetensors has changed since it was written",)),
    "one bit": (lambda: flip(SHARD), ("experts-00000.safetensors has changed since it was written", "train again")),
    "another run's shard": (replaced_shard, ("experts-00000.safetensors has changed since it was written",)),
    "a directory in the shard's place": (lambda: directory(SHARD), ("experts-00000.safetensors is missing",)),
    "a file more": (lambda: write("run/experts/more.safetensors", b""), ("more.safetensors does not belong there",)),
    "no index": (lambda: Path(INDEX).unlink(), ("no trained experts: expected index.json",)),
    "an index cut short": (lambda: cut(INDEX, 40), ("index.json",)),
    "an empty index": (lambda: write(INDEX, ""), ("index.json",)),
    "an index that is a list": (lambda: write(INDEX, "[1]"), ("expected a JSON object with format",)),
    "an index that is not UTF-8": (lambda: write(INDEX, b"\xff\xfe{"), ("index.json",)),
    "an index nested too deep": (lambda: write(INDEX, "[" * 100_000), ("index.json",)),
    "an index of version 1": (lambda: edit(INDEX, lambda d: d.update(version=1)), ("version 3, found version 1",)),
    "an index of version true": (lambda: edit(INDEX, lambda d: d.update(version=True)), ("found version True",)),
    "another format": (lambda: edit(INDEX, lambda d: d.update(format="x")), ("with format 'dist_moe experts'",)),
    "a changed fact": (
        lambda: edit(INDEX, lambda d: d["facts"].update(model_hash="0" * 64)),
        ("do not match its digest",),
    ),
    "a digest that is none": (lambda: edit(INDEX, lambda d: d.update(sha256=7)), ("do not match its digest",)),
    "forged: a key more": (lambda: reseal(INDEX, lambda d: d.update(x=1)), ("x is not known",)),
    "forged: no files": (lambda: reseal(INDEX, lambda d: d.pop("files")), ("files is missing",)),
    "forged: facts of another type": (lambda: reseal(INDEX, lambda d: d.update(facts=[])), ("facts is []",)),
    "forged: no selection rule": (
        lambda: reseal(INDEX, lambda d: d["facts"].pop("selection_rule")),
        ("selection_rule is missing",),
    ),
    "forged: a file elsewhere": (
        lambda: reseal(INDEX, lambda d: d["files"].update({"../x": d["files"]["experts-00000.safetensors"]})),
        ("'../x' is not a file name",),
    ),
    "forged: a layer that is not there": (lambda: reseal(INDEX, other_layer), ("tensor 0.", "not one that its index")),
    "forged: a tensor less": (lambda: retensor("run/experts", drop_one), ("is missing", "tensor")),
    "forged: a tensor more": (lambda: retensor("run/experts", add_one), ("tensor 0.7.other is not one",)),
    "forged: another dtype": (
        lambda: retensor("run/experts", change(lambda t: t.half())),
        ("down_proj is float16", "expected float32"),
    ),
    "forged: another shape": (
        lambda: retensor("run/experts", change(lambda t: t.T.contiguous())),
        ("down_proj is float32 [48, 32], expected float32 [32, 48]",),
    ),
    "forged: NaN": (lambda: retensor("run/experts", change(first(torch.nan))), ("has NaN or infinite values",)),
    "forged: infinity": (lambda: retensor("run/experts", change(first(torch.inf))), ("has NaN or infinite values",)),
    "forged: shapes of another model": (
        lambda: (
            reseal(INDEX, lambda d: d["tensors"]["down_proj"].update(shape=[32, 47])),
            retensor("run/experts", lambda ts: ts.update({k: ts[k][:, :47].contiguous() for k in ts if "down" in k})),
        ),
        ("an expert's down_proj is [32, 47] there, and [32, 48] in the model",),
    ),
}
EXPERTS = [Case(f"experts: {name}", harm, EXPORT, says) for name, (harm, says) in HARMS.items()]
EXPERTS += [
    Case(f"experts: {name}, {argv.split()[0]} {argv.split()[2:3]}", HARMS[name][0], argv, HARMS[name][1])
    for argv in (EVALUATE, DELTA)
    for name in ("one bit", "no index", "a changed fact", "forged: NaN", "no shard", "an index that is a list")
]
EXPERTS += [
    Case(f"report: {name}", HARMS[name][0], "report run", HARMS[name][1])
    for name in ("no index", "a changed fact", "an index that is a list")
]
RUNS = [
    Case("no run", nothing, "export nowhere --out out", ("no run directory nowhere",)),
    Case("a run that is a file", nothing, "export run.yaml --out out", ("no run directory run.yaml",)),
    Case("onto a directory", lambda: Path("out").mkdir(), EXPORT, ("out exists",)),
    Case("no experts", lambda: shutil.rmtree("run/experts"), EXPORT, ("no finished training",)),
    Case("no train.yaml", lambda: Path("run/train.yaml").unlink(), EVALUATE, ("no finished training",)),
    Case("train.yaml is no YAML", lambda: write("run/train.yaml", "a: [1"), EXPORT, ("train.yaml", "not valid YAML")),
    Case("train.yaml is empty", lambda: write("run/train.yaml", ""), EXPORT, ("train.yaml", "is empty")),
    Case("train.yaml lacks model", lambda: write("run/train.yaml", "run_dir: run\n"), EXPORT, ("train.yaml has no",)),
    Case("another learning rate", lambda: yaml("lr: 0.001", "lr: 0.002"), EXPORT, ("train.lr is 0.002", "with 0.001")),
    Case("another seed", lambda: yaml("seed: 0", "seed: 1"), EVALUATE, ("seed is 1", "trained with 0", "restore it")),
    Case("another refusal", lambda: yaml("sorry w1 w2", "sorry w1"), EVALUATE, ("data.refusal is 'sorry w1'",)),
    Case("another base", lambda: yaml("path: model", "path: other"), EXPORT, ("other",)),
    Case("other prompts", lambda: flip("prompts.jsonl", 13), EVALUATE, ("not the prompts that run/experts was",)),
    Case("evaluation: one bit", lambda: flip("run/evaluation.json", 40), EXPORT, ("evaluation.json",)),
    Case("evaluation: no JSON", lambda: write("run/evaluation.json", "{"), EXPORT, ("evaluation.json",)),
    Case("evaluation: a directory", lambda: directory("run/evaluation.json"), EXPORT, ("cannot read",)),
    Case(
        "evaluation: a changed number",
        lambda: edit("run/evaluation.json", lambda d: d["groups"][0]["measures"].clear()),
        DELTA,
        ("evaluation.json is damaged",),
    ),
    Case(
        "evaluation: as older versions wrote it",
        lambda: reseal("run/evaluation.json", lambda d: d.update(version=1)),
        EXPORT,
        ("expected 'dist_moe evaluation' version 2, found version 1", "evaluate` again"),
    ),
    Case("report: evaluation: one bit", lambda: flip("run/evaluation.json", 40), "report run", ("evaluation.json",)),
    Case(
        "report: another answer", lambda: flip("run/answers.jsonl"), "report run", ("run/answers.jsonl is not there",)
    ),
    Case("report: a step", lambda: flip("run/metrics.jsonl", 2), "report run", ("run/metrics.jsonl:1: ",)),
    Case("report: another rate", lambda: yaml("lr: 0.001", "lr: 0.002"), "report run", ("train.lr is 0.002",)),
    Case(
        "evaluation: another answer",
        lambda: flip("run/answers.jsonl"),
        EXPORT,
        ("run/answers.jsonl is not there, or not as it was written", "evaluate` again"),
    ),
    Case(
        "evaluation: no answers",
        lambda: Path("run/answers.jsonl").unlink(),
        DELTA,
        ("run/answers.jsonl is not there",),
    ),
]
CHECKPOINT_HARMS = {
    "one bit": (lambda: flip(f"{STEP}/experts-00000.safetensors"), ("has changed since it was written",)),
    "no file": (lambda: Path(f"{STEP}/experts-00000.safetensors").unlink(), ("is missing",)),
    "a file more": (lambda: write(f"{STEP}/x", ""), ("does not belong there",)),
    "an index cut short": (lambda: cut(f"{STEP}/index.json", 90), ("index.json",)),
    "an index that is a list": (lambda: write(f"{STEP}/index.json", "[]"), ("expected a JSON object",)),
    "a changed step": (
        lambda: edit(f"{STEP}/index.json", lambda d: d["state"].update(step=2)),
        ("do not match its digest",),
    ),
    "a changed schedule": (
        lambda: edit(f"{STEP}/index.json", lambda d: d["schedule"].update(last_epoch=3)),
        ("do not match its digest",),
    ),
    "forged: no step": (lambda: reseal(f"{STEP}/index.json", lambda d: d["state"].pop("step")), ("step is missing",)),
    "forged: step -1": (
        lambda: reseal(f"{STEP}/index.json", lambda d: d["state"].update(step=-1)),
        ("state.step is -1",),
    ),
    "forged: a weight below 0": (
        lambda: reseal(f"{STEP}/index.json", lambda d: d["state"]["batch_weights"].insert(0, -1.0)),
        ("state.batch_weights.0 is -1.0",),
    ),
    "forged: 0 ranks a replica": (
        lambda: reseal(f"{STEP}/index.json", lambda d: d["layout"].update(ep_size=0)),
        ("layout.ep_size is 0",),
    ),
    "forged: a moment less": (lambda: retensor(STEP, drop_one), ("is missing", "tensor")),
    "forged: NaN": (lambda: retensor(STEP, change(first(torch.nan), "master")), ("has NaN or infinite values",)),
}
CHECKPOINTS = [
    Case(f"checkpoint: {name}", harm, SHOW, (*says, "checkpoint is damaged"))
    for name, (harm, says) in CHECKPOINT_HARMS.items()
]
CHECKPOINTS += [
    Case(f"resume: {name}", CHECKPOINT_HARMS[name][0], RESUME, ("metrics.jsonl exists",), ("stopped/.lock",))
    for name in ("one bit", "a changed step", "a changed schedule", "an index that is a list", "forged: NaN")
]
OLDER = "expected 'dist_moe checkpoint' version 4, found version 3", "finish the run with that one", "overwrite"
CHECKPOINTS += [
    Case(f"{what}: version 3", lambda: edit(f"{STEP}/index.json", lambda d: d.update(version=3)), argv, OLDER, lock)
    for what, argv, lock in (("show", SHOW, ()), ("resume", RESUME, ("stopped/.lock",)))
]
CHECKPOINTS += [
    Case("resume: changed metrics", lambda: flip("stopped/metrics.jsonl", 30), RESUME,
         ("metrics.jsonl: its first 1 lines are not those", "restore it"), ("stopped/.lock",)),
    Case("resume: no metrics", lambda: Path("stopped/metrics.jsonl").unlink(), RESUME,
         ("metrics.jsonl: its first 1 lines are not those",), ("stopped/.lock",)),
    Case("show: nothing there", nothing, "checkpoint show run", ("run: no checkpoint",)),
]  # fmt: skip
CASES = [*RUNS, *EXPERTS, *CHECKPOINTS]


def test_a_stale_artefact_is_not_quoted(copy, capsys):
    """An evaluation of other experts than those that are exported; one of these is quoted, with its prompts."""
    assert main(["export", "run", "--out", "fresh"]) == 0
    told = Path("fresh/README.md").read_text().split("## Before and after")[1]
    assert "| all | 16 | 16 | " in told
    assert "on rows of prompts.jsonl, hash" in told
    assert "the judge phrases (" in told
    assert "Trained: these are the rows of the training itself, not held out" in told
    reseal("run/evaluation.json", lambda document: document["facts"].update(experts_digest="0" * 64))
    assert main(["export", "run", "--out", "out"]) == 0
    assert "run/evaluation.json is of other experts than run/experts has" in capsys.readouterr().out
    assert "Before and after" not in Path("out/README.md").read_text()


def test_an_artefact_of_other_prompts_is_quoted_as_such(copy):
    rows = Path("prompts.jsonl").read_text().splitlines()
    write("other.jsonl", "\n".join([*rows[1:], rows[0].replace("w", "w1", 1)]) + "\n")
    assert main(["evaluate", "run", "--data", "other.jsonl"]) == 0
    assert main(["export", "run", "--out", "out"]) == 0
    card = Path("out/README.md").read_text()
    headings = [line for line in card.splitlines() if line.startswith(("Held out:", "Trained:", "Overlapping:"))]
    kinds = [line.split(":")[0] for line in headings]
    assert kinds == ["Overlapping", "Trained"]
    assert "| all | 0 | 1 | " in card.split("Overlapping:")[1].split("Trained:")[0]
    assert "| all | 16 | 15 | " in card.split("Trained:")[1]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_artefacts_of_runs(copy, capsys, case):
    check(case, capsys)
