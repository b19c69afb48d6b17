"""Two ranks train and count what plain transformers gives row by row: where rows must run alone, and in float32."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from dist_moe.config.schema import ModelConfig
from dist_moe.measure.collect import count_rows
from dist_moe.model.model import adopt, load_model
from dist_moe.parallel.comm import SoloComm
from tests.checkpoint import save_checkpoint
from tests.plain import routed
from tests.ranks.harness import run_ranks
from tests.ranks.test_training import Case, batch_rows, masks_of, padded, train_cases
from tests.reference import Reference
from tests.tiny import tiny_model

CASES = [Case(family="deepseek_v32", mode="update", engine=engine) for engine in ("deepspeed", "fsdp")]
SIZES = (1, 60, 8192)
"""Values of micro_batch_tokens."""


def one_by_one(model):
    """A model that is given padded rows (0 is no token of theirs), and runs each alone."""

    def forward(input_ids, use_cache):
        alone = [ids[None, : int((ids != 0).sum())] for ids in input_ids]
        logits = [model(input_ids=ids, use_cache=use_cache).logits[0] for ids in alone]
        return SimpleNamespace(logits=pad_sequence(logits, batch_first=True))

    return forward


def counts(comm, path):
    model, rows = adopt(tiny_model("deepseek_v32"), SoloComm(comm.device)), batch_rows(0, 9)
    upcast = load_model(ModelConfig(path=path, dtype="float32"), SoloComm(comm.device))
    return [
        [count_rows(each, rows, tokens="all", micro_batch_tokens=n, pad_id=0, comm=comm).counts_PLE for n in SIZES]
        for each in (model, upcast)
    ]


def trained_and_counted(comm, path):
    return train_cases(comm, CASES), counts(comm, path)


@pytest.fixture(scope="module")
def bfloat16(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("bfloat16"), "qwen3_moe", torch.bfloat16)


@pytest.fixture(scope="module")
def ranks(bfloat16):
    return run_ranks(2, trained_and_counted, bfloat16)


def test_with_padding_ranks_train_as_plain_transformers_does_row_by_row(ranks):
    reference = Reference("deepseek_v32", "update")
    reference.model = one_by_one(reference.model)
    expected = [reference.step(mask, *padded(batch_rows(i, 8))) for i, mask in enumerate(masks_of(CASES[0]))]
    for answer in (answer for answers, _ in ranks for answer in answers):
        assert answer["losses"] == pytest.approx([loss for loss, _ in expected], abs=1e-5)
        assert answer["norms"] == pytest.approx([norm for _, norm in expected], abs=1e-5)
        for key, weight in answer["weights"].items():
            np.testing.assert_allclose(weight, reference.weights()[key].numpy(), rtol=0, atol=1e-5)
        assert not answer["leaks"]


def test_with_padding_ranks_count_as_plain_transformers_does_row_by_row(ranks, bfloat16):
    upcast = AutoModelForCausalLM.from_pretrained(bfloat16, dtype=torch.float32, experts_implementation="eager")
    ids = [row.prompt_ids + row.response_ids for row in batch_rows(0, 9)]
    expected = [np.array([routed(each, row).sum(0) for row in ids]) for each in (tiny_model("deepseek_v32"), upcast)]
    for _, answer in ranks:
        for found, right in zip(answer, expected, strict=True):
            assert all((each == right).all() for each in found)
