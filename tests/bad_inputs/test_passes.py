"""Attention and packed rows that the device, the packages or the model type do not have."""

import shutil
from pathlib import Path

import pytest

from tests.bad_inputs.harness import Case, check, ids, nothing
from tests.checkpoint import save_checkpoint

COUNT = "count --config run.yaml --run-dir other"
EVALUATE = "evaluate model --data prompts.jsonl --out other"
TRAIN = "train --config run.yaml --run-dir other --train.masks run/masks.zarr"


def another_type(model_type):
    def apply():
        shutil.rmtree("model")
        save_checkpoint(Path("model"), model_type)

    return apply


ON_GPU = ("needs a GPU, and this runs on cpu", "auto, sdpa or eager")
PACKED = ("data.packing: model type 'gpt_oss' cannot have packed rows", "eager attention", "set it to false")
CASES = [
    *(
        Case(f"{word} flash", nothing, f"{argv} --model.attention flash_attention_2", ("flash_attention_2", *ON_GPU))
        for word, argv in (("count", COUNT), ("train", TRAIN), ("evaluate", EVALUATE))
    ),
    Case("flex", nothing, f"{COUNT} --model.attention flex_attention", ("flex_attention", *ON_GPU)),
    Case(
        "no sdpa",
        another_type("gpt_oss"),
        f"{COUNT} --model.attention sdpa",
        ("model.attention: no sdpa for model", "GptOss", "auto"),
    ),
    Case("count packed", another_type("gpt_oss"), f"{COUNT} --data.packing", PACKED),
    Case("train packed", another_type("gpt_oss"), f"{TRAIN} --data.packing", PACKED),
    Case("evaluate packed", another_type("gpt_oss"), f"{EVALUATE} --data.packing", PACKED),
    Case(
        "packed, each row alone",
        another_type("deepseek_v32"),
        f"{COUNT} --data.packing",
        ("'deepseek_v32' cannot", "a forward pass for each row"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_passes(case, copy, capsys):
    check(case, capsys)
