"""A training run of made-up masks, up to the end of its first step: what `train` does before it trains."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import transformers

from dist_moe.config.load import load_config
from dist_moe.config.schema import Config
from dist_moe.moe.discover import find_moe_layers, moe_shape
from dist_moe.moe.load import empty_model
from dist_moe.parallel.comm import SoloComm
from dist_moe.workflows.count import counts_plan
from dist_moe.workflows.inputs import keep_inputs, read_inputs
from dist_moe.workflows.run_dir import RunDir
from dist_moe.workflows.train import train
from tools.growth import made


def counted_run(folder: Path, rows: Path) -> Config:
    """A run directory as `analyze` leaves it, with stores of made-up counts and the rows that were counted."""
    tokenizer = made.tokenizer()
    settings = transformers.Qwen3MoeConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, num_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    transformers.Qwen3MoeForCausalLM(settings).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    text = (
        f"run_dir: {folder / 'run'}\nmodel: {{path: {folder / 'model'}}}\ndata: {{paths: [{rows}], refusal: word1}}\n"
    )
    (folder / "run.yaml").write_text(f"{text}train: {{mode: update}}\n")
    config = load_config(folder / "run.yaml")
    config = replace(config, analysis=replace(config.analysis, gates=False))
    comm, run = SoloComm(torch.device("cpu")), RunDir(config.run_dir)
    inputs, outline = read_inputs(config, comm), empty_model(config.model.path)
    shape = moe_shape(outline, find_moe_layers(outline))
    of_batches = inputs.batches.of
    made.write(
        run.path,
        counts_plan(config, inputs, {}, outline),
        lambda batches: made.routing(
            of_batches(batches).num_prompts, batches.start, shape.num_layers, shape.num_experts, shape.top_k
        ),
    )
    keep_inputs(inputs, config, comm)
    return config


def first_step(config: Config, *, keeps: bool) -> Callable[[], None]:
    """Train one step; without `keeps`, rows have to be made."""
    run = RunDir(config.run_dir)

    def work() -> None:
        for left in (run.checkpoints, run.metrics, run.plan):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        if not keeps:
            run.rows.unlink(missing_ok=True)
        run.stop.touch()
        train(config, SoloComm(torch.device("cpu")))

    return work
