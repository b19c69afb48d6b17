"""What the variants of a comparison have in common."""

import pytest

from dist_moe.config.load import load_config
from dist_moe.workflows.variants import Variant, variant_config


@pytest.mark.parametrize("text", ["union", "full", "router_only", "random,train.mode=update,train.lr=1e-3"])
def test_variants_have_one_budget_of_tokens(text):
    words = ["--run-dir", "run", "--model.path", "model", "--data.paths", "prompts.jsonl", "--train.max-tokens", "500"]
    assert variant_config(load_config(None, words), 0, Variant.of(text)).train.max_tokens == 500
