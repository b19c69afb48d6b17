"""Deltas that are damaged, foreign, or forged with valid digests, through `apply`."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.bad_inputs.forge import cut, directory, flip, redelta, write
from tests.bad_inputs.harness import Case, check, ids, nothing

FILE = "delta.safetensors"
APPLY = f"apply model {FILE} --out out"


def facts(change):
    """Forge the facts of the delta."""

    def apply(tensors, metadata):
        values = json.loads(metadata["facts"])
        change(values)
        metadata["facts"] = json.dumps(values)

    return lambda: redelta(FILE, apply)


def raw_facts(text):
    return lambda: redelta(FILE, lambda tensors, metadata: metadata.update(facts=text))


def tensors(change):
    return lambda: redelta(FILE, lambda tensors, metadata: change(tensors))


def change_first(value):
    def apply(found):
        name = min(found)
        found[name] = value(found[name])

    return tensors(apply)


def whole_expert_less(found):
    prefix = min(found).rsplit(".", 2)[0]
    for name in [name for name in found if name.startswith(f"{prefix}.")]:
        del found[name]


def filled(value):
    return change_first(lambda tensor: torch.full_like(tensor, value))


CASES = [
    Case("no file", nothing, "apply model nowhere --out out", ("no delta file nowhere",)),
    Case("a directory", lambda: directory(FILE), APPLY, ("no delta file",)),
    Case("empty", lambda: write(FILE, b""), APPLY, ("not a complete safetensors file",)),
    Case("cut short", lambda: cut(FILE), APPLY, ("not a complete safetensors file",)),
    Case("cut in the header", lambda: cut(FILE, 60), APPLY, ("not a complete safetensors file",)),
    Case("text", lambda: write(FILE, "{}" * 40), APPLY, ("not a complete safetensors file",)),
    Case(
        "a shard of the base",
        lambda: Path(min(Path("model").glob("*.safetensors"))).rename(FILE),
        APPLY,
        ("not a delta",),
    ),
    Case("one bit", lambda: flip(FILE), APPLY, ("is damaged: its bytes do not match its digest",)),
    Case("another version", lambda: redelta(FILE, lambda t, m: m.update(version="1")), APPLY, ("found '1'",)),
    Case("no version", lambda: redelta(FILE, lambda t, m: m.pop("version")), APPLY, ("found None",)),
    Case("another format", lambda: redelta(FILE, lambda t, m: m.update(format="x")), APPLY, ("is not a delta",)),
    Case("a digest that is none", lambda: redelta(FILE, lambda t, m: m.update(digest="")), APPLY, ("is damaged",)),
    Case("no facts", lambda: redelta(FILE, lambda t, m: m.pop("facts")), APPLY, ("its facts",)),
    Case("facts no JSON", raw_facts("{"), APPLY, ("its facts",)),
    Case("facts a list", raw_facts("[]"), APPLY, ("facts: its contents is []",)),
    Case("facts nested too deep", raw_facts("[" * 100_000), APPLY, ("its facts",)),
    *(
        Case(f"facts without {key}", facts(lambda values, key=key: values.pop(key)), APPLY, (f"{key} is missing",))
        for key in (
            "model_hash",
            "union",
            "selection_rule",
            "batches",
            "num_parameters",
            "evaluation",
            "prompts",
            "chosen",
        )
    ),
    Case("a hash that is a number", facts(lambda f: f.update(model_hash=7)), APPLY, ("model_hash is 7",)),
    Case("another base's hash", facts(lambda f: f.update(model_hash="1" * 64)), APPLY, ("is not the model that",)),
    Case("a mode that there is not", facts(lambda f: f.update(mode="x")), APPLY, ("mode is 'x'",)),
    Case("a rule that there is not", facts(lambda f: f["selection_rule"].update(name="x")), APPLY, ("selection rule",)),
    Case("a rule without threshold", facts(lambda f: f["selection_rule"].pop("threshold")), APPLY, ("selection rule",)),
    Case("a union of no names", facts(lambda f: f.update(union=["x"])), APPLY, ("union.0", "'x'")),
    Case("another union", facts(lambda f: f.update(union=[[0, 0]])), APPLY, ("is no tensor of an expert that its",)),
    Case("another number", facts(lambda f: f.update(num_trained_experts=1)), APPLY, ("and its facts say 1",)),
    Case("an evaluation of text", facts(lambda f: f.update(evaluation="x")), APPLY, ("evaluation is 'x'",)),
    Case("no parameters", facts(lambda f: f.update(num_parameters=0)), APPLY, ("num_parameters is 0",)),
    Case("a tensor less", tensors(lambda t: t.pop(min(t))), APPLY, ("is missing, and other tensors of the same",)),
    Case("an expert less", tensors(whole_expert_less), APPLY, ("and its facts say",)),
    Case("a dense tensor", tensors(lambda t: t.update({"lm_head.weight": torch.zeros(128, 32)})), APPLY, ("lm_head",)),
    Case("a foreign tensor", tensors(lambda t: t.update({"x[3:1]": torch.zeros(2)})), APPLY, ("x[3:1] is no tensor",)),
    Case("another dtype", change_first(lambda t: t.half()), APPLY, ("is no F16",)),
    Case("another shape", change_first(lambda t: t.reshape(-1)), APPLY, ("of the base: it belongs to another model",)),
    Case("NaN", filled(torch.nan), APPLY, ("NaN or infinite",)),
    Case("infinity", filled(-torch.inf), APPLY, ("NaN or infinite",)),
]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_artefacts_deltas(copy, capsys, case):
    check(case, capsys)


def test_forging_alone_changes_nothing(copy):
    before = safetensors.torch.load_file(FILE)
    redelta(FILE, lambda tensors, metadata: None)
    after = safetensors.torch.load_file(FILE)
    assert before.keys() == after.keys()
