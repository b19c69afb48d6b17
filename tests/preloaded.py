"""What forks need, imported once for all of them: by the server of `forks`."""

# ruff: noqa: F401
import gc

import datasets
import transformers.models.qwen3_moe.modeling_qwen3_moe

import dist_moe.engines.deepspeed
import dist_moe.engines.fsdp
import dist_moe.workflows.analyze
import dist_moe.workflows.evaluate
import dist_moe.workflows.train
import tests.ranks.test_training

gc.freeze()  # a collection in a fork would write to every page, and so copy it
