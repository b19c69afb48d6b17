"""Which models need a forward pass for each row; whether that is so is what the sweep of families checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dist_moe.conformance.sizes import FAMILY_CONFIGS, build
from dist_moe.model.model import adopt
from dist_moe.moe.internals import must_be_alone
from dist_moe.parallel.comm import SoloComm
from dist_moe.report.model import forward_passes

NO_INDEXER = {"layer_types": ["sliding_attention", *["heavily_compressed_attention"] * 2]}
MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "deepseek_v32": ("deepseek_v32", {}, True),
    "deepseek_v4 without an indexer": ("deepseek_v4", NO_INDEXER, True),
    "qwen4_exp_text": ("qwen4_exp_text", {}, False),  # its indexer stands the padding
    "qwen3_next": ("qwen3_next", {}, False),
    "gpt_oss": ("gpt_oss", {}, False),
}


@pytest.mark.parametrize("name", MODELS)
def test_which_models_need_rows_alone(name: str) -> None:
    family, changes, expected = MODELS[name]
    if family in FAMILY_CONFIGS:  # an older transformers has fewer
        assert must_be_alone(build(family, **changes)) == expected


@pytest.mark.parametrize(("family", "found"), [("glm_moe_dsa", [1, 1, 1]), ("mixtral", [8192, None, 16])])
def test_where_rows_run_alone_padding_is_at_most_one_row_wide(family: str, found: list[int | None]) -> None:
    model = adopt(build(family), SoloComm(torch.device("cpu")))
    assert [model.at_once(limit) for limit in (8192, None, 16)] == found
    assert len(list(forward_passes(model))) == model.rows_alone == must_be_alone(model.module)
