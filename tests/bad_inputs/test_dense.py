"""Trained routers that are damaged, foreign or forged, in a finished run and in a checkpoint."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from dist_moe.cli.main import main
from tests.bad_inputs.forge import (
    cut,
    directory,
    drop_one,
    first,
    flip,
    redense,
    redigest_dense,
    reseal,
    retensor,
    write,
)
from tests.bad_inputs.harness import Case, check, ids

STEP, RUN = "turned/checkpoints/step-00000001", "routers/experts"
WORDS = "--config run.yaml --train.masks run/masks.zarr --train.trains experts_and_routers"
EXPORT, DELTA, EVALUATE = "export routers --out out", "export routers --delta --out out.delta", "evaluate routers"
SHOW, RESUME = "checkpoint show turned", f"train {WORDS} --run-dir turned"
ROUTER = "model.layers.0.mlp.gate.weight"
ATTENTION = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def with_routers(finished, tmp_path_factory):
    """The finished run, and beside it one that has trained routers, and one that was stopped while it did."""
    root = tmp_path_factory.mktemp("routers") / "case"
    shutil.copytree(finished, root)
    before = os.getcwd()
    os.chdir(root)
    try:
        Path("turned").mkdir()
        Path("turned/STOP").touch()
        for run_dir in ("routers", "turned"):
            assert main(["train", *WORDS.split(), "--run-dir", run_dir]) == 0
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def copy(with_routers, tmp_path, monkeypatch):
    root = tmp_path / "case"
    shutil.copytree(with_routers, root)
    monkeypatch.chdir(root)
    return root


def change(value, name=ROUTER):
    def apply(tensors):
        tensors[name] = value(tensors[name])

    return apply


def more(name, size):
    return lambda tensors: tensors.update({name: torch.zeros(size)})


def no_tensors(folder):
    write(f"{folder}/dense.safetensors", b"no tensors")
    redigest_dense(folder, {})


def harms(folder, router):
    """What may be wrong with a file of dense weights, `router` being one of its tensors; and what is said of it."""
    file = f"{folder}/dense.safetensors"
    return {
        "no file": (lambda: Path(file).unlink(), ("dense.safetensors is missing",)),
        "cut short": (lambda: cut(file), ("dense.safetensors has changed since it was written",)),
        "empty": (lambda: write(file, b""), ("dense.safetensors has changed since it was written",)),
        "one bit": (lambda: flip(file), ("dense.safetensors has changed since it was written",)),
        "a directory": (lambda: directory(file), ("dense.safetensors is missing",)),
        "forged: no tensors": (lambda: no_tensors(folder), ("dense.safetensors is not a safetensors file",)),
        "forged: a tensor less": (lambda: redense(folder, drop_one), ("is missing", "tensor")),
        "forged: a tensor more": (lambda: redense(folder, more("x", 2)), ("tensor x is not one that its index names",)),
        "forged: another dtype": (
            lambda: redense(folder, change(lambda t: t.half(), router)),
            (f"tensor {router} is float16 [", "expected float32 ["),
        ),
        "forged: another shape": (
            lambda: redense(folder, change(lambda t: t[:-1].contiguous(), router)),
            (f"tensor {router} is float32 [", "expected float32 ["),
        ),
        "forged: NaN": (
            lambda: redense(folder, change(first(torch.nan), router)),
            (f"tensor {router} has NaN or infinite values",),
        ),
        "forged: infinity": (
            lambda: redense(folder, change(first(torch.inf), router)),
            (f"tensor {router} has NaN or infinite values",),
        ),
    }


def into_a_run_of_experts():
    shutil.copy(f"{RUN}/dense.safetensors", "run/experts")
    dense = json.loads(Path(RUN, "index.json").read_text())["dense"]
    reseal("run/experts/index.json", lambda document: document.update(dense=dense))


TOLD = {
    "another shape in the index too": (
        lambda: redense(RUN, change(lambda t: t[:, :-1].contiguous()), told=True),
        (f"dense.safetensors: {ROUTER} is [8, 31] there, and [8, 32] in the model", "belongs to another model"),
    ),
    "a weight of no model": (
        lambda: redense(RUN, more("x", 2), told=True),
        ("dense.safetensors: 'x' is no weight that a run with train.trains experts_and_routers trains",),
    ),
    "a weight that no router has": (
        lambda: redense(RUN, more(ATTENTION, (32, 32)), told=True),
        (f"'{ATTENTION}' is no weight that a run with train.trains experts_and_routers trains",),
    ),
}
FILE = harms(RUN, ROUTER)
CASES = [Case(f"run: {name}", harm, EXPORT, says) for name, (harm, says) in (FILE | TOLD).items()]
CASES += [
    Case(f"{argv.split()[0]} {argv.split()[2:3]}: {name}", *(FILE | TOLD)[name][:1], argv, (FILE | TOLD)[name][1])
    for argv in (DELTA, EVALUATE)
    for name in (*TOLD, "one bit", "forged: NaN")
]
CASES += [
    Case(
        f"{argv}: in a run that has trained no router",
        into_a_run_of_experts,
        argv,
        (f"'{ROUTER}' is no weight that a run with train.trains experts trains",),
    )
    for argv in ("export run --out out", "evaluate run")
]

MASTER = f"{ROUTER}.master"


def stranger():
    """The state of an expert twice, the second time in a layer that the model does not have."""

    def twice(tensors):
        one = min(tensors).rpartition(".")[0]
        tensors |= {
            name.replace(one, "99.0", 1): t.clone() for name, t in tensors.items() if name.startswith(f"{one}.")
        }

    def named(document):
        document["files"]["experts-00000.safetensors"]["experts"].append([99, 0])

    retensor(STEP, twice)
    reseal(f"{STEP}/index.json", named)


CASES += [
    Case(f"checkpoint: {name}", harm, SHOW, (*says, "checkpoint is damaged"))
    for name, (harm, says) in harms(STEP, MASTER).items()
]
CASES += [
    Case(f"resume: {name}", harm, RESUME, says, ("turned/.lock",))
    for name, harm, says in (
        ("one bit", lambda: flip(f"{STEP}/dense.safetensors"), ("metrics.jsonl exists",)),
        (
            "another shape in the index too",
            lambda: redense(STEP, change(lambda t: t[:-1].contiguous(), MASTER), told=True),
            (f"index.json: master of {ROUTER} is float32 [255], expected float32 [256]", "set overwrite"),
        ),
        (
            "another type in the index too",
            lambda: redense(STEP, change(lambda t: t.half(), MASTER), told=True),
            (f"index.json: master of {ROUTER} is float16 [256], expected float32 [256]",),
        ),
        (
            "no moments in the index either",
            lambda: redense(STEP, lambda tensors: tensors.pop(f"{ROUTER}.exp_avg"), told=True),
            (f"index.json: exp_avg of {ROUTER} is missing, expected float32 [256]",),
        ),
        (
            "a weight that no router has",
            lambda: redense(STEP, more(f"{ATTENTION}.master", 4), told=True),
            (f"index.json: '{ATTENTION}' is not trained by this run",),
        ),
        ("an expert of no layer", stranger, ("index.json: expert L99_E00 is not one of the model's",)),
    )
]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_dense_weights(copy, capsys, case):
    check(case, capsys)
